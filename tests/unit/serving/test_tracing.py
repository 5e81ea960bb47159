"""Spans of requests: what they say, whose trace they join, and that nobody waits for whoever collects them."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence

import pytest

from inflight.answer.stream import Timing
from inflight.backend.listeners import listeners
from inflight.errors import LoadError
from inflight.identity import Identity, Trace
from inflight.serving import tracing
from inflight.serving.ended import Ended
from inflight.serving.spans import how_many, spans_of
from inflight.serving.tracing import Tracing, Tree

pytestmark = pytest.mark.fast

TRACE = Trace("4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7", True)
S = 10**9
AHEAD = 1_000 * S  # of Unix time before monotonic time, here
WHOLE = Ended(
    Identity("abc", TRACE),
    "length",
    Timing(10 * S, 11 * S, 13 * S, 16 * S),
    17 * S,
    7,
    20,
    "chat",
    {"gen_ai.request.max_tokens": 20},
)


def test_a_whole_answer() -> None:
    whole, *parts = spans_of("llm", WHOLE, AHEAD)
    assert (whole.name, whole.start_ns - AHEAD, whole.end_ns - AHEAD, whole.error) == ("chat llm", 10 * S, 17 * S, "")
    assert whole.attributes == {
        "gen_ai.provider.name": "inflight",
        "gen_ai.operation.name": "chat",
        "gen_ai.request.model": "llm",
        "gen_ai.request.max_tokens": 20,
        "gen_ai.response.id": "abc",
        "gen_ai.response.finish_reasons": ("length",),
        "gen_ai.response.time_to_first_chunk": 3.0,
        "gen_ai.usage.input_tokens": 7,
        "gen_ai.usage.output_tokens": 20,
    }
    seconds = [(part.name, (part.start_ns - AHEAD) / S, (part.end_ns - AHEAD) / S) for part in parts]
    assert seconds == [("queue", 10, 11), ("prefill", 11, 13), ("decode", 13, 16)]


@pytest.mark.parametrize(
    ("timing", "names", "last_end"),
    [
        (Timing(10 * S), ["queue"], 17),
        (Timing(10 * S, 11 * S), ["queue", "prefill"], 17),
        (Timing(10 * S, 11 * S, 13 * S, 13 * S), ["queue", "prefill", "decode"], 13),
    ],
)
def test_an_end_on_the_way(timing: Timing, names: list[str], last_end: int) -> None:
    ended = Ended(Identity("abc", TRACE), "cancelled", timing, 17 * S, 7, 0, "text_completion")
    whole, *parts = spans_of("llm", ended, 0)
    assert [part.name for part in parts] == names
    assert parts[-1].end_ns == last_end * S
    assert (whole.error, whole.attributes["error.type"]) == ("cancelled", "cancelled")
    assert "gen_ai.response.finish_reasons" not in whole.attributes
    assert how_many(ended) == 1 + len(parts)


def test_a_request_that_was_never_read_is_one_span() -> None:
    ended = Ended(Identity("abc", TRACE), "invalid_arg", Timing(10 * S), 17 * S)
    (whole,) = spans_of("llm", ended, 0)
    assert (whole.name, whole.error) == ("refused llm", "invalid_arg")
    assert how_many(ended) == 1


class Collector:
    """Takes spans, refuses them, raises, or does not come back before it is told to."""

    def __init__(self, how: str = "takes") -> None:
        self.how = how
        self.trees: list[Tree] = []
        self.may_go = threading.Event()
        self.threads: set[str] = set()
        self.shut = False

    def export(self, trees: Sequence[Tree]) -> bool:
        self.threads.add(threading.current_thread().name)
        if self.how == "raises":
            raise OSError("connection refused")
        if self.how == "hangs":
            self.may_go.wait(10.0)
        if self.how != "refuses":
            self.trees += trees
        return self.how != "refuses"

    def shutdown(self) -> None:
        self.shut = True
        self.may_go.set()


def test_what_ends_before_the_stop_is_sent_on_one_thread() -> None:
    collector = Collector()
    made = Tracing("llm", collector)
    for _ in range(600):
        made(WHOLE)
    made.stop(10.0)
    assert made.state() == {"spans_sent": 2400, "spans_dropped": 0}
    assert len(collector.trees) == 600
    assert {trace for trace, _ in collector.trees} == {TRACE}
    assert collector.threads == {"inflight-spans"}
    assert collector.shut
    made(WHOLE)
    assert made.dropped == 4, "nobody is there to send it"
    collector.shut = False
    made.stop(10.0)
    assert not collector.shut, "told to end twice: by the drain's end, and by the model's"


def test_only_what_somebody_else_records_is_recorded() -> None:
    collector = Collector()
    made = Tracing("llm", collector)
    for trace in (None, Trace(TRACE.trace_id, TRACE.parent_id, False)):
        made(Ended(Identity("abc", trace), "length", Timing(1), 2))
    made.stop(10.0)
    assert not collector.trees
    assert not any(made.state().values())


@pytest.mark.parametrize("how", ["refuses", "raises"])
def test_spans_that_cannot_be_sent_are_counted(how: str, caplog: pytest.LogCaptureFixture) -> None:
    made = Tracing("llm", Collector(how))
    made(WHOLE)
    made.stop(10.0)
    assert made.state() == {"spans_sent": 0, "spans_dropped": 4}
    assert "spans are lost" in caplog.text


def test_a_collector_that_hangs_keeps_nobody() -> None:
    collector = Collector("hangs")
    made = Tracing("llm", collector, most_waiting=300)
    for _ in range(tracing.MOST_AT_ONCE):
        made(WHOLE)
    while not collector.threads:  # the thread is inside
        time.sleep(0.01)
    began = time.monotonic()
    for _ in range(1000):
        made(WHOLE)
    assert time.monotonic() - began < 1.0
    assert made.dropped == 4 * 700
    made.stop(0.1)
    assert time.monotonic() - began < 5.0


def test_without_the_sdk_the_load_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "opentelemetry", None)
    with pytest.raises(LoadError, match=r'pip install "inflight\[otel\]"'):
        listeners("llm", {tracing.ON: "1"})


def test_a_protocol_that_is_not_spoken_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")
    with pytest.raises(LoadError, match="must be http/protobuf, but is 'grpc'"):
        listeners("llm", {tracing.ON: "1"})
