"""In-flight batching of the simulated engine: admission, chunked prefill, decoding, ends.

The common sequence gets one token in every step, so everything about it is known when it begins: at which steps it
needs another KV block, and at which step it ends. Those steps are an agenda, and a step costs little more than making
its outputs. Sequences with drafts or log-probabilities vary and are taken one by one.
"""

from __future__ import annotations

import enum
import random
from collections import deque
from itertools import islice

from inflight.engines.base import EngineOutput, EngineRefusal, EngineRequest, EngineStats, FinishReason
from inflight.engines.simulated_cache import BlockPool, Lease, block_keys
from inflight.engines.simulated_cost import Clock, SimulatedOptions, Work, step_seconds
from inflight.engines.simulated_tokens import Answer, Vocabulary


class _State(enum.Enum):
    WAITING = "waiting"
    READING = "reading"  # its prompt
    DECODING = "decoding"
    ENDED = "ended"


class _Sequence:
    """`reserved` is its worst case in blocks. The further ones of a request wait until `leader` has read the prompt."""

    __slots__ = (
        "answer", "began", "chances", "ids", "index", "keys", "last_step", "leader", "lease", "logprobs", "made",
        "prefill_left", "prompt", "request", "request_id", "reserved", "state",
    )  # fmt: skip

    def __init__(self, request: EngineRequest, index: int, answer: Answer, leader: _Sequence | None) -> None:
        self.request = request
        self.request_id = request.request_id
        self.index = index
        self.answer = answer
        self.ids = answer.ids
        self.leader = leader
        self.prompt = len(request.token_ids)
        self.prefill_left = self.prompt if leader is None else 0
        self.logprobs = request.sampling.logprobs >= 0
        self.state = _State.WAITING
        self.reserved = 0
        self.keys: list[int] = []
        self.lease: Lease | None = None
        self.chances: random.Random | None = None  # of its drafts
        self.made = 0  # tokens; of those on the agenda only once they have left it
        self.began = self.last_step = 0  # steps with its first and last token


