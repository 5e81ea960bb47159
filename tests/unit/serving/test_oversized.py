"""Clients with prompts that cannot fit, and one with a short one: the whole backend with its simulated engine."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from inflight.answer.stream import Reply, Stream
from inflight.backend.model import Backend
from inflight.errors import ErrorCode, RequestError
from inflight.model.parameters import ModelConfig
from inflight.request.parse import RawRequest
from inflight.serving.parsing import LANES, Work
from tests.unit.machines.tokenizer_kinds import write_folder

pytestmark = pytest.mark.fast

TEMPLATE = "{% for m in messages %}{{ m.content }}{% endfor %}"
WAIT_S = 30.0
SOON_S = 4.0  # alone it takes 10 ms; the machine of a test may be busy
MEBIBYTE = "01234567" * (1 << 17)


class Client:
    """What one client saw."""

    def __init__(self) -> None:
        self.began = time.monotonic()
        self.first_s = 0.0
        self.ended_s = 0.0
        self.terminals = 0
        self.error: RequestError | None = None
        self._ended = threading.Event()

    def send(self, stream: Stream, reply: Reply, final: bool) -> None:
        self.first_s = self.first_s or time.monotonic() - self.began
        if final:
            self._end()

    def fail(self, error: RequestError) -> None:
        self.error = error
        self._end()

    def is_cancelled(self) -> bool:
        return False

    def _end(self) -> None:
        self.terminals += 1
        self.ended_s = time.monotonic() - self.began
        self._ended.set()

    def wait(self) -> Client:
        assert self._ended.wait(WAIT_S), "no end"
        return self


@contextmanager
def serving(folder: Path, template: str = TEMPLATE, **changes: Any) -> Iterator[Backend]:
    write_folder(folder / "engine", chat_template=template)
    changes = {"engine_options": {"step_ms": 1.0, "max_seq_len": 8192}, **changes}
    backend = Backend(ModelConfig(engine="simulated", **changes), folder)
    backend.start()
    try:
        yield backend
    finally:
        backend.stop()


@pytest.fixture(params=[0, 1 << 21], ids=["context", "operator"])
def backend(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Backend]:
    """Once with the context's limit, and once with an operator's that lets everything pass."""
    with serving(tmp_path, max_prompt_bytes=request.param) as made:
        yield made


@contextmanager
def busy(backend: Backend, *lanes: int) -> Iterator[None]:
    """The threads of these lanes are doing something else."""
    go_on, entered = threading.Event(), threading.Semaphore(0)

    def wait() -> None:
        entered.release()
        go_on.wait(WAIT_S)

    for lane in sorted(lanes, reverse=True):
        cost = (*LANES, 2 * LANES[-1])[lane]
        backend._pool.submit(Work(wait, lambda _: None, 0.0, cost, priority=100))
        assert entered.acquire(timeout=WAIT_S)
    try:
        yield
    finally:
        go_on.set()


def ask(backend: Backend, **values: Any) -> Client:
    client = Client()
    tensors = {
        name: value if isinstance(value, list) else [value.encode() if isinstance(value, str) else value]
        for name, value in values.items()
    }
    backend.submit(RawRequest(tensors), client)
    return client


@pytest.mark.parametrize("kind", ["text_input", "messages", "input_ids"])
def test_another_client_does_not_wait_for_prompts_that_cannot_fit(kind: str, backend: Backend) -> None:
    values: dict[str, Any] = {
        "text_input": {"text_input": MEBIBYTE},
        "messages": {"messages": json.dumps([{"role": "user", "content": MEBIBYTE}])},
        "input_ids": {"input_ids": [7] * (1 << 18)},
    }[kind]
    ask(backend, text_input="warm", max_tokens=1).wait()
    large = [ask(backend, **values) for _ in range(10)]
    small = [ask(backend, text_input="hello", max_tokens=1, stream=True) for _ in range(3)]
    for client in small:
        client.wait()
        assert client.error is None
        assert client.first_s < SOON_S
    for client in large:
        client.wait()
        assert client.error is not None
        assert (client.error.code, client.error.parameter) == (ErrorCode.INVALID_ARG, kind)
        assert client.terminals == 1
    assert backend.status()["under_way"] == 0


def test_max_queue_tokens_sees_what_waits_to_be_read(tmp_path: Path) -> None:
    """A prompt that has not been tokenized counts as a token for every four bytes."""
    with serving(tmp_path, max_queue_tokens=1000) as backend:
        with busy(backend, 0, 1, 2):
            waiting = [ask(backend, text_input="ab " * 600, max_tokens=1) for _ in range(2)]
            assert backend.status()["waiting"] == 2
            error = ask(backend, text_input="ab " * 600, max_tokens=1).wait().error
            assert error is not None
            assert error.code is ErrorCode.UNAVAILABLE
            assert "tokens wait" in error.message
            short = ask(backend, text_input="ab", max_tokens=1)
        for client in (*waiting, short):
            assert client.wait().error is None


def test_a_priority_counts_while_prompts_wait_to_be_read(tmp_path: Path) -> None:
    with serving(tmp_path, max_running=1) as backend:
        with busy(backend, 1, 2):
            low, high = (
                ask(backend, text_input="<tool call>" * 7000, max_tokens=1, request_priority=priority)
                for priority in (-100, 100)
            )
            ask(backend, text_input="x", max_tokens=1).wait()  # the first thread has looked at both by now
        assert low.wait().error is high.wait().error is None
        assert high.began + high.ended_s < low.began + low.ended_s


SLOW = "{% for a in range(9999) %}{% for b in range(9999) %}{% set x = messages[0] %}{% endfor %}{% endfor %}"


@pytest.mark.parametrize("how", ["unload", "drain"])
def test_an_end_does_not_wait_for_what_is_still_to_be_read(how: str, tmp_path: Path) -> None:
    """Each of these prompts takes its two seconds: one after another they would take minutes."""
    with serving(tmp_path, SLOW) as backend:
        clients = [ask(backend, messages='[{"role": "user", "content": "x"}]') for _ in range(200)]
        time.sleep(0.3)  # until the threads are in the middle of some
        began = time.monotonic()
        if how == "unload":
            backend.stop()
        else:
            assert backend.drain(100, 0)["left"] == 0
        assert time.monotonic() - began < 8.0  # most of it is for the engine to leave
        assert backend.status()["under_way"] == 0
        for client in clients:
            client.wait()
            assert client.terminals == 1
            assert client.error is not None
            assert client.error.code is ErrorCode.UNAVAILABLE
