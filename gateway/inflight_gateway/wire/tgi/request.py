"""A request to TGI's /generate, /generate_stream or / as the model's. Pure."""

from __future__ import annotations

import secrets
from typing import Any

import msgspec

from inflight_gateway.core.errors import invalid, unsupported
from inflight_gateway.core.events import ModelRequest
from inflight_gateway.core.models import Model
from inflight_gateway.wire.fields import Fields
from inflight_gateway.wire.openai import Plan, encoder
from inflight_gateway.wire.sampling import options_of
from inflight_gateway.wire.tgi.answer import Asked, Generation

MAX_TOP_TOKENS = 20
# They would change the answer.
REFUSED = ("decoder_input_details", "truncate", "watermark")
# Any of these asks for sampling, as do_sample does.
_SAMPLING = ("temperature", "top_k", "top_p", "typical_p")


def parse_whole(body: dict[str, Any], model: Model) -> Plan:
    """/generate. Raises `GatewayError`."""
    return _parse(body, model, stream=False)


def parse_stream(body: dict[str, Any], model: Model) -> Plan:
    """/generate_stream. Raises `GatewayError`."""
    return _parse(body, model, stream=True)


def parse_either(body: dict[str, Any], model: Model) -> Plan:
    """POST /: `stream` says which; a whole answer stands in a list. Raises `GatewayError`."""
    return _parse(body, model, stream=Fields(body).flag("stream") or False, listed=True)


def _parse(body: dict[str, Any], model: Model, stream: bool, listed: bool = False) -> Plan:
    outer = Fields(body)
    outer.ignore(("model", "stream"))
    inputs = outer.text("inputs", 1 << 24)
    if not inputs:
        raise invalid("inputs", "must be a text that is not empty")
    fields = Fields(outer.object("parameters") or {})
    fields.refuse(REFUSED)
    typical = fields.number("typical_p", 0, 1)
    if (fields.whole("best_of", 1, 128) or 1) != 1:
        raise unsupported("best_of", "is supported only where it is 1; leave it out")
    top = fields.whole("top_n_tokens", 0, MAX_TOP_TOKENS) or 0
    details = fields.flag("details") or False
    options, seed = _options(fields, model)
    if stream or details:
        options |= {"return_token_ids": True, "return_log_probs": True}
        options |= {"logprobs": top} if top else {}
    echo = inputs if fields.flag("return_full_text") else ""
    request = ModelRequest(model.triton_name, text=inputs, options=options)
    asked = Asked(details, top > 0, echo, seed, listed, len(inputs))
    unknown = [*outer.unknown(), *(f"parameters.{name}" for name in fields.unknown())]
    if typical not in (None, 1) and seed is not None:  # LangChain sends it always; a greedy answer has no use for it
        unknown.append("parameters.typical_p")
    return Plan((request,), Generation(model, asked), stream, unknown, model.id)


def _options(fields: Fields, model: Model) -> tuple[dict[str, Any], int | None]:
    """The model's parameters, and the seed where the answer is sampled."""
    values = {name: fields.raw(name) for name in ("temperature", "top_k", "top_p", "repetition_penalty",
                                                  "frequency_penalty", "stop", "seed")}  # fmt: skip
    wanted = fields.flag("do_sample")
    samples = wanted or any(fields.raw(name) is not None for name in _SAMPLING)
    if wanted is False and not samples:
        values["temperature"] = 0  # said, and not only left open
    elif not samples and "temperature" not in model.info.generation_defaults:
        values["temperature"] = 0
    most = fields.whole("max_new_tokens", 1, 2**31 - 1)
    values["response_format"] = _grammar(fields.object("grammar"))
    options, _ = options_of(Fields(values), model, most)
    adapter = fields.text("adapter_id", 256)
    if adapter:
        options["lora_name"] = adapter
    if "stop_words" in options:
        options["include_stop_str_in_output"] = True
    if options.get("temperature") == 0:
        return options, None
    options.setdefault("seed", secrets.randbits(63))  # chosen here, so that details can name it
    return options, options["seed"]


def _grammar(given: dict[str, Any] | None) -> dict[str, Any] | None:
    """TGI's grammar as OpenAI's response_format."""
    if given is None:
        return None
    kind, value = given.get("type"), given.get("value")
    if kind == "regex" and isinstance(value, str):
        return {"type": "regex", "value": value}
    if kind == "json_schema" and isinstance(value, dict):
        value = value.get("schema")
    if isinstance(value, str):
        try:
            value = msgspec.json.decode(value)
        except msgspec.DecodeError:
            raise invalid("grammar", "has a value that is not JSON") from None
    if kind not in ("json", "json_schema") or not isinstance(value, dict):
        raise invalid("grammar", "must have the type json, json_schema or regex, and a value of that kind")
    return {"type": "json_schema", "json_schema": {"schema": encoder.encode(value).decode()}}
