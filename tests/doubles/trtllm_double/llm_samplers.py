"""The two samplers of the PyTorch flow, as tensorrt_llm/_torch/pyexecutor/sampler.py has them: they differ in what they
tell of a token, and in whether the end token is one.

TRTLLMSampler (stored copy 440197692, near 1.2): the C++ decoder. The end token does not lengthen the sequence; of
log-probabilities there is the chosen token's alone; beams with log-probabilities raise for the whole batch.
TorchSampler (the same copy; 4516135568 for 1.3): the end token is in the sequence; the N likeliest tokens, the chosen
one among them only from 1.3 on; end_id, length, stop words are looked at in that order.
Of speculation inside the model (1114563172, 36492788660): like it, but log-probabilities are an assertion that ends the
worker.
"""

from __future__ import annotations

from typing import Any

from trtllm_double import tokens
from trtllm_double.llm_results import Response
from trtllm_double.llm_types import Logprob, SamplingParams

UNLIKELY = 7  # every so many sampled tokens is not among the likeliest N


class Sequence:
    """One answer that grows."""

    def __init__(self, index: int, state: int, cached: int) -> None:
        self.index = index
        self.state = state
        self.cached = cached  # tokens of its prompt that were not computed again
        self.tokens: list[int] = []
        self.logprobs: list[dict[int, Logprob]] = []
        self.reason = "NOT_FINISHED"
        self.sent = 0
        self.reported = False

    @property
    def ended(self) -> bool:
        """Whether it goes on no more."""
        return self.reason != "NOT_FINISHED"


class Sampler:
    """What a step makes of a sequence. `eos` is the token that ends this model's texts, every `eos_every` tokens;
    `guide_end` is the tokenizer's, the only one that a guide lets through at its end.
    """

    def __init__(
        self, kind: str, vocabulary: int, eos: int, eos_every: int, names_chosen: bool, guide_end: int
    ) -> None:
        self._guide_end = guide_end
        self.kind = kind
        self._vocabulary = vocabulary
        self._eos = eos
        self._eos_every = eos_every
        self._names_chosen = names_chosen

    def step(self, sequence: Sequence, params: SamplingParams, forced: list[int] | None, limit: int) -> None:
        """One token; `limit` is how many the sequence may have."""
        end = -1 if params.ignore_eos else params.end_id
        words = params.stop_token_ids or ()
        token = self._next(sequence, params, forced, end, words)
        if token == end and self.kind == "TRTLLMSampler":
            sequence.reason = "END_ID"
            return
        sequence.tokens.append(token)
        assert not (params.logprobs and self.kind == "OneModelSampler"), "not implemented for speculative sampler"
        if params.logprobs:
            sequence.logprobs.append(self._entry(sequence, token, params))
        sequence.state = tokens.advance(sequence.state, token)
        if token == end:
            sequence.reason = "END_ID"
        elif self.kind == "TRTLLMSampler" and token in words:
            sequence.reason = "STOP_WORDS"
        elif len(sequence.tokens) >= limit:
            sequence.reason = "LENGTH"
        elif token in words:
            sequence.reason = "STOP_WORDS"

    def _next(
        self, sequence: Sequence, params: SamplingParams, forced: list[int] | None, end: int | None, words: Any
    ) -> int:
        made = len(sequence.tokens)
        if forced is not None and made >= len(forced):
            return self._guide_end
        at_end = forced is None and bool(self._eos_every and made >= self._eos_every)
        masked = self._eos == end and made < (params.min_tokens or 0)
        if at_end and not masked and (self._eos == end or self._eos in words):
            return self._eos
        if forced is not None:
            return forced[made]
        bad = [[end]] if end is not None and made < (params.min_tokens or 0) else []
        return tokens.next_token(sequence.state, self._vocabulary, sequence.tokens, bad)

    def _entry(self, sequence: Sequence, token: int, params: SamplingParams) -> dict[int, Logprob]:
        value = tokens.logprob(sequence.state)
        if self.kind == "TRTLLMSampler":
            return {token: Logprob(value, 1)}
        assert params.logprobs is not None
        unlikely = not params.greedy and len(sequence.tokens) % UNLIKELY == 0
        likeliest = [token + 1 + place for place in range(params.logprobs)]
        if not unlikely:
            likeliest = [token, *likeliest[:-1]]
        entry = {other: Logprob(value - place, place + 1) for place, other in enumerate(likeliest)}
        if unlikely and self._names_chosen:
            entry[token] = Logprob(value - params.logprobs, params.logprobs + 1)
        return entry


def responses(sequences: list[Sequence], params: SamplingParams, returned: int) -> list[Response]:
    """What the worker tells of an iteration; `returned` is the number of beams that come back."""
    done = all(sequence.ended for sequence in sequences)
    if params.use_beam_search:
        response = Response(final=done, cached_tokens=sequences[0].cached)
        response.tokens = [sequence.tokens[:] for sequence in sequences[:returned]]
        response.reason = sequences[0].reason if done else "NOT_FINISHED"
        response.logprobs = [sequence.logprobs[:] for sequence in sequences[:returned]] if params.logprobs else None
        return [response]
    found = []
    for sequence in sequences:
        if sequence.reported or (not sequence.ended and len(sequence.tokens) == sequence.sent):
            continue
        response = Response(sequence.index, cached_tokens=sequence.cached)
        response.tokens = [sequence.tokens[sequence.sent :]]
        response.reason = sequence.reason
        response.logprobs = [sequence.logprobs[:]] if params.logprobs else None
        sequence.sent, sequence.reported = len(sequence.tokens), sequence.ended
        found.append(response)
    if done and found:
        found[-1].final = True
    return found
