"""The whole serving core of one model: the real backend between the fakes of `delivery_fakes.py`.

`World` has no threads: what they do is done by calling one turn of each, so that a schedule is a list of turns. While a
sender is inside Triton's `send`, the engine may go on (`World.meanwhile`): that is where the real threads meet.
"""

from __future__ import annotations

import functools
import logging
import queue
import tempfile
import threading
import weakref
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

from inflight.answer.stream import Stream
from inflight.backend.model import Backend
from inflight.engine_process import frames
from inflight.engine_process.supervisor import Health
from inflight.identity import Identity
from inflight.model.parameters import ModelConfig
from inflight.request.parse import RawRequest
from inflight.serving.delivery import LiveStream
from inflight.serving.observation import Snapshot
from inflight.serving.refusals import answer_error
from tests.unit.machines.delivery_fakes import (
    CheckProcess,
    CountingSink,
    FakeClock,
    FakeEngine,
    FakePool,
    FakeResponder,
    Record,
)
from tests.unit.machines.strategies import info
from tests.unit.machines.tokenizer_kinds import KINDS

MAX_QUEUE = 6


@functools.cache
def version_folder() -> Path:
    """A version folder with an engine directory that holds a tokenizer; removed when the process ends."""
    _folders.append(tempfile.TemporaryDirectory())
    folder = Path(_folders[-1].name)
    (folder / "engine").mkdir()
    KINDS["byte_level"]().save(str(folder / "engine" / "tokenizer.json"))
    return folder


_folders: list[tempfile.TemporaryDirectory[str]] = []


class Core:
    """A backend with fakes at its edges, the records of all requests, and what must hold when all is over."""

    def __init__(self, **changes: Any) -> None:
        logging.disable(logging.CRITICAL)  # tracebacks by the thousand: what goes wrong here goes wrong on purpose
        config = ModelConfig(engine="simulated", max_queue_size=MAX_QUEUE, batching_max_wait_ms=20, **changes)
        self.backend = Backend(config, version_folder())
        self.delivery, self.dispatcher = self.backend._delivery, self.backend._dispatcher
        self.records: list[Record] = []
        self.responders: list[weakref.ref[FakeResponder]] = []
        self.streams: list[Stream] = []
        self.sink = CountingSink()
        self.backend._observation.sink = self.sink
        reader = self.backend._reader
        make, reader._make = reader._make, self._make  # type: ignore[method-assign, assignment]
        self._really_make = make
        self.engine = self.engine_comes_up()

    def _make(self, *arguments: Any) -> Any:
        made = self._really_make(*arguments)
        self.streams.append(made.stream)
        return made

    def close(self) -> None:
        """Let the log speak again."""
        logging.disable(logging.NOTSET)

    def meanwhile(self) -> None:
        """Somebody is inside a call into Triton."""

    def request_arrives(self, **values: Any) -> Record:
        """Triton's execute()."""
        tensors = {
            name: [value.encode() if isinstance(value, str) else value]
            for name, value in {"text_input": "hello", **values}.items()
            if not isinstance(value, list)
        }
        tensors |= {
            name: [each.encode() for each in value] for name, value in values.items() if isinstance(value, list)
        }
        record = Record(streamed=bool(values.get("stream")))
        responder = FakeResponder(record, self.meanwhile)
        self.records.append(record)
        self.responders.append(weakref.ref(responder))
        self.backend.submit(RawRequest(tensors, identity=Identity(f"r{len(self.records)}")), responder)
        return record

    def engine_comes_up(self, **changes: Any) -> FakeEngine:
        """The supervisor has an engine ready."""
        self.engine = FakeEngine(info(max_running=4, blocks_total=12, max_seq_len=128, vocab_size=1000, **changes))
        self.backend.on_engine_up(self.engine, self.engine.info)  # type: ignore[arg-type]
        self.backend._supervisor.health = Health.READY
        return self.engine

    def engine_is_lost(self) -> None:
        """The supervisor has noticed a dead engine."""
        self.engine.lost = True
        self.engine.requests.clear()
        self.engine.made.clear()
        self.backend._supervisor.health = Health.RESTARTING
        self.backend.on_engine_down("the engine was lost")

    def engine_is_given_up(self) -> None:
        """The supervisor starts no other one."""
        self.engine_is_lost()
        self.backend._supervisor.health = Health.FAILED
        self.backend.on_engine_failed()

    def violations(self) -> list[str]:
        """Every use of a response sender after its terminal response."""
        return [violation for record in self.records for violation in record.violations]

    def check_ends(self) -> None:
        """Invariants 1, 2 and 8: exactly one end each, nothing under way, nothing reserved, nothing kept."""
        assert not self.violations()
        for record in self.records:
            if record.breaks:  # Triton takes nothing for it any more
                assert record.terminals <= 1
            else:
                assert record.terminals == 1, record
        status = self.backend.status()
        for name in ("under_way", "running", "waiting", "blocks_reserved"):
            assert status[name] == 0, status
        assert not self.backend._live
        assert not self.backend._reader.arrivals
        assert not self.dispatcher._jobs
        assert not self.engine.requests
        kept = sum(reference() is not None for reference in self.responders)
        assert not kept, f"{kept} response senders are still referred to: Triton could not unload the model"

    def check_counters(self) -> None:
        """Invariant 9: the counters say what the clients saw."""
        self.backend._observation.flush()
        values = self.sink.values
        whole = [record for record in self.records if not record.broken]
        ends = Counter(record.outcome for record in whole)
        counted = {
            label: value for (name, label), value in values.items() if name == "inflight_requests_total" and value
        }
        if len(whole) == len(self.records):
            assert counted == dict(ends)
        assert sum(counted.values()) == len(self.records)
        assert values["inflight_generation_tokens_total", ""] == sum(stream.output_tokens for stream in self.streams)
        assert values["inflight_request_latency_seconds_count", ""] == len(self.streams)
        started = [stream for stream in self.streams if stream.timing.first_token_ns]
        assert values["inflight_time_to_first_token_seconds_count", ""] == len(started)
        assert values["inflight_prompt_tokens_total", ""] == sum(stream.num_input_tokens for stream in started)
        for name in ("request_latency_seconds", "time_to_first_token_seconds", "queue_time_seconds"):
            infinite, count = values[f"inflight_{name}_bucket", "+Inf"], values[f"inflight_{name}_count", ""]
            assert infinite == count
        for record in whole:
            if record.outcome in ("stop", "length", "deadline"):
                assert record.replies >= 1
        for name in ("inflight_requests_running", "inflight_requests_waiting"):
            assert values[name, ""] == 0.0


