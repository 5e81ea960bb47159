"""A request in TensorRT-LLM's words: for the bindings' executor, and for tensorrt_llm.LLM."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import json
from collections.abc import Sequence
from typing import Any

from inflight.engines.base import EngineRefusal, EngineRequest, Guide, SamplingParams
from inflight.engines.faults import sparingly
from inflight.errors import last_line

PENALTIES = (
    ("repetition_penalty", 1.0),
    ("presence_penalty", 0.0),
    ("frequency_penalty", 0.0),
)  # and what has no effect
KIND_WORDS = {"json_schema": "JSON Schema", "regex": "regular expression", "ebnf_grammar": "grammar"}
GUIDE_TYPES = {"json": "JSON", "json_schema": "JSON_SCHEMA", "regex": "REGEX", "ebnf_grammar": "EBNF_GRAMMAR"}


@dataclasses.dataclass(frozen=True, slots=True)
class Stops:
    """`end_id` is TensorRT-LLM's one end token, `words` further ones it looks for, `watched` those that we look for
    because TensorRT-LLM would end on them before `min_tokens`.
    """

    end_id: int | None
    words: tuple[int, ...]
    watched: frozenset[int]

    def first(self, ids: Sequence[int], before: int, min_tokens: int) -> int:
        """The same for any stop token, whoever looks for it."""
        every = {self.end_id, *self.words, *self.watched}
        places = enumerate(ids, before + 1)
        return next((count - before for count, token in places if token in every and count > min_tokens), 0)

    def first_watched(self, ids: Sequence[int], before: int, min_tokens: int) -> int:
        """How many of `ids` count up to and with the first stop token that only we look for; 0 without one. `before`
        tokens of the sequence were there already; none of the first `min_tokens` ends it.
        """
        places = enumerate(ids, before + 1)
        return next((count - before for count, token in places if token in self.watched and count > min_tokens), 0)


def split_stops(sampling: SamplingParams, own: tuple[int, ...]) -> Stops:
    """Who looks for which stop token. min_tokens holds back the end token only, never a stop word."""
    ids = sampling.stop_token_ids
    if not ids:
        return Stops(None, (), frozenset())
    end = next((token for token in ids if token in own), ids[0])
    others = tuple(token for token in ids if token != end)
    if sampling.min_tokens > 0:
        return Stops(end, (), frozenset(others))
    return Stops(end, others, frozenset())


def split_llm_stops(sampling: SamplingParams, own: tuple[int, ...], *, end_in_output: bool) -> Stops:
    """As `split_stops`, for tensorrt_llm.LLM.

    Where its sampler leaves the end token out of the output, end tokens become stop words: those are in it, each with
    its log-probability. Not with beams, and not with min_tokens, which holds back the end token alone.
    """
    stops = split_stops(sampling, own)
    if end_in_output or stops.end_id is None or sampling.min_tokens > 0 or sampling.beam_width > 1:
        return stops
    return Stops(None, (stops.end_id, *stops.words), frozenset())


def salt_id(salt: str) -> int:
    """64 bits of the salt's hash: equal salts share cached blocks, others do not."""
    return int.from_bytes(hashlib.sha256(salt.encode()).digest()[:8], "little") >> 1


def _least_and_penalties(sampling: SamplingParams) -> dict[str, Any]:
    """What both flows call alike; only what is not neutral."""
    values: dict[str, Any] = {"min_tokens": int(sampling.min_tokens)} if sampling.min_tokens > 0 else {}
    penalties = ((name, getattr(sampling, name), neutral) for name, neutral in PENALTIES)
    return values | {name: float(value) for name, value, neutral in penalties if value != neutral}


def sampling_config(trtllm: Any, sampling: SamplingParams, prompt_tokens: int) -> Any:
    """The bindings' SamplingConfig.

    Presence and frequency mean the answer alone: releases that can leave the prompt out of them are told to.

    Greedy is top_k 1. Sampling names top_k and top_p even where they let every token through: TensorRT-LLM's own
    defaults, taken when neither is given, choose greedily.
    """
    values: dict[str, Any] = {"beam_width": int(sampling.beam_width)}
    if sampling.beam_width > 1:
        values["num_return_sequences"] = int(sampling.num_sequences)
        values["length_penalty"] = float(sampling.length_penalty)  # TensorRT-LLM's own default is 0
    else:
        if sampling.num_sequences > 1:
            values["num_return_sequences"] = int(sampling.num_sequences)
        if sampling.temperature > 0.0:
            values |= {
                "temperature": float(sampling.temperature),
                "top_k": int(sampling.top_k),
                "top_p": float(sampling.top_p),
                "seed": int(sampling.seed),
            }
            if sampling.min_p > 0.0:
                values["min_p"] = float(sampling.min_p)
        else:
            values["top_k"] = 1
    values |= _least_and_penalties(sampling)
    if (sampling.presence_penalty or sampling.frequency_penalty) and hasattr(
        trtllm.SamplingConfig, "prompt_ignore_length"
    ):
        values["prompt_ignore_length"] = int(prompt_tokens)
    return trtllm.SamplingConfig(**values)


