"""When tokens are sent, in virtual time: at once where that is cheap, evenly otherwise, and never in large lumps."""

from __future__ import annotations

import itertools
import queue
import statistics
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inflight.answer.stream import Taken
from inflight.engines.base import EngineOutput
from inflight.serving.delivery import (
    EVEN_GAP_S,
    LONGEST_GAP_S,
    MAX_GAP_S,
    MOST_SHARE,
    OVERLOAD_SHARE,
    SEND_SHARE,
    Delivery,
    LiveStream,
    gap_s,
)
from inflight.serving.metrics import Metrics
from tests.unit.machines.delivery_fakes import FakeClock

pytestmark = pytest.mark.fast

COST_S = 0.0004


class OneStream:
    """A stream that says how many tokens each response carries, and when."""

    def __init__(self, clock: FakeClock) -> None:
        self.request = SimpleNamespace(stream=True, stops=())
        self.timing = SimpleNamespace(first_token_ns=0)
        self.sent: list[tuple[float, int]] = []
        self._clock = clock
        self._tokens = 0

    def append(self, output: EngineOutput, now_ns: int) -> None:
        self._tokens += len(output.token_ids)

    def take(self) -> Taken:
        self.sent.append((round(self._clock.now, 4), self._tokens))  # the clock moves a little at every look
        self._tokens = 0
        return Taken([])


def sent(monkeypatch: pytest.MonkeyPatch, streams: int, arrivals: list[float], cores: int = 2) -> list[float]:
    """When one of so many streams sends, if its tokens arrive then; nothing is lost on the way."""
    clock = FakeClock()
    monkeypatch.setattr("inflight.serving.delivery.time", clock)
    live: dict[int, LiveStream] = {number: SimpleNamespace() for number in range(streams - 1)}  # type: ignore[misc]
    delivery = Delivery(1, Metrics(), live)
    delivery._cost_s, delivery._cores = COST_S, cores
    stream: Any = OneStream(clock)
    responder: Any = None
    mine = live[streams] = LiveStream(streams, stream, responder)
    for at in arrivals:
        clock.now = at
        delivery.push_token(mine, 7, int(at * 1e9))
        try:
            delivery._serve(delivery._ready.get_nowait())
        except queue.Empty:
            continue
    delivery._serve(mine)
    assert sum(tokens for _, tokens in stream.sent) == len(arrivals)
    return [at for at, _ in stream.sent[:-1]]


def every(interval_s: float, count: int = 400) -> list[float]:
    return [1000 + place * interval_s for place in range(count)]


def gaps(times: list[float]) -> list[float]:
    return [after - before for before, after in itertools.pairwise(times)]


def test_tokens_of_a_lone_stream_never_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    arrivals = every(0.005)
    assert sent(monkeypatch, 1, arrivals) == pytest.approx(arrivals)


@pytest.mark.parametrize("interval_s", [0.008, 0.03, 0.045, 0.07, 0.1, 0.177, 0.2, 0.26])
@pytest.mark.parametrize("streams", [32, 64, 256])
def test_the_gap_is_met_as_nearly_as_tokens_allow(
    monkeypatch: pytest.MonkeyPatch, streams: int, interval_s: float
) -> None:
    """Rounded up, it made a token that came just too early wait for the next one: twice its time."""
    wanted = gap_s(streams, COST_S, 2)
    for found in gaps(sent(monkeypatch, streams, every(interval_s))):
        assert abs(found - wanted) <= interval_s / 2 + 1e-3 or found == pytest.approx(interval_s, abs=1e-3)


def test_what_comes_after_a_pause_of_the_engine_leaves_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A long prefill, say: who has waited that long does not wait for yet another token."""
    arrivals = [*every(0.02, 6), 1000.25, 1000.27]
    assert 1000.25 in sent(monkeypatch, 256, arrivals)


@given(interval_s=st.floats(0.001, 1.0), streams=st.integers(1, 2000), cores=st.integers(1, 64))
def test_no_more_responses_than_half_again_what_the_gap_says(interval_s: float, streams: int, cores: int) -> None:
    with pytest.MonkeyPatch.context() as monkeypatch:
        times = sent(monkeypatch, streams, every(interval_s, 200), cores)
    if len(times) > 3:
        assert statistics.fmean(gaps(times)) >= min(gap_s(streams, COST_S, cores), 1.0) / 1.5 - 1e-3


@given(streams=st.integers(1, 5000), cost_s=st.floats(1e-4, 1.5e-3), cores=st.integers(1, 128))
def test_the_gap_keeps_its_bounds(streams: int, cost_s: float, cores: int) -> None:
    """Within a twentieth of the cores up to 110 ms, within a tenth as far as 300 ms reach, within three tenths as far
    as 1.2 s do, and more streams never shorten it.
    """
    gap = gap_s(streams, cost_s, cores)
    share = streams * cost_s / cores / gap
    assert gap <= LONGEST_GAP_S
    assert share <= SEND_SHARE * 1.001 or gap >= EVEN_GAP_S
    assert share <= MOST_SHARE * 1.001 or gap >= MAX_GAP_S
    assert share <= OVERLOAD_SHARE * 1.001 or gap == LONGEST_GAP_S
    assert gap <= gap_s(streams + 1, cost_s, cores)
