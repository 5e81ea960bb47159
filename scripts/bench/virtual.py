"""The simulated engine in virtual time: a trace of requests through the backend's own admission queue and batching.

Nothing waits: a clock is turned by hand, by what each step is modelled to take. The code that decides, `AdmissionQueue`
and `InflightBatch`, is the one that serves.
"""

from __future__ import annotations

import gc
import heapq
import itertools
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from inflight.engines.base import EngineInfo, EngineRequest, SamplingParams
from inflight.engines.simulated.batch import InflightBatch
from inflight.engines.simulated.cost import SimulatedOptions, capabilities
from inflight.engines.simulated.tokens import Vocabulary
from inflight.serving.admission import AdmissionQueue
from inflight_tools.load.lengths import Lengths

_NO_LIMIT = 1 << 40


class VirtualClock:
    """Seconds since the beginning of the simulation."""

    def __init__(self) -> None:
        """At 0."""
        self.seconds = 0.0

    def now(self) -> float:
        """What it shows."""
        return self.seconds

    def sleep(self, seconds: float) -> None:
        """Turn it on."""
        self.seconds += seconds


@dataclass(frozen=True, slots=True)
class Arrival:
    """A request: when it comes (seconds), and its prompt and answer in tokens."""

    at: float
    prompt: int
    answer: int


@dataclass(frozen=True, slots=True)
class Served:
    """What became of it: `first` and `last` are the times of its first and last token."""

    arrival: Arrival
    first: float
    last: float

    @property
    def ttft(self) -> float:
        """Seconds from arrival to the first token."""
        return self.first - self.arrival.at

    @property
    def tpot(self) -> float:
        """Seconds per token after the first; 0 for an answer of one."""
        return (self.last - self.first) / max(self.arrival.answer - 1, 1)

    @property
    def latency(self) -> float:
        """Seconds from arrival to the last token."""
        return self.last - self.arrival.at


@dataclass(frozen=True, slots=True)
class Policy:
    """How requests are let in. `batch` places; `max_wait_s` as `AdmissionQueue` has it. `padded`: a batch's prompts
    and answers are all computed to the length of its longest, as without in-flight batching of ragged tensors.
    `spare_tokens`: what clients ask for beyond what they get; the answer then ends by a cancel, as at a stop string.
    """

    strategy: str = "inflight"
    batch: int = 256
    max_wait_s: float = 0.0
    padded: bool = False
    spare_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Moment:
    """The KV cache after one step: `tokens` of running requests in it, blocks in use, blocks `reserved` for their worst
    case.
    """

    at: float
    seconds: float  # that the step took
    running: int
    tokens: int
    used: int
    reserved: int


@dataclass(frozen=True, slots=True)
class Outcome:
    """A whole trace. `busy` are seconds in steps, of `seconds` from the first arrival to the last token."""

    served: list[Served]
    moments: list[Moment]
    seconds: float
    busy: float
    reused_tokens: int

    @property
    def tokens_per_s(self) -> float:
        """Generated tokens that somebody wanted."""
        return sum(each.arrival.answer for each in self.served) / self.seconds


def poisson(rate: float, prompts: Lengths, answers: Lengths, count: int, seed: int | str) -> list[Arrival]:
    """`count` arrivals of `rate` a second. The same seed gives the same requests at any rate, just closer together."""
    chooser = random.Random(f"inflight arrivals {seed}")
    at = 0.0
    found = []
    for prompt, answer in itertools.islice(
        zip(prompts.draws(f"{seed} prompts"), answers.draws(f"{seed} answers"), strict=False), count
    ):
        at += chooser.expovariate(1.0)
        found.append(Arrival(at / rate, prompt, answer))
    return found


def percentile(values: Sequence[float], share: float) -> float:
    """One of the values, by nearest rank; NaN for none."""
    ordered = sorted(values)
    return ordered[max(math.ceil(share * len(ordered)) - 1, 0)] if ordered else math.nan