def executor_request(
    trtllm: Any, request: EngineRequest, stops: Stops, lora: Any, retention: Any, draft: list[int] | None = None
) -> Any:
    """The bindings' Request: no None, no number that is not Python's own. Raises `EngineRefusal` for a bad guide."""
    sampling = request.sampling
    values: dict[str, Any] = {
        "input_token_ids": [int(token) for token in request.token_ids],
        "max_tokens": int(sampling.max_tokens),
        # Beams change their past, so that no increment of theirs could be sent: they come whole, at the end.
        "streaming": sampling.beam_width == 1,
        "sampling_config": sampling_config(trtllm, sampling, len(request.token_ids)),
        "output_config": trtllm.OutputConfig(
            return_log_probs=sampling.logprobs >= 0,
            return_context_logits=False,
            return_generation_logits=False,
            exclude_input_from_output=True,
            return_encoder_output=False,
            return_perf_metrics=request.perf_metrics,
        ),
        "return_all_generated_tokens": False,
        "priority": 0.5 + request.priority / 200.0,  # -100…100 on 0…1
    }
    if stops.end_id is not None:
        values |= {"end_id": int(stops.end_id), "pad_id": int(stops.end_id)}
    if stops.words:
        values["stop_words"] = [[int(token)] for token in stops.words]
    if sampling.bad_words:
        values["bad_words"] = [[int(token) for token in word] for word in sampling.bad_words]
    if request.guide is not None:
        kind, text = grammar(request.guide)
        guide_type = getattr(trtllm.GuidedDecodingParams.GuideType, GUIDE_TYPES[kind])
        guide = {"guide_type": guide_type} if kind == "json" else {"guide_type": guide_type, "guide": text}
        values["guided_decoding_params"] = trtllm.GuidedDecodingParams(**guide)
    if lora is not None:
        values["lora_config"] = lora
    if draft:
        values["external_draft_tokens_config"] = trtllm.ExternalDraftTokensConfig(tokens=draft)
    if retention is not None:
        values["kv_cache_retention_config"] = retention
    if request.cache_salt is not None:
        values["cache_salt_id"] = salt_id(request.cache_salt)
    return trtllm.Request(**values)


def grammar(guide: Guide) -> tuple[str, str]:
    """(kind, text) in the four kinds that TensorRT-LLM knows. Raises `EngineRefusal` for what no grammar can be."""
    name = "guided_decoding_guide"
    if guide.kind == "choice":
        try:
            choices = json.loads(guide.text)
        except ValueError as error:
            raise EngineRefusal(f"is no JSON list of choices: {error}", name) from None
        if not isinstance(choices, list) or not choices or not all(isinstance(item, str) and item for item in choices):
            raise EngineRefusal("must be a JSON list of strings, none of them empty", name)
        return "ebnf_grammar", "root ::= " + " | ".join(json.dumps(choice, ensure_ascii=False) for choice in choices)
    if guide.kind == "json_schema":
        try:
            schema = json.loads(guide.text)
        except ValueError as error:
            raise EngineRefusal(f"is no JSON: {error}", name) from None
        if not isinstance(schema, (dict, bool)):
            raise EngineRefusal("is no JSON schema: it must be an object", name)
    _compile(guide)
    return guide.kind, guide.text


def _compile(guide: Guide) -> None:
    """Let xgrammar look at the guide first, where it is: the executor would fail in the middle of its work."""
    try:
        grammars = importlib.import_module("xgrammar").Grammar
    except ImportError:
        return
    make = {"json_schema": "from_json_schema", "regex": "from_regex", "ebnf_grammar": "from_ebnf"}.get(guide.kind)
    if make is None:
        return
    try:
        getattr(grammars, make)(guide.text)
    except Exception as error:  # noqa: BLE001 — it raises what its C++ core does
        sparingly.warning("guide", "xgrammar refuses a guide (%s): %s", guide.kind, last_line(error, 1000))
        raise EngineRefusal(
            f"is no {KIND_WORDS[guide.kind]} that the engine's grammar compiler takes; correct or simplify it",
            "guided_decoding_guide",
        ) from None


def llm_sampling_params(api: Any, request: EngineRequest, stops: Stops) -> Any:
    """SamplingParams of the high-level interface. Its defaults (32 tokens!) are all overridden.

    `end_id` is always given, -1 for none: without it LLM takes the tokenizer's, and releases differ in what else they
    read of the checkpoint then. Stop tokens count, so they stay in the output; `ignore_eos` would drop them in some.
    """
    sampling = request.sampling
    end = stops.end_id if stops.end_id is not None else -1
    values: dict[str, Any] = {
        "max_tokens": int(sampling.max_tokens),
        "n": int(sampling.num_sequences),
        "detokenize": False,
        "add_special_tokens": False,
        "exclude_input_from_output": True,
        "include_stop_str_in_output": True,
        "ignore_eos": end < 0 and not stops.words,
        "end_id": int(end),
        "pad_id": int(end) if end >= 0 else int(stops.words[0]) if stops.words else 0,
    }
    if stops.words:
        values["stop_token_ids"] = [int(token) for token in stops.words]
    if sampling.beam_width > 1:
        values |= {"use_beam_search": True, "best_of": int(sampling.beam_width)}
        values["length_penalty"] = float(sampling.length_penalty)  # TensorRT-LLM's own default is 0
    elif sampling.temperature > 0.0:
        values |= {
            "temperature": float(sampling.temperature),
            "top_p": float(sampling.top_p),
            "seed": int(sampling.seed),
        }
        if sampling.top_k > 0:
            values["top_k"] = int(sampling.top_k)
        if sampling.min_p > 0.0:
            values["min_p"] = float(sampling.min_p)
    else:
        values["top_k"] = 1
    values |= _least_and_penalties(sampling)
    if sampling.logprobs >= 0:
        values["logprobs"] = max(1, int(sampling.logprobs))
    if request.guide is not None:
        kind, text = grammar(request.guide)
        guide: dict[str, dict[str, Any]] = {
            "json": {"json_object": True},
            "json_schema": {"json": text},
            "regex": {"regex": text},
        }
        values["guided_decoding"] = api.GuidedDecodingParams(**guide.get(kind, {"grammar": text}))
    return api.SamplingParams(**values)