class InflightBatch:
    """`options.real_time` lets modelled time pass on `clock`; every method is called by one thread."""

    def __init__(self, vocabulary: Vocabulary, options: SimulatedOptions, max_running: int, clock: Clock) -> None:
        self.options = options
        self.max_running = max_running
        self._vocabulary = vocabulary
        self._clock = clock
        self._pool = BlockPool(options.blocks)
        self._of_request: dict[int, list[_Sequence]] = {}
        self._waiting: deque[_Sequence] = deque()
        self._reading: list[_Sequence] = []
        self._steady: list[_Sequence] = []  # one token a step
        self._varied: list[_Sequence] = []
        self._agenda: dict[int, list[_Sequence]] = {}  # step → steady sequences that end or need a block then
        self._cancelled: list[int] = []
        self._steps = 0
        self._reserved = 0  # blocks, of running sequences
        self._context = 0  # tokens of all decoding sequences
        self._reused = self._drafted = self._accepted = 0
        self._due = self._step_seconds = 0.0

    def add(self, request: EngineRequest) -> None:
        """Take a request. Raises `EngineRefusal` when it can never fit into the KV blocks."""
        options = self.options
        reserved = self._blocks(len(request.token_ids) + request.sampling.max_tokens)
        if options.blocks and reserved > options.blocks:
            room = options.blocks * options.block_size
            raise EngineRefusal(f"with this prompt needs more KV cache than the {room} tokens there are", "max_tokens")
        keys: list[int] = []
        if options.prefix_caching:
            keys = block_keys(request.token_ids, options.block_size, hash(request.cache_salt))
        sequences: list[_Sequence] = []
        for index in range(request.sampling.num_sequences):
            answer = Answer(request, index, self._vocabulary, options.eos_every)
            sequence = _Sequence(request, index, answer, sequences[0] if index else None)
            sequence.reserved, sequence.keys = reserved, keys
            sequences.append(sequence)
        self._of_request[request.request_id] = sequences
        self._waiting.extend(sequences)

    def cancel(self, request_id: int) -> None:
        """End a request in the next step; unknown ids are ignored."""
        if request_id in self._of_request:
            self._cancelled.append(request_id)

    def step(self, timeout_s: float) -> list[EngineOutput]:
        """One iteration; returns at once when there is nothing to do."""
        outputs = self._end_cancelled() if self._cancelled else []
        if self._waiting:
            self._admit()
        work = self._read_prompts() if self._reading else Work()
        decoding = len(self._steady) + len(self._varied)
        if not decoding and not work.prefilled:
            return outputs
        if self.options.real_time:
            self._pay(work, decoding)
        self._steps += 1
        outputs += self._decode_steady()
        if self._varied:
            outputs += self._decode_varied()
        return outputs

    def stats(self) -> EngineStats:
        """A snapshot; blocks that are only kept for reuse are not counted as used."""
        return EngineStats(
            running=len(self._reading) + len(self._steady) + len(self._varied),
            waiting=len(self._waiting),
            blocks_used=self._pool.used,
            blocks_max=self.options.blocks,
            reused_tokens_total=self._reused,
            step_seconds=self._step_seconds,
            draft_tokens_total=self._drafted,
            accepted_tokens_total=self._accepted,
        )

    @property
    def context_tokens(self) -> int:
        """Tokens of running sequences that the KV cache holds."""
        return self._context + sum(each.prompt - each.prefill_left for each in self._reading)

    def close(self) -> None:
        """Forget everything."""
        for group in (self._reading, self._steady, self._varied, self._waiting):
            group.clear()

    # -- one step ----------------------------------------------------------------------------------------------------

    def _end_cancelled(self) -> list[EngineOutput]:
        outputs = []
        for request_id in self._cancelled:
            for sequence in self._of_request.get(request_id, [])[:]:
                outputs.append(EngineOutput(request_id, sequence.index, [], FinishReason.CANCELLED))
                self._retire(sequence)
        self._cancelled.clear()
        self._waiting = deque(each for each in self._waiting if each.state is not _State.ENDED)
        for group in (self._reading, self._steady, self._varied):
            group[:] = [each for each in group if each.state is not _State.ENDED]
        return outputs

    def _admit(self) -> None:
        """Start what has a place and, in the worst case, its blocks, in the order of arrival."""
        places = self.max_running - len(self._reading) - len(self._steady) - len(self._varied)
        waiting, limit = self._waiting, self.options.blocks
        while waiting and places > 0 and (not limit or self._reserved + waiting[0].reserved <= limit):
            sequence = waiting.popleft()
            places -= 1
            self._reserved += sequence.reserved
            sequence.state = _State.READING
            sequence.lease = self._pool.open(sequence.keys, self._blocks(sequence.prompt))
            if sequence.leader is None:
                # The last token is always computed: its result is the first token of the answer.
                reused = max(0, min(sequence.lease.held * self.options.block_size, sequence.prompt - 1))
                sequence.prefill_left -= reused
                self._reused += reused
            self._reading.append(sequence)

    def _read_prompts(self) -> Work:
        """Spend the step's chunk on prompts, first come first served; those that are read decode from now on."""
        budget = self.options.chunk_tokens
        pairs = 0
        still = []
        for sequence in self._reading:
            spent = min(budget, sequence.prefill_left)
            pairs += spent * (sequence.prompt - sequence.prefill_left) + spent * spent // 2
            budget -= spent
            sequence.prefill_left -= spent
            if sequence.prefill_left or (sequence.leader is not None and sequence.leader.prefill_left):
                still.append(sequence)
            else:
                self._begin(sequence)
        self._reading = still
        return Work(prefilled=self.options.chunk_tokens - budget, pairs=pairs)

    def _begin(self, sequence: _Sequence) -> None:
        """Its first token comes in this step."""
        assert sequence.lease is not None
        self._pool.publish(sequence.lease)
        sequence.state = _State.DECODING
        self._context += sequence.prompt
        if self.options.draft_tokens:
            sequence.chances = sequence.answer.draws()
        if sequence.logprobs or self.options.draft_tokens:
            self._varied.append(sequence)
            return
        sequence.began = self._steps + 1
        sequence.last_step = self._steps + sequence.answer.length
        self._steady.append(sequence)
        to_next_block = -sequence.prompt % self.options.block_size
        self._note(sequence, sequence.began + to_next_block)

    def _note(self, sequence: _Sequence, step: int) -> None:
        self._agenda.setdefault(min(step, sequence.last_step), []).append(sequence)

    def _pay(self, work: Work, decoding: int) -> None:
        """Let the modelled time of this step pass."""
        tokens_each = 1 + self.options.draft_tokens
        work.decoding = decoding
        work.verified = decoding * tokens_each
        work.context = self._context
        work.pairs += self._context * tokens_each
        self._step_seconds = step_seconds(self.options, work)
        now = self._clock.now()
        self._due = max(self._due, now) + self._step_seconds
        self._clock.sleep(max(0.0, self._due - now))

    def _decode_steady(self) -> list[EngineOutput]:
        step, ending = self._steps, []
        self._context += len(self._steady)
        for sequence in self._agenda.pop(step, ()):
            if sequence.state is _State.ENDED:
                continue
            if sequence.last_step == step:
                ending.append(sequence)
            else:
                assert sequence.lease is not None
                self._pool.grow(sequence.lease, 1)
                self._note(sequence, step + self.options.block_size)
        if ending:
            self._steady = [sequence for sequence in self._steady if sequence.last_step != step]
        outputs = [EngineOutput(each.request_id, each.index, [next(each.ids)]) for each in self._steady]
        for sequence in ending:
            answer = sequence.answer
            token = self._vocabulary.eos if answer.ends_with_eos else next(sequence.ids)
            outputs.append(EngineOutput(sequence.request_id, sequence.index, [token], answer.finish))
            self._retire(sequence)
        return outputs

    def _decode_varied(self) -> list[EngineOutput]:
        outputs = []
        for sequence in self._varied:
            answer = sequence.answer
            count = self._accept(sequence, answer.length - sequence.made)
            token_ids = list(islice(sequence.ids, count))
            logprobs = [-1.0 / (1 + (sequence.made + place) % 7) for place in range(1, count + 1)]
            sequence.made += count
            self._context += count
            assert sequence.lease is not None
            needed = self._blocks(sequence.prompt + sequence.made)
            self._pool.grow(sequence.lease, needed - sequence.lease.blocks)
            finish = answer.finish if sequence.made == answer.length else None
            if finish is not None and answer.ends_with_eos:
                token_ids[-1] = self._vocabulary.eos
            given = logprobs if sequence.logprobs else None
            outputs.append(EngineOutput(sequence.request_id, sequence.index, token_ids, finish, logprobs=given))
            if finish is not None:
                self._retire(sequence)
        self._varied = [sequence for sequence in self._varied if sequence.state is not _State.ENDED]
        return outputs

    def _accept(self, sequence: _Sequence, left: int) -> int:
        """How many tokens this step gives: the drafts up to the first one that is refused, and one of the model's own
        (Leviathan et al., "Fast Inference from Transformers via Speculative Decoding", 2023).
        """
        if sequence.chances is None:
            return 1
        drafted = min(self.options.draft_tokens, left - 1)
        accepted = 0
        while accepted < drafted and sequence.chances.random() < self.options.acceptance_rate:
            accepted += 1
        self._drafted += drafted
        self._accepted += accepted
        return accepted + 1

    def _retire(self, sequence: _Sequence) -> None:
        """It has ended: its blocks go back, its place is free."""
        if sequence.lease is not None:
            self._reserved -= sequence.reserved
            if sequence.state is _State.DECODING:
                if sequence.began:
                    sequence.made = self._steps - sequence.began + 1
                self._context -= sequence.prompt + sequence.made
                self._keep_answer(sequence, sequence.lease)
            self._pool.close(sequence.lease)
        sequence.state = _State.ENDED
        siblings = self._of_request[sequence.request_id]
        siblings.remove(sequence)
        if not siblings:
            del self._of_request[sequence.request_id]

    def _keep_answer(self, sequence: _Sequence, lease: Lease) -> None:
        """The next turn of a chat begins with this prompt and answer; the last token was never computed."""
        size = self.options.block_size
        known = len(sequence.keys) * size
        if not self.options.prefix_caching or sequence.prompt + sequence.made - 1 < known + size:
            return
        parent = sequence.keys[-1] if sequence.keys else hash(sequence.request.cache_salt)
        tail = sequence.request.token_ids[known:] + sequence.answer.first(sequence.made - 1)
        lease.keys += block_keys(tail, size, parent)
        self._pool.publish(lease)

    def _blocks(self, tokens: int) -> int:
        return -(-tokens // self.options.block_size)
