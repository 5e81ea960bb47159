"""OpenAI's and vLLM's sampling fields as the model's own parameters: what chat and completions share."""

from __future__ import annotations

from typing import Any

import msgspec

from inflight_gateway.core.errors import invalid, unsupported
from inflight_gateway.core.models import Model
from inflight_gateway.wire.fields import Fields

MAX_CHOICES = 128
_JSON = msgspec.json.Encoder()

# They mean nothing here, and change no answer.
IGNORED = (
    "user", "safety_identifier", "metadata", "store", "service_tier", "prompt_cache_key", "prompt_cache_retention",
    "verbosity", "session_id", "stream_interval", "guided_decoding_backend", "request_id",
)  # fmt: skip
# They would change the answer.
REFUSED = (
    "logit_bias", "prompt_logprobs", "allowed_token_ids", "logprob_token_ids", "truncate_prompt_tokens",
    "thinking_token_budget", "kv_transfer_params", "prompt_embeds", "chat_template", "audio", "web_search_options",
    "moderation", "prediction", "functions", "function_call", "guided_whitespace_pattern", "mm_processor_kwargs",
)  # fmt: skip
# vLLM's names, and the model's own, of the same meaning.
_SAME_NUMBERS = (
    ("min_p", 0, 1), ("repetition_penalty", 0, 100), ("length_penalty", -100, 100), ("frequency_penalty", -2, 2),
    ("presence_penalty", -2, 2),
)  # fmt: skip
_SAME_FLAGS = ("ignore_eos", "skip_special_tokens", "include_stop_str_in_output")


def options_of(fields: Fields, model: Model, max_tokens: int | None) -> tuple[dict[str, Any], int]:
    """The model's parameters, and how many choices a prompt has. Raises `GatewayError`.

    What a request leaves open is the checkpoint's generation_config, else what OpenAI promises: temperature 1.
    """
    options: dict[str, Any] = {"max_tokens": max_tokens if max_tokens is not None else model.info.context}
    temperature = fields.number("temperature", 0, 2)
    if temperature is None and "temperature" not in model.info.generation_defaults:
        temperature = 1.0
    if temperature is not None:
        options["temperature"] = temperature
    top_p = fields.number("top_p", 0, 1)
    if top_p is not None:
        options["top_p"] = max(top_p, 1e-6)  # OpenAI allows 0, which the model does not
    top_k = fields.whole("top_k", -1, 2**31 - 1)
    if top_k is not None:
        options["top_k"] = top_k
    for name, least, most in _SAME_NUMBERS:
        number = fields.number(name, least, most)
        if number is not None:
            options[name] = number
    for name in _SAME_FLAGS:
        flag = fields.flag(name)
        if flag is not None:
            options[name] = flag
    if fields.flag("spaces_between_special_tokens") is False:
        raise unsupported("spaces_between_special_tokens", "false is not supported; leave it out")
    seed = fields.whole("seed", -(2**63), 2**64 - 1)
    if seed is not None:
        options["seed"] = seed & (2**64 - 1)
    least_tokens = fields.whole("min_tokens", 0, 2**31 - 1)
    if least_tokens is not None:
        options["min_tokens"] = least_tokens
    stops = fields.strings("stop")
    if stops:
        options["stop_words"] = stops
    bad = fields.strings("bad_words")
    if bad:
        options["bad_words"] = bad
    ids = fields.raw("stop_token_ids")
    if ids:
        if not isinstance(ids, list) or not all(type(one) is int and 0 <= one < 2**31 for one in ids):
            raise invalid("stop_token_ids", "must be a list of token ids")
        options["stop_token_ids"] = ids
    count = fields.whole("n", 1, MAX_CHOICES) or 1
    if fields.flag("use_beam_search"):
        options["beam_width"] = count
    if count > 1:
        options["num_return_sequences"] = count
    priority = fields.whole("priority", -(2**31), 2**31 - 1)
    if priority:
        options["request_priority"] = max(-100, min(100, -priority))  # vLLM: lower is earlier; here: higher
    salt = fields.text("cache_salt", 128)
    if salt:
        options["cache_salt"] = salt
    if model.adapter is not None:
        options["lora_name"] = model.adapter
    options |= _guide(fields)
    return options, count


def _guide(fields: Fields) -> dict[str, Any]:
    """The guide that a request asks for, under any of the names that clients have for it."""
    found: list[tuple[str, str, str | None]] = []

    def schema(name: str, value: Any) -> None:
        found.append((name, "json_schema", value if isinstance(value, str) else _JSON.encode(value).decode()))

    given = fields.object("response_format")
    if given is not None:
        kind = given.get("type")
        named = given.get("json_schema")
        if kind == "json_object" and given.get("value") is None:
            found.append(("response_format", "json", None))
        elif kind in ("json_object", "json") and given.get("value") is not None:  # huggingface_hub, TGI
            schema("response_format", given["value"])
        elif kind == "regex" and isinstance(given.get("value"), str):
            found.append(("response_format", "regex", given["value"]))
        elif kind == "json_schema":
            if not isinstance(named, dict):
                raise invalid("response_format", "has type json_schema and no json_schema; add one")
            if named.get("schema") is None:
                found.append(("response_format", "json", None))
            else:
                schema("response_format", named["schema"])
        elif kind != "text":
            raise invalid("response_format", "must have the type text, json_object or json_schema")
    structured = fields.object("structured_outputs")
    for key, value in (structured or {}).items():
        if value is None or key in ("disable_any_whitespace", "disable_fallback", "disable_additional_properties"):
            continue
        if key == "json":
            schema("structured_outputs", value)
        elif key == "json_object" and value is True:
            found.append(("structured_outputs", "json", None))
        elif key in ("regex", "choice", "grammar"):
            kind = {"regex": "regex", "choice": "choice", "grammar": "ebnf_grammar"}[key]
            found.append(
                ("structured_outputs", kind, value if isinstance(value, str) else _JSON.encode(value).decode())
            )
        else:
            raise unsupported(f"structured_outputs.{key}")
    for name, kind in (("guided_json", "json_schema"), ("json_schema", "json_schema"), ("guided_regex", "regex"),
                       ("regex", "regex"), ("guided_choice", "choice"), ("guided_grammar", "ebnf_grammar"),
                       ("ebnf", "ebnf_grammar"), ("grammar", "ebnf_grammar")):  # fmt: skip
        value = fields.raw(name)
        if value is not None:
            found.append((name, kind, value if isinstance(value, str) else _JSON.encode(value).decode()))
    if len(found) > 1:
        raise invalid(found[1][0], f"and {found[0][0]} exclude each other; use one of them")
    if not found:
        return {}
    _, kind, guide = found[0]
    options: dict[str, Any] = {"guided_decoding_guide_type": kind}
    if guide is not None:
        options["guided_decoding_guide"] = guide
    return options