class World(Core):
    """A core without threads. Every method named after a thread does one turn of it."""

    def __init__(self, **changes: Any) -> None:
        self.clock = FakeClock()
        modules = ("serving.dispatcher", "serving.delivery", "serving.observation", "serving.refusals")
        modules += ("backend.model", "backend.state", "backend.leaving")
        self._patches = [mock.patch(f"inflight.{module}.time", self.clock) for module in modules]
        for patch in self._patches:
            patch.start()
        super().__init__(**changes)
        self._refusals = self.delivery.refusals._queue
        self.pool = FakePool()
        self.backend._pool = self.backend._reader._pool = self.backend._state._pool = self.pool  # type: ignore[assignment]
        guides = self.backend._guides
        guides._thread = threading.Thread()  # never started: `guide_thread` does its turns
        guides._process = CheckProcess(self.somebody_checks)  # type: ignore[assignment]
        self.pending_steps: list[Callable[[int, int], int]] = []  # what the engine does while somebody is inside Triton

    def close(self) -> None:
        """Undo the patches."""
        super().close()
        for patch in self._patches:
            patch.stop()

    def meanwhile(self) -> None:
        """Somebody is inside a call into Triton; the engine's reader thread goes on."""
        if self.pending_steps:
            self.engine_steps(self.pending_steps.pop())

    # -- one turn of each thread ---------------------------------------------------------------------------------------

    def parse_thread(self, which: int = 0) -> None:
        """One step of reading one request."""
        if self.pool.work:
            self.pool.step(which)

    def guide_thread(self) -> bool:
        """One round of `GuideService._run`; false when nobody waits for a check."""
        try:
            asked = self.backend._guides._queue.get_nowait()
        except queue.Empty:
            return False
        assert asked is not None
        self.backend._guides._serve(*asked)
        return True

    def somebody_checks(self) -> None:
        """A guide is being checked; meanwhile clients are found to have left, and deadlines pass."""
        self.poller_thread()
        self.dispatcher_thread()

    def dispatcher_thread(self) -> bool:
        """One round of `Dispatcher._run`; false when there was no event."""
        try:
            event = self.dispatcher._events.get_nowait()
        except queue.Empty:
            event = None
        if event is not None:
            self.dispatcher._do(event)
        self.dispatcher._do(self.dispatcher._expire)
        self.dispatcher._do(self.dispatcher._start_requests)
        return event is not None

    def sender_thread(self) -> bool:
        """One round of `Refusals._run` or of `Delivery._run`; false when there was nothing to do now."""
        try:
            refusal = self._refusals.get_nowait()
        except queue.Empty:
            pass
        else:
            assert refusal is not None
            answer_error(*refusal[:3])
            return True
        try:
            live = self.delivery._ready.get_nowait()
        except queue.Empty:
            self.delivery._queue_overdue(self.clock.monotonic_ns())
            return not self.delivery._ready.empty()
        self.delivery._serve(live)
        return True

    def engine_steps(self, pace: Callable[[int, int], int]) -> None:
        """One iteration, and the reader thread that hears of it."""
        if not self.engine.lost:
            message = self.engine.step(pace)
            if message.outputs or message.ids:
                self.backend.on_outputs(message)

    def engine_refuses(self, which: int, parameter: str | None) -> None:
        """`Engine.add` raised for a request that has made nothing yet."""
        fresh = [key for key in self.engine.requests if self.engine.made.get((key, 0)) == 0]
        if fresh and not self.engine.lost:
            request_id = fresh[which % len(fresh)]
            self.engine.forget(request_id)
            self.backend.on_refused(frames.Refused(request_id, "is too much", parameter))

    def poller_thread(self) -> None:
        """One round over all requests."""
        for request in self.backend._open_requests():
            try:
                self.backend._poll_cancelled(request)
            except Exception:  # noqa: BLE001 — as `CancellationPoller._run` does
                continue

    def flush(self, meanwhile: int) -> None:
        """The metrics thread: between its look at the streams and what it makes of that, senders have some turns."""
        observation = self.backend._observation
        look = observation._snapshot

        def looked() -> Snapshot:
            snapshot = look()
            for _ in range(meanwhile):
                self.sender_thread()
            return snapshot

        with mock.patch.object(observation, "_snapshot", looked):
            observation.flush()
        counted = self.sink.values["inflight_generation_tokens_total", ""]
        assert counted <= sum(stream.output_tokens for stream in self.streams), "tokens were counted twice"

    def live(self) -> list[LiveStream]:
        """Streams without an end."""
        return self.backend._live_streams()

    # -- the end -----------------------------------------------------------------------------------------------------

    def check_cancelled(self) -> None:
        """The engine was told of every request that it has and that nobody waits for any more."""
        self.pending_steps.clear()
        for _ in range(400):
            if not (self.sender_thread() | self.dispatcher_thread()) and self.dispatcher._events.empty():
                break
        if not self.engine.lost:
            nobodys = self.engine.requests.keys() - self.backend._live.keys() - self.engine.cancelled
            assert not nobodys, "the engine works for requests that have ended"

    def settle(self) -> None:
        """Let everything that was begun come to its end."""
        self.pending_steps.clear()
        for _ in range(400):
            while self.pool.work or self.guide_thread():
                self.parse_thread()
            busy = self.dispatcher_thread()
            self.engine_steps(lambda *_: 1)
            busy = self.sender_thread() or busy or bool(self.engine.made) or bool(self.dispatcher.waiting)
            self.poller_thread()
            self.clock.now += 0.05
            waiting = any(live.inbox and live.eager for live in self.live())
            if not busy and not waiting and self.dispatcher._events.empty():
                return
        raise AssertionError("it does not come to rest")

    def drain(self, timeout_ms: int) -> dict[str, Any]:
        """An operator's drain, with all threads going on while it waits."""
        self.pending_steps.clear()
        self.clock.others = self.everybody
        try:
            return self.backend.drain(timeout_ms, 0)
        finally:
            self.clock.others = lambda: None

    def everybody(self) -> None:
        """One turn of every thread."""
        self.parse_thread()
        self.guide_thread()
        self.engine_steps(lambda request_id, _: request_id % 2)  # half of them never end by themselves
        for _ in range(3):
            self.dispatcher_thread()
            self.sender_thread()
