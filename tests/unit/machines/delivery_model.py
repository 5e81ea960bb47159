"""The whole serving core of one model without its threads: the real backend between a fake Triton, a fake engine and a
clock of the test's own.

What the backend's threads do is done here by calling one turn of each, so that a schedule is a list of turns. While a
sender is inside Triton's `send`, the engine may go on (`World.meanwhile`): that is where the real threads meet.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import queue
import tempfile
import weakref
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any
from unittest import mock

from inflight import frames
from inflight.admission import worst_case
from inflight.backend import Backend
from inflight.config import ModelConfig
from inflight.delivery import LiveStream
from inflight.engine_link import LinkLost
from inflight.engines.base import EngineInfo, EngineOutput, EngineRequest, EngineStats, FinishReason
from inflight.errors import RequestError
from inflight.request import RawRequest
from inflight.stream import Reply, Stream
from inflight.supervisor import Health
from tests.unit.machines.strategies import info
from tests.unit.machines.tokenizer_kinds import KINDS

EOS = 1
LETTERS = tuple(KINDS["byte_level"]().encode("abcdefgh", add_special_tokens=False).ids)
MAX_QUEUE = 6


@dataclasses.dataclass(slots=True)
class Record:
    """What one client saw. Lives on when the responder is gone."""

    terminals: int = 0
    outcome: str = ""  # as `inflight_requests_total` should count it
    streamed: bool = True
    texts: dict[int, str] = dataclasses.field(default_factory=dict)
    tokens: int = 0
    replies: int = 0
    gone: bool = False  # its client has left
    breaks: int = 0  # how many of the next sends Triton fails; -1: all
    broken: bool = False  # a send has failed
    violations: list[str] = dataclasses.field(default_factory=list)


class FakeResponder:
    """Triton's response sender: counts terminal responses, and notes every use after one."""

    def __init__(self, record: Record, meanwhile: Callable[[], None]) -> None:
        self._record = record
        self._meanwhile = meanwhile

    def send(self, stream: Stream, reply: Reply, final: bool) -> None:
        """One response."""
        record = self._record
        self._enter("send")
        self._meanwhile()
        record.replies += 1
        for index, text in zip(reply.indices, reply.texts, strict=True):
            record.texts[index] = record.texts.get(index, "") + text
        record.tokens += sum(reply.num_output_tokens)
        if final:
            record.terminals += 1
            record.outcome = stream.outcome

    def fail(self, error: RequestError) -> None:
        """An error as the terminal response."""
        self._enter("fail")
        self._meanwhile()
        self._record.terminals += 1
        self._record.outcome = {"invalid_arg": "invalid"}.get(error.code.value, error.code.value)

    def is_cancelled(self) -> bool:
        """Whether the client has left."""
        if self._record.terminals:
            self._record.violations.append("is_cancelled after the terminal response")
        return self._record.gone

    def _enter(self, what: str) -> None:
        if self._record.terminals:
            self._record.violations.append(f"{what} after the terminal response")
        if self._record.breaks:
            self._record.breaks -= 1
            self._record.broken = True
            raise RuntimeError("Failed to increase the shared memory pool size")


