"""A request in vLLM's words, and vLLM's log-probabilities in ours. Imports nothing of vLLM."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from inflight.engines.base import EngineRefusal, EngineRequest, Guide
from inflight.grammar.nodes import GrammarError
from inflight.grammar.prepare import prepare

_NEUTRAL = {"repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0, "min_p": 0.0}


def sampling_values(request: EngineRequest, index: int, own_stops: tuple[int, ...]) -> dict[str, Any]:
    """Arguments of vLLM's SamplingParams for one sequence of a request, but for the guide and the kind of output.

    A sequence of several is a request of its own to vLLM, which makes the same of its `n`, but refuses it for greedy
    requests. Stop tokens are all told, so vLLM's own are ignored; under a guide the model's own always end the text,
    because the grammar ends with one of them.
    """
    sampling = request.sampling
    stops = set(sampling.stop_token_ids) | (set(own_stops) if request.guide is not None else set())
    values: dict[str, Any] = {
        "max_tokens": sampling.max_tokens,
        # Without a stop token there is nothing to hold back; vLLM would still hold back the tokenizer's own.
        "min_tokens": sampling.min_tokens if stops else 0,
        "temperature": sampling.temperature,
        "ignore_eos": True,
        "stop_token_ids": sorted(stops),
        "logprobs": None if sampling.logprobs < 0 else sampling.logprobs,
        "detokenize": False,
    }
    if sampling.temperature > 0.0:
        values |= {
            "top_p": sampling.top_p,
            "top_k": sampling.top_k,
            # torch takes a signed one, of which its generator for CPUs looks at 32 bits
            "seed": sampling.folded_seed_of(index, 63),
        }
    for name, neutral in _NEUTRAL.items():
        if getattr(sampling, name) != neutral:
            values[name] = getattr(sampling, name)
    return values


def grammar_text(guide: Guide) -> str:
    """The guide as EBNF. Raises `EngineRefusal`."""
    if guide.kind == "ebnf_grammar":
        return guide.text  # the backend has prepared and checked it
    try:
        return prepare(guide.kind, guide.text, guide.thought)
    except GrammarError as error:
        raise EngineRefusal(str(error), "guided_decoding_guide") from None


def split_logprobs(
    token_ids: Sequence[int], given: Sequence[Mapping[int, Any]] | None, top: int
) -> tuple[list[float] | None, list[dict[int, float]] | None, list[int] | None]:
    """(log-probability of each token, the `top` likeliest of each place, the rank of each token) of what vLLM gives:
    per token a mapping of ids to something with `logprob` and `rank`, in which the chosen token is besides the
    likeliest.
    """
    if given is None:
        return None, None, None
    entries = [places[token] for token, places in zip(token_ids, given, strict=True)]
    chosen = [float(entry.logprob) for entry in entries]
    ranks = [int(entry.rank) for entry in entries if entry.rank is not None]
    known = ranks if len(ranks) == len(entries) else None
    if top <= 0:
        return chosen, None, known
    likeliest = [
        {int(token): float(entry.logprob) for token, entry in places.items() if entry.rank <= top} for places in given
    ]
    return chosen, likeliest, known
