"""In-flight batching of the simulated engine: admission, chunked prefill, decoding, ends.

The common sequence gets one token in every step, so everything about it is known when it begins: at which steps it
needs another KV block, and at which step it ends. Those steps are an agenda, and a step costs little more than making
its outputs. Sequences with drafts or log-probabilities vary and are taken one by one.
"""

from __future__ import annotations

import bisect
from collections import deque
from itertools import islice

from inflight.engines.base import EngineOutput, EngineRefusal, EngineRequest, EngineStats, FinishReason
from inflight.engines.simulated.cache import BlockPool, Lease, block_keys
from inflight.engines.simulated.cost import Clock, SimulatedOptions, Work, step_seconds
from inflight.engines.simulated.sequence import SimulatedSequence, State
from inflight.engines.simulated.tokens import Answer, Vocabulary


class InflightBatch:
    """`options.real_time` lets modelled time pass on `clock`; every method is called by one thread."""

    def __init__(self, vocabulary: Vocabulary, options: SimulatedOptions, max_running: int, clock: Clock) -> None:
        self.options = options
        self.max_running = max_running
        self._vocabulary = vocabulary
        self._clock = clock
        self._pool = BlockPool(options.blocks)
        self._of_request: dict[int, list[SimulatedSequence]] = {}
        self._waiting: deque[SimulatedSequence] = deque()
        self._reading: list[SimulatedSequence] = []
        self._steady: list[SimulatedSequence] = []  # one token a step
        self._varied: list[SimulatedSequence] = []
        self._ends: dict[int, list[SimulatedSequence]] = {}  # step → steady sequences that end then
        self._growths: dict[int, list[SimulatedSequence]] = {}  # step → those that need another block then
        self._cancelled: list[int] = []
        self._news: list[EngineOutput] = []  # of sequences that have begun, before their first tokens
        self._steps = 0
        self._reserved = 0  # blocks, of running sequences
        self._context = 0  # tokens of all decoding sequences
        self._reused = self._drafted = self._accepted = 0
        self._due = 0.0

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
        sequences: list[SimulatedSequence] = []
        for index in range(request.sampling.num_sequences):
            answer = Answer(request, index, self._vocabulary, options.eos_every)
            sequence = SimulatedSequence(request, index, answer, sequences[0] if index else None)
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
            self._pay(work)
        self._steps += 1
        if self._news:
            outputs += self._news
            self._news = []
        outputs += self._decode_steady()
        if self._varied:
            outputs += self._decode_varied()
        return outputs

    def glide(self, until: float, most: int) -> None:
        """Take up to `most` steps at once, those of them that begin before `until` on the clock and in which nothing
        happens but that every sequence gets its next token. For simulations: no outputs are made, and the tokens of
        these steps never are.
        """
        if self._waiting or self._reading or self._varied or self._cancelled or not self._ends:
            return
        count = min(min(self._ends) - self._steps - 1, most)
        if count < 2:
            return
        each = len(self._steady)
        first, middle, last = (
            self._seconds(Work(), self._context + each * place) for place in (0, (count - 1) // 2, count - 1)
        )
        slope = (last - first) / (count - 1)
        if abs(first + slope * ((count - 1) // 2) - middle) > 1e-12:
            return  # arithmetic overtakes memory on the way, so costs do not lie on one line
        began = self._clock.now()
        if began + _sum(first, slope, count - 1) >= until:
            count = bisect.bisect_left(range(count), until - began, key=lambda steps: _sum(first, slope, steps))
        for step in range(self._steps + 1, self._steps + count + 1):
            self._grow(step)
        self._steps += count
        self._context += count * each
        self._clock.sleep(_sum(first, slope, count))
        self._due = self._clock.now()

    @property
    def steps(self) -> int:
        """Steps taken so far."""
        return self._steps

    def stats(self) -> EngineStats:
        """A snapshot; blocks that are only kept for reuse are not counted as used."""
        return EngineStats(
            blocks_used=self._pool.used,
            blocks_max=self.options.blocks,
            reused_tokens_total=self._reused,
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
        self._waiting = deque(each for each in self._waiting if each.state is not State.ENDED)
        for group in (self._reading, self._steady, self._varied):
            group[:] = [each for each in group if each.state is not State.ENDED]
        return outputs

    def _admit(self) -> None:
        """Start what has a place and, in the worst case, its blocks, in the order of arrival."""
        places = self.max_running - len(self._reading) - len(self._steady) - len(self._varied)
        waiting, limit = self._waiting, self.options.blocks
        while waiting and places > 0 and (not limit or self._reserved + waiting[0].reserved <= limit):
            sequence = waiting.popleft()
            places -= 1
            self._reserved += sequence.reserved
            sequence.state = State.READING
            sequence.lease = self._pool.open(sequence.keys, self._blocks(sequence.prompt))
            if sequence.leader is None:
                # The last token is always computed: its result is the first token of the answer.
                reused = max(0, min(sequence.lease.held * self.options.block_size, sequence.prompt - 1))
                sequence.prefill_left -= reused
                sequence.reused_blocks = sequence.lease.held
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

    def _begin(self, sequence: SimulatedSequence) -> None:
        """Its first token comes in this step."""
        assert sequence.lease is not None
        if sequence.request.perf_metrics and sequence.leader is None:
            reused = sequence.reused_blocks
            self._news.append(EngineOutput(sequence.request_id, sequence.index, [], reused_blocks=reused))
        self._pool.publish(sequence.lease)
        sequence.state = State.DECODING
        self._context += sequence.prompt
        if self.options.draft_tokens:
            sequence.chances = sequence.answer.draws()
        if sequence.logprobs or self.options.draft_tokens:
            self._varied.append(sequence)
            return
        sequence.began = self._steps + 1
        sequence.last_step = self._steps + sequence.answer.length
        self._steady.append(sequence)
        self._ends.setdefault(sequence.last_step, []).append(sequence)
        self._grow_at(sequence, sequence.began + -sequence.prompt % self.options.block_size)

    def _grow_at(self, sequence: SimulatedSequence, step: int) -> None:
        if step < sequence.last_step:
            self._growths.setdefault(step, []).append(sequence)

    def _grow(self, step: int) -> None:
        for sequence in self._growths.pop(step, ()):
            if sequence.state is not State.ENDED:
                assert sequence.lease is not None
                self._pool.grow(sequence.lease, 1)
                self._grow_at(sequence, step + self.options.block_size)

    def _seconds(self, work: Work, context: int) -> float:
        """What a step of the sequences that decode now costs, beside the prompts in `work`."""
        tokens_each = 1 + self.options.draft_tokens
        work.decoding = len(self._steady) + len(self._varied)
        work.verified = work.decoding * tokens_each
        work.context = context
        work.pairs += context * tokens_each
        return step_seconds(self.options, work)

    def _pay(self, work: Work) -> None:
        """Let the modelled time of this step pass."""
        now = self._clock.now()
        self._due = max(self._due, now) + self._seconds(work, self._context)
        self._clock.sleep(max(0.0, self._due - now))

    def _decode_steady(self) -> list[EngineOutput]:
        step = self._steps
        self._context += len(self._steady)
        ending = [each for each in self._ends.pop(step, ()) if each.state is not State.ENDED]
        self._grow(step)
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
        self._varied = [sequence for sequence in self._varied if sequence.state is not State.ENDED]
        return outputs

    def _accept(self, sequence: SimulatedSequence, left: int) -> int:
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

    def _retire(self, sequence: SimulatedSequence) -> None:
        """It has ended: its blocks go back, its place is free."""
        if sequence.lease is not None:
            self._reserved -= sequence.reserved
            if sequence.state is State.DECODING:
                if sequence.began:
                    sequence.made = self._steps - sequence.began + 1
                self._context -= sequence.prompt + sequence.made
                self._keep_answer(sequence, sequence.lease)
            self._pool.close(sequence.lease)
        sequence.state = State.ENDED
        siblings = self._of_request[sequence.request_id]
        siblings.remove(sequence)
        if not siblings:
            del self._of_request[sequence.request_id]

    def _keep_answer(self, sequence: SimulatedSequence, lease: Lease) -> None:
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


def _sum(first: float, slope: float, count: int) -> float:
    """The sum of first + (first + slope) + (first + 2 × slope) + …, `count` terms."""
    return count * first + slope * count * (count - 1) / 2