class FakeEngine:
    """Takes requests, makes letters, and checks that it is never given more than it can hold."""

    def __init__(self, engine_info: EngineInfo) -> None:
        self.info = engine_info
        self.requests: dict[int, EngineRequest] = {}
        self.made: dict[tuple[int, int], int] = {}  # (request id, sequence) → tokens, of those that have not ended
        self.cancelled: set[int] = set()
        self.too_large: set[int] = set()  # ids whose frame cannot be encoded
        self.lost = False

    def send(self, message: frames.ToEngine) -> None:
        """The link's `send`."""
        if self.lost:
            raise LinkLost
        if isinstance(message, frames.Cancel):
            self.cancelled.add(message.request_id)
        elif isinstance(message, frames.Add):
            self._add(message.request)

    def _add(self, request: EngineRequest) -> None:
        if request.request_id in self.too_large:
            raise frames.FrameError("a frame is larger than allowed")
        assert request.request_id not in self.requests, "a request was started twice"
        self.requests[request.request_id] = request
        self.made.update({(request.request_id, index): 0 for index in range(request.sampling.num_sequences)})
        needs = [worst_case(each, self.info.block_size) for each in self.requests.values()]
        assert sum(need.blocks for need in needs) <= self.info.blocks_total, "the KV pool can run dry"
        assert sum(need.sequences for need in needs) <= self.info.max_running, "more sequences than places"

    def step(self, pace: Callable[[int], int]) -> frames.Outputs:
        """One iteration. `pace(request id)`: 0 makes nothing for it, 1 one token, 2 its end by end-of-sequence."""
        outputs = []
        for request_id, index in list(self.made):
            if request_id in self.cancelled:
                outputs.append(EngineOutput(request_id, index, [], FinishReason.CANCELLED))
                self._leave(request_id, index)
            elif how := pace(request_id):
                outputs.append(self._token(request_id, index, how))
        return frames.pack_outputs(outputs, self.stats())

    def _token(self, request_id: int, index: int, how: int) -> EngineOutput:
        place = self.made[request_id, index] = self.made[request_id, index] + 1
        if how == 2:
            self._leave(request_id, index)
            return EngineOutput(request_id, index, [EOS], FinishReason.STOP)
        finish = FinishReason.LENGTH if place >= self.requests[request_id].sampling.max_tokens else None
        if finish:
            self._leave(request_id, index)
        return EngineOutput(request_id, index, [LETTERS[place % len(LETTERS)]], finish)

    def _leave(self, request_id: int, index: int) -> None:
        del self.made[request_id, index]
        if not any(other == request_id for other, _ in self.made):
            self.forget(request_id)

    def forget(self, request_id: int) -> None:
        """It is no longer in the engine."""
        self.requests.pop(request_id, None)
        self.cancelled.discard(request_id)
        self.made = {key: count for key, count in self.made.items() if key[0] != request_id}

    def stats(self) -> EngineStats:
        """As the engine would say them."""
        return EngineStats(running=len(self.requests), blocks_used=len(self.made), blocks_max=self.info.blocks_total)


class FakePool:
    """A pool whose work is done when the test says so."""

    def __init__(self) -> None:
        self.work: list[Callable[[], None]] = []

    def submit(self, function: Callable[..., None], *arguments: Any) -> Future[None]:
        """Keep it for later."""
        self.work.append(lambda: function(*arguments))
        return Future()


class FakeClock:
    """Stands for the module `time`."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        """Seconds."""
        return self.now

    def monotonic_ns(self) -> int:
        """Nanoseconds, a little more at every look, as on a real clock."""
        self.now += 1e-6
        return int(self.now * 1e9)

    def sleep(self, seconds: float) -> None:
        """Let time pass."""
        self.now += seconds


class CountingSink:
    """Adds up what is flushed, as Triton's registry does."""

    def __init__(self) -> None:
        self.values: dict[tuple[str, str], float] = {}

    def add(self, name: str, labels: Mapping[str, str], amount: float) -> None:
        """Increase a counter."""
        assert amount >= 0.0
        key = (name, next(iter(labels.values()), ""))
        self.values[key] = self.values.get(key, 0.0) + amount

    def set(self, name: str, labels: Mapping[str, str], value: float) -> None:
        """Set a gauge."""
        self.values[name, next(iter(labels.values()), "")] = value


@functools.cache
def version_folder() -> Path:
    """A version folder with an engine directory that holds a tokenizer; removed when the process ends."""
    _folders.append(tempfile.TemporaryDirectory())
    folder = Path(_folders[-1].name)
    (folder / "engine").mkdir()
    KINDS["byte_level"]().save(str(folder / "engine" / "tokenizer.json"))
    return folder


_folders: list[tempfile.TemporaryDirectory[str]] = []


