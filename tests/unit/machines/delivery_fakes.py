"""What stands around the serving core in its tests: a Triton, an engine, a pool, a clock and a metrics registry."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

from inflight.answer.stream import Reply, Stream
from inflight.engine_process import frames
from inflight.engine_process.framing import FrameError
from inflight.engine_process.link import LinkLost
from inflight.engines.base import EngineInfo, EngineOutput, EngineRequest, EngineStats, FinishReason
from inflight.errors import RequestError
from inflight.guides.frames import Check, Verdict
from inflight.serving.admission import worst_case
from inflight.serving.parsing import Work
from tests.unit.machines.tokenizer_kinds import KINDS

EOS = 1
LETTERS = tuple(KINDS["byte_level"]().encode("abcdefgh", add_special_tokens=False).ids)


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
        self._enter("send", final)
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
        self._enter("fail", True)
        self._meanwhile()
        self._record.terminals += 1
        self._record.outcome = {"invalid_arg": "invalid"}.get(error.code.value, error.code.value)

    def is_cancelled(self) -> bool:
        """Whether the client has left."""
        if self._record.terminals:
            self._record.violations.append("is_cancelled after the terminal response")
        return self._record.gone

    def _enter(self, what: str, terminal: bool) -> None:
        if self._record.terminals:
            self._record.violations.append(f"{what} after the terminal response")
        if self._record.breaks:
            # Triton closes a sender before it sends the terminal response: one that fails cannot be sent again.
            self._record.breaks = -1 if terminal else self._record.breaks - 1
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

    @property
    def is_lost(self) -> bool:
        """The link's."""
        return self.lost

    @property
    def is_silent(self) -> bool:
        """The link's: nothing more comes from it."""
        return self.lost

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
            raise FrameError("a frame is larger than allowed")
        assert request.request_id not in self.requests, "a request was started twice"
        self.requests[request.request_id] = request
        self.made.update({(request.request_id, index): 0 for index in range(request.sampling.num_sequences)})
        needs = [worst_case(each, self.info.block_size) for each in self.requests.values()]
        assert sum(need.blocks for need in needs) <= self.info.blocks_total, "the KV pool can run dry"
        assert sum(need.sequences for need in needs) <= self.info.max_running, "more sequences than places"

    def step(self, pace: Callable[[int, int], int]) -> frames.Outputs:
        """One iteration. `pace(request id, sequence)`: 0 makes nothing for it, 1 one token, 2 its end by
        end-of-sequence.
        """
        outputs = []
        for request_id, index in list(self.made):
            if request_id in self.cancelled:
                outputs.append(EngineOutput(request_id, index, [], FinishReason.CANCELLED))
                self._leave(request_id, index)
            elif how := pace(request_id, index):
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
        return EngineStats(blocks_used=len(self.made), blocks_max=self.info.blocks_total)


class FakePool:
    """A pool whose steps are done, in any order, when the test says so."""

    waiting_tokens = 0

    def __init__(self) -> None:
        self.work: list[Work] = []

    @property
    def waiting(self) -> int:
        """Steps that wait."""
        return len(self.work)

    def refusal(self, held: int) -> None:
        """Everything may wait."""

    def submit(self, work: Work) -> None:
        """Keep it for later."""
        self.work.append(work)

    def step(self, which: int) -> None:
        """Do one; what follows it waits as well."""
        following = self.work.pop(which % len(self.work)).run()
        if following is not None:
            self.work.append(following)

    def clear(self, error: RequestError) -> None:
        """Drop what waits."""
        left, self.work = self.work, []
        for work in left:
            work.drop(error)


class CheckProcess:
    """The process that checks guides: "bad" is one that does not compile, and others do something meanwhile."""

    refusal = ""
    vocab_size = 0

    def __init__(self, meanwhile: Callable[[], None]) -> None:
        self._meanwhile = meanwhile

    def check(self, check: Check, limit_s: float) -> Verdict:
        """One check."""
        self._meanwhile()
        return Verdict(problem="is bad") if check.text == "bad" else Verdict(grammar=f"root ::= {check.text}")

    def interrupt(self) -> None:
        """Nobody waits for it here."""

    def close(self) -> None:
        """It has nothing to leave."""


class FakeClock:
    """Stands for the module `time`."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.others: Callable[[], None] = lambda: None  # what the other threads do while somebody sleeps

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
        self.others()


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
