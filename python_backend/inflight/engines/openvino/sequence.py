"""One request inside OpenVINO GenAI: how it asks for tokens, and the hidden ones that keep the prefix cache exact."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import openvino_genai

from inflight.engines.base import EngineOutput, EngineRefusal, EngineRequest, FinishReason, Guide, SamplingParams
from inflight.engines.openvino.guides import structured_output
from inflight.grammar.nodes import GrammarError

# A sequence that leaves OpenVINO with one token puts a block into the prefix cache that ends with its prompt. The same
# prompt would then have only its last token computed, differently (see `OpenVinoEngine._needs_primer`), so sequences
# stay for a second token, which nobody sees. One that its first token ends all the same is followed by `second_token`.
LEAST_TOKENS = 2

# OpenVINO takes min_p below 1 only. The largest float32 there leaves what 1 would: the likeliest token and its equals.
_BELOW_ONE = 1.0 - 2.0**-24


class Sequence:
    """One OpenVINO request. Several sampled sequences of one request are several of these, so that each can stream.

    `followers` are submitted when this one has given its first tokens: by then the prompt is in the prefix cache and is
    computed once. A `primer` only puts a prompt's blocks into the cache and tells nobody. One with an `ending` only
    makes a second token of a prompt that left with one; its client gets that ending and nothing else.
    """

    __slots__ = (
        "cancelled",
        "config",
        "ending",
        "followers",
        "generated",
        "handle",
        "index",
        "is_guessed",
        "leaving",
        "length",
        "limit",
        "primer",
        "prompt",
        "request_id",
        "steps",
        "stop_ids",
    )

    def __init__(
        self, request_id: int, index: int, token_ids: list[int], config: Any, stop_ids: frozenset[int], limit: int = 0
    ) -> None:
        self.request_id = request_id
        self.index = index
        self.prompt = token_ids
        self.config = config
        self.stop_ids = stop_ids  # those OpenVINO does not look for itself
        self.length = len(token_ids)
        self.limit = limit  # tokens its client gets at most
        self.generated = 0  # tokens OpenVINO has made
        self.handle: Any = None
        self.cancelled = False  # OpenVINO knows, and drops it in its next step
        self.leaving: FinishReason | None = None  # how it ends as soon as OpenVINO has dropped it
        self.primer = False
        self.is_guessed = False  # it runs in the pipeline that looks up
        self.steps = 0  # in which it got tokens
        self.ending: EngineOutput | None = None
        self.followers: list[Sequence] = []

    @property
    def count(self) -> int:
        """How many terminal outputs it owes: one per beam it returns, none for a primer."""
        if self.primer:
            return 0
        return int(self.config.num_return_sequences) if self.config.is_beam_search() else 1

    def first_stop(self, token_ids: list[int], least: int) -> int:
        """How many of `token_ids` count up to and with the first stop token that only we look for, beyond `least`
        tokens; 0 without one.
        """
        places = enumerate(token_ids, 1)
        return next((place for place, token in places if token in self.stop_ids and place > least), 0)


def primer(first: Sequence) -> Sequence:
    """A request for `first`'s prompt and two tokens more, which leaves all whole blocks of the prompt in the cache."""
    config = openvino_genai.GenerationConfig()
    config.max_new_tokens = 1
    config.ignore_eos = True
    prompt = first.prompt + first.prompt[-1:] * 2
    hidden = Sequence(first.request_id, first.index, prompt, config, frozenset())
    hidden.primer = True
    hidden.followers = [first]
    return hidden


def second_token(sequence: Sequence, finish: FinishReason) -> Sequence:
    """A request for `sequence`'s prompt once more, which takes what was left in the cache out of it; then `finish`."""
    config = openvino_genai.GenerationConfig()
    config.max_new_tokens = LEAST_TOKENS
    config.ignore_eos = True
    hidden = Sequence(sequence.request_id, sequence.index, sequence.prompt, config, frozenset())
    hidden.ending = EngineOutput(sequence.request_id, sequence.index, [], finish)
    return hidden


def with_followers(sequence: Sequence) -> Iterator[Sequence]:
    """A sequence and all that wait for it, directly or not."""
    yield sequence
    for follower in sequence.followers:
        yield from with_followers(follower)


def owed_by(sequence: Sequence, finish: FinishReason | None = None, error: str | None = None) -> list[EngineOutput]:
    """The ends of a sequence and of all that wait for it."""
    return [
        EngineOutput(owing.request_id, index, [], finish, error=error)
        for owing in with_followers(sequence)
        for index in range(owing.index, owing.index + owing.count)
    ]


def generation_config(request: EngineRequest, index: int, own_stops: frozenset[int]) -> tuple[Any, frozenset[int]]:
    """OpenVINO's form of the sampling parameters, and the stop tokens that it will not look for itself."""
    sampling = request.sampling
    config = openvino_genai.GenerationConfig()
    config.max_new_tokens = max(sampling.max_tokens, 1 if sampling.beam_width > 1 else LEAST_TOKENS)
    config.min_new_tokens = sampling.min_tokens
    config.repetition_penalty = sampling.repetition_penalty
    config.presence_penalty = sampling.presence_penalty
    config.frequency_penalty = sampling.frequency_penalty
    config.logprobs = 1 if sampling.logprobs >= 0 else 0
    stops = frozenset(sampling.stop_token_ids)
    left = frozenset[int]()
    if own_stops <= stops:
        config.stop_token_ids = set(stops)
        if own_stops:
            config.eos_token_id = min(own_stops)
    else:
        config.ignore_eos = True  # which makes OpenVINO ignore stop_token_ids as well
        left = stops
    if sampling.beam_width > 1:
        _check_beams(sampling)
        config.num_beams = sampling.beam_width
        config.num_return_sequences = sampling.num_sequences
        config.length_penalty = sampling.length_penalty
    elif sampling.temperature > 0.0:
        config.do_sample = True
        config.temperature = sampling.temperature
        config.top_p = sampling.top_p
        if sampling.top_k > 0:
            config.top_k = sampling.top_k
        config.min_p = min(sampling.min_p, _BELOW_ONE)
        config.rng_seed = sampling.folded_seed_of(index, 32)  # its generator looks at no more
    if request.guide is not None:
        left = _structured(config, request.guide, stops, own_stops)
    return config, left


def _check_beams(sampling: SamplingParams) -> None:
    """OpenVINO's beam search has no penalties. Raises `EngineRefusal`."""
    for name, neutral in (("repetition_penalty", 1), ("presence_penalty", 0), ("frequency_penalty", 0)):
        value = getattr(sampling, name)
        if value != neutral:
            raise EngineRefusal(
                f"is {value:g}, and beam search on the openvino engine has none; set it to {neutral}, "
                "or beam_width to 1",
                name,
            )


def _structured(config: Any, guide: Guide, stops: frozenset[int], own_stops: frozenset[int]) -> frozenset[int]:
    """Put the guide into `config`; the stop tokens that OpenVINO will not look for itself.

    The model's own stop tokens always end a guided text, and no others do inside OpenVINO: a grammar ends with one of
    its stop tokens, and forbids them before its end.
    """
    try:
        config.structured_output_config = structured_output(guide)
    except GrammarError as error:
        raise EngineRefusal(str(error), "guided_decoding_guide") from None
    config.ignore_eos = False
    config.stop_token_ids = set(own_stops)
    config.eos_token_id = min(own_stops)
    return stops - own_stops