class World:
    """One model under test. Every method named after a thread does one turn of it."""

    def __init__(self, **changes: Any) -> None:
        logging.disable(logging.CRITICAL)  # tracebacks by the thousand: what goes wrong here goes wrong on purpose
        self.clock = FakeClock()
        modules = ("dispatcher", "delivery", "backend", "observation")
        self._patches = [mock.patch(f"inflight.{module}.time", self.clock) for module in modules]
        for patch in self._patches:
            patch.start()
        config = ModelConfig(engine="simulated", max_queue_size=MAX_QUEUE, batching_max_wait_ms=20, **changes)
        self.backend = Backend(config, version_folder())
        self.pool = FakePool()
        self.backend._pool = self.pool  # type: ignore[assignment]
        self.delivery, self.dispatcher = self.backend._delivery, self.backend._dispatcher
        self.delivery._clock = self.clock.monotonic
        self.records: list[Record] = []
        self.responders: list[weakref.ref[FakeResponder]] = []
        self.streams: list[Stream] = []
        self.sink = CountingSink()
        self.backend._observation.sink = self.sink
        self.pending_steps: list[Callable[[int], int]] = []  # what the engine does while somebody is inside Triton
        self.engine = self.engine_comes_up()

    def close(self) -> None:
        """Undo the patches."""
        for patch in self._patches:
            patch.stop()
        logging.disable(logging.NOTSET)

    # -- edges -------------------------------------------------------------------------------------------------------

    def request_arrives(self, **values: Any) -> Record:
        """Triton's execute()."""
        tensors = {
            name: [value.encode() if isinstance(value, str) else value]
            for name, value in {"text_input": "hello", **values}.items()
            if not isinstance(value, list)
        }
        tensors |= {name: [each.encode() for each in value] for name, value in values.items() if isinstance(value, list)}
        record = Record(streamed=bool(values.get("stream")))
        responder = FakeResponder(record, self.meanwhile)
        self.records.append(record)
        self.responders.append(weakref.ref(responder))
        self.backend.submit(RawRequest(tensors, request_id=f"r{len(self.records)}"), responder)
        return record

    def meanwhile(self) -> None:
        """Somebody is inside a call into Triton; the engine's reader thread goes on."""
        if self.pending_steps:
            self.engine_steps(self.pending_steps.pop())

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

    # -- one turn of each thread ---------------------------------------------------------------------------------------

    def parse_thread(self, which: int = 0) -> None:
        """Prepare one request."""
        if self.pool.work:
            before = set(self.backend._live)
            self.pool.work.pop(which % len(self.pool.work))()
            self.streams += [live.stream for key, live in self.backend._live.items() if key not in before]

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
        """One round of `Delivery._run`; false when there was nothing to do now."""
        try:
            live = self.delivery._ready.get_nowait()
        except queue.Empty:
            live = self.delivery._pop_due()
        if live is None:
            return False
        self.delivery._serve(live)
        return True

    def engine_steps(self, pace: Callable[[int], int]) -> None:
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
        """One round over all streams."""
        for live in self.live():
            try:
                self.delivery.poll_cancelled(live)
            except Exception:  # noqa: BLE001 — as `CancellationPoller._run` does
                continue

    def live(self) -> list[LiveStream]:
        """Streams without an end."""
        return self.backend._live_streams()

    # -- the end -----------------------------------------------------------------------------------------------------

    def settle(self) -> None:
        """Let everything that was begun come to its end."""
        self.pending_steps.clear()
        for _ in range(400):
            while self.pool.work:
                self.parse_thread()
            busy = self.dispatcher_thread()
            self.engine_steps(lambda _: 1)
            busy = self.sender_thread() or busy or bool(self.engine.made) or bool(self.dispatcher.waiting)
            self.poller_thread()
            self.clock.sleep(0.05)
            if not busy and not self.delivery._deferred and self.dispatcher._events.empty():
                return
        raise AssertionError("it does not come to rest")

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
        counted = {label: value for (name, label), value in values.items() if name == "inflight_requests_total" and value}
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
