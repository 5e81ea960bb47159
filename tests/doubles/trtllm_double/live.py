"""One request inside the simulated executor."""

from __future__ import annotations

import datetime
import math
import time
from typing import Any

from trtllm_double import tokens
from trtllm_double.guides import guided_tokens

NAMES: dict[str, Any] = {}  # the bindings' names, filled by executor.py


class LiveSequence:
    """One sequence: its state, its tokens and why it ended."""

    def __init__(self, state: int, index: int) -> None:
        self.state = state
        self.index = index
        self.tokens: list[int] = []
        self.states: list[int] = []  # before each token
        self.logprobs: list[float] = []
        self.sent = 0
        self.end_logprob = 0.0  # of the end token, which is in the sum and not in the output
        self.finish: str | None = None
        self.reported = False


class LiveRequest:
    """A request with its sequences; `forced` are the tokens that a guide dictates."""

    def __init__(self, request_id: int, request: Any, vocabulary: int, tokenizer: str | None, adapter: int) -> None:
        self.id, self.request, self.vocabulary = request_id, request, vocabulary
        self.arrived = time.monotonic()
        self.scheduled_at = self.first_at = self.last_at = 0.0
        self.cancelled = self.scheduled = False
        self.prefill_left = len(request.input_token_ids)
        self.max_tokens = request.max_tokens
        self.unsampled = False  # the decoder has no layer for it
        sampling = request.sampling_config
        self.beam_width = sampling.beam_width
        greedy = sampling.top_k == 1 or (sampling.top_p in (None, 0.0) and sampling.top_k is None)
        seed = None if greedy else (sampling.seed or 0)
        returned = sampling.num_return_sequences or request.num_return_sequences
        count = self.beam_width if self.beam_width > 1 else returned
        self.returned = min(returned, count) if sampling.num_return_sequences else count
        self.sequences = []
        for index in range(count):
            beam_seed = index if self.beam_width > 1 and index else seed
            self.sequences.append(LiveSequence(tokens.start(request.input_token_ids, beam_seed, index, adapter), index))
        self.forced: list[int] | None = None
        guide = request.guided_decoding_params
        if guide is not None:
            if tokenizer is None:
                raise RuntimeError("Guided decoding is not enabled: ExecutorConfig has no guided_decoding_config")
            self.forced = guided_tokens(guide.guide_type.name, guide.guide, tokenizer)
        self.reused_blocks = 0

    @property
    def priority(self) -> float:
        """Between 0 and 1, higher first."""
        return float(self.request.priority)

    def blocks(self, size: int, worst_case: bool) -> int:
        """KV blocks taken now, or at the most."""
        prompt = len(self.request.input_token_ids)
        return sum(
            math.ceil((prompt + (self.max_tokens if worst_case else len(sequence.tokens))) / size)
            for sequence in self.sequences
        )

    def decode(self, eos_every: int) -> int:
        """One iteration for every sequence that goes on; tokens made."""
        made = 0
        for sequence in self.sequences:
            if sequence.finish is None:
                before = len(sequence.tokens)
                self._decode_one(sequence, eos_every)
                made += len(sequence.tokens) - before
        now = time.monotonic()
        if made and not self.first_at:
            self.first_at = now
        self.last_at = now if made else self.last_at
        allotted = self.request.allotted_time_ms
        if allotted is not None and now - self.arrived > _seconds(allotted):
            self.end("TIMED_OUT")
        return made

    def _decode_one(self, sequence: LiveSequence, eos_every: int) -> None:
        request = self.request
        draft = request.external_draft_tokens_config
        offered = list(draft.tokens) if draft is not None and not sequence.tokens else []
        while sequence.finish is None:
            made = len(sequence.tokens)
            minimum = request.sampling_config.min_tokens or 0
            at_end = self.forced is not None and made >= len(self.forced)
            at_end = at_end or bool(self.forced is None and eos_every and made >= eos_every)
            has_end = request.end_id not in (None, -1)
            token = -1
            if not at_end:
                words = list(request.bad_words or ())
                if has_end and made < minimum:
                    words.append([request.end_id])
                token = (
                    0
                    if self.unsampled
                    else self.forced[made]
                    if self.forced is not None
                    else tokens.next_token(sequence.state, self.vocabulary, sequence.tokens, words)
                )
            if (at_end and (self.forced is not None or (has_end and made >= minimum))) or token == request.end_id:
                sequence.finish = "END_ID"  # the end token itself is not part of the output
                sequence.end_logprob = tokens.logprob(sequence.state)
                return
            if at_end:
                token = tokens.next_token(sequence.state, self.vocabulary, sequence.tokens, request.bad_words or ())
            sequence.states.append(sequence.state)
            sequence.logprobs.append(tokens.logprob(sequence.state))
            sequence.tokens.append(token)
            sequence.state = tokens.advance(sequence.state, token)
            words = request.stop_words or ()
            if any(word and sequence.tokens[-len(word) :] == list(word) for word in words):
                sequence.finish = "STOP_WORDS"
            elif len(sequence.tokens) >= self.max_tokens:
                sequence.finish = "LENGTH"
            if not offered or offered.pop(0) != token:
                return

    def end(self, reason: str) -> None:
        """End every sequence that has not ended."""
        for sequence in self.sequences:
            sequence.finish = sequence.finish or reason

    def responses(self) -> list[Any]:
        """What is to be handed out after an iteration."""
        done = all(sequence.finish for sequence in self.sequences)
        if self.beam_width > 1:
            return [self._beams(done)] if done or self.request.streaming else []
        found = []
        for sequence in self.sequences:
            fresh = len(sequence.tokens) > sequence.sent
            if sequence.reported or not (sequence.finish or (self.request.streaming and fresh)):
                continue
            found.append((sequence, self._result(sequence)))
            sequence.sent = len(sequence.tokens)
            sequence.reported = sequence.finish is not None
        if done and found:
            found[-1][1].is_final = True
        return [NAMES["Response"](self.id, result) for _, result in found]

    def _result(self, sequence: LiveSequence) -> Any:
        request, output = self.request, self.request.output_config
        result = NAMES["Result"]()
        result.is_final = False
        if request.streaming:
            whole = request.return_all_generated_tokens
            result.output_token_ids = [sequence.tokens[:] if whole else sequence.tokens[sequence.sent :]]
        else:
            prompt = [] if output.exclude_input_from_output else list(request.input_token_ids)
            result.output_token_ids = [prompt + sequence.tokens]
        if output.return_log_probs:
            result.log_probs = [sequence.logprobs[:]]  # all so far, although the tokens are increments
            result.cum_log_probs = [sum(sequence.logprobs) + sequence.end_logprob]
        if output.return_generation_logits:
            result.generation_logits = tokens.logits(sequence.states, self.vocabulary)[None]
        result.finish_reasons = [NAMES["FinishReason"][sequence.finish or "NOT_FINISHED"]]
        result.sequence_index = sequence.index
        result.is_sequence_final = sequence.finish is not None
        result.decoding_iter = len(sequence.tokens)
        if output.return_perf_metrics:
            result.request_perf_metrics = self._metrics()
        return result

    def _beams(self, done: bool) -> Any:
        best = sorted(self.sequences, key=lambda sequence: -sum(sequence.logprobs))[: self.returned]
        results = [self._result(sequence) for sequence in best]
        result = results[0]
        result.output_token_ids = [each.output_token_ids[0] for each in results]
        result.finish_reasons = [each.finish_reasons[0] for each in results]
        if self.request.output_config.return_log_probs:
            result.log_probs = [each.log_probs[0] for each in results]
            result.cum_log_probs = [each.cum_log_probs[0] for each in results]
        result.sequence_index, result.is_sequence_final, result.is_final = 0, done, done
        return NAMES["Response"](self.id, result)

    def _metrics(self) -> Any:
        metrics = NAMES["RequestPerfMetrics"]()
        timing = metrics.timing_metrics = NAMES["TimingMetrics"]()
        for name, at in (
            ("arrival_time", self.arrived),
            ("first_scheduled_time", self.scheduled_at),
            ("first_token_time", self.first_at),
            ("last_token_time", self.last_at),
        ):
            setattr(timing, name, datetime.timedelta(seconds=at))
        cache = metrics.kv_cache_metrics = NAMES["KvCacheMetrics"]()
        cache.num_reused_blocks = self.reused_blocks
        return metrics


def _seconds(duration: Any) -> float:
    return duration.total_seconds() if isinstance(duration, datetime.timedelta) else float(duration)