class Replica:
    """One engine and its queue, driven through a trace; use once."""

    def __init__(self, options: SimulatedOptions, policy: Policy, shared_prefix: int = 0) -> None:
        """`shared_prefix`: so many tokens are the same at the beginning of every prompt."""
        if options.draft_tokens:
            raise ValueError("a replica counts one token a step; drafts are not simulated in virtual time")
        self._options = msgspec.structs.replace(options, real_time=True)
        self._policy = policy
        self._shared = shared_prefix
        self._clock = VirtualClock()
        self._engine = InflightBatch(Vocabulary(range(1, 1001), 0), self._options, policy.batch, self._clock)
        info = EngineInfo(
            name="simulated",
            version="0",
            vocab_size=1001,
            max_seq_len=options.max_seq_len,
            max_running=policy.batch,
            block_size=options.block_size,
            blocks_total=options.blocks,
            stop_token_ids=(0,),
            capabilities=capabilities(options),
        )
        self._queue = AdmissionQueue(info, policy.batch, _NO_LIMIT, 0, policy.strategy, policy.max_wait_s)
        self._first: dict[int, float] = {}
        self._unseen: set[int] = set()  # started, and no token yet
        self._whole: list[
            tuple[int, int]
        ] = []  # heap: (step, place) where an answer is whole before the engine ends it
        self._moments: list[Moment] = []

    def run(self, trace: Sequence[Arrival], watch: bool = False) -> Outcome:
        """Serve all of it. `watch` keeps a `Moment` for every step."""
        gc.disable()  # millions of outputs and no cycles
        try:
            return self._run(trace, watch)
        finally:
            gc.enable()

    def _run(self, trace: Sequence[Arrival], watch: bool) -> Outcome:
        served: dict[int, Served] = {}
        coming = iter(enumerate(trace))
        upcoming = next(coming, None)
        busy = 0.0
        clock, queue, engine = self._clock, self._queue, self._engine
        while upcoming is not None or queue.waiting or queue.running:
            now = clock.seconds
            while upcoming is not None and upcoming[1].at <= now:
                queue.offer(self._request(upcoming[0], upcoming[1].prompt, upcoming[1].answer), upcoming[1].at)
                upcoming = next(coming, None)
            if queue.waiting:
                self._start(queue.take(now), trace)
            if queue.running:
                if not watch:
                    most = self._whole[0][0] - engine.steps - 1 if self._whole else _NO_LIMIT
                    engine.glide(math.inf if upcoming is None else upcoming[1].at, most)
                    if clock.seconds > now:  # and before the next step somebody may have come
                        busy += clock.seconds - now
                        continue
                took = self._step(trace, served)
                busy += took
                if watch:
                    stats = engine.stats()
                    tokens = engine.context_tokens
                    used, reserved = stats.blocks_used, queue.blocks_used
                    self._moments.append(Moment(clock.seconds, took, queue.running, tokens, used, reserved))
                continue
            soon = queue.next_wakeup(now)
            nexts = [upcoming[1].at] if upcoming is not None else []
            nexts += [now + max(soon, 1e-6)] if soon is not None and math.isfinite(soon) else []
            if not nexts:
                break  # a last batch that will never be full
            clock.seconds = max(now, min(nexts))
        seconds = clock.seconds - trace[0].at
        ordered = [served[place] for place in sorted(served)]
        return Outcome(ordered, self._moments, seconds, busy, engine.stats().reused_tokens_total or 0)

    def _start(self, started: Sequence[int], trace: Sequence[Arrival]) -> None:
        policy = self._policy
        prompt = max((trace[place].prompt for place in started), default=0)
        answer = max((trace[place].answer for place in started), default=0)
        for place in started:
            own = trace[place]
            if not policy.padded:
                prompt, answer = own.prompt, own.answer
            self._unseen.add(place)
            self._engine.add(self._request(place, prompt, answer))

    def _step(self, trace: Sequence[Arrival], served: dict[int, Served]) -> float:
        before = self._clock.seconds
        outputs = self._engine.step(0.0)
        now = self._clock.seconds
        if self._unseen:
            for place in [each.request_id for each in outputs if each.request_id in self._unseen]:
                self._unseen.remove(place)
                self._first[place] = now
                heapq.heappush(self._whole, (self._engine.steps + trace[place].answer - 1, place))
        while self._whole and self._whole[0][0] <= self._engine.steps:
            place = heapq.heappop(self._whole)[1]
            served[place] = Served(trace[place], self._first.pop(place), now)
            if self._policy.spare_tokens and not self._policy.padded:
                self._engine.cancel(place)
        for place in [each.request_id for each in outputs if each.finish is not None]:
            self._queue.release(place, now)
        return now - before

    def _request(self, place: int, prompt: int, answer: int) -> EngineRequest:
        shared = min(self._shared, prompt - 1)
        token_ids = [1] * shared + [place + 2] * (prompt - shared)
        sampling = SamplingParams(max_tokens=answer + self._policy.spare_tokens)
        return EngineRequest(request_id=place, token_ids=token_ids, sampling=sampling)
