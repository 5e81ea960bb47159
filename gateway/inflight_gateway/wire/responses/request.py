"""A request to /v1/responses. Pure."""

from __future__ import annotations

from typing import Any

from inflight_gateway.core.errors import invalid, unsupported
from inflight_gateway.core.models import Model
from inflight_gateway.wire.conversation import Tools, request_of
from inflight_gateway.wire.effort import template_kwargs
from inflight_gateway.wire.fields import Fields
from inflight_gateway.wire.openai import Plan, encoder
from inflight_gateway.wire.responses.answer import Response
from inflight_gateway.wire.responses.items import choice_of, messages_of, tools_of
from inflight_gateway.wire.sampling import options_of

# They change no answer here.
IGNORED = (
    "model", "user", "safety_identifier", "metadata", "store", "service_tier", "prompt_cache_key",
    "prompt_cache_retention", "stream_options", "max_tool_calls", "prompt_cache_options",
)  # fmt: skip
# They need a store, or would change the answer.
_STORED = ("previous_response_id", "conversation", "background", "prompt")
_CALLED = {"prompt": "prompt.id"}  # the whole field: elsewhere the model's prompt has that name
REFUSED = ("moderation", "context_management")
LOGPROBS = "message.output_text.logprobs"


def parse(body: dict[str, Any], model: Model) -> Plan:
    """One request. Raises `GatewayError`."""
    fields = Fields(body)
    fields.ignore(IGNORED)
    for name in _STORED:
        if fields.raw(name) not in (None, False, ""):
            raise unsupported(
                _CALLED.get(name, name),
                "needs a store of answers, which is not kept here; send the whole input instead",
            )
    fields.refuse(REFUSED)
    if fields.raw("truncation") not in (None, "disabled"):
        raise unsupported("truncation", "must be disabled: nothing is cut out of the input")
    messages = messages_of(fields.text("instructions", 1 << 24), fields.raw("input"))
    choice, declared = choice_of(fields.raw("tool_choice"), tools_of(fields.raw("tools") or []))
    tools = Tools(declared, choice, fields.flag("parallel_tool_calls"))
    text, reasoning = Fields(fields.object("text") or {}), Fields(fields.object("reasoning") or {})
    text.ignore(("verbosity",))
    reasoning.ignore(("summary", "generate_summary"))
    values = {name: fields.raw(name) for name in ("temperature", "top_p")}
    values["response_format"] = _format(text.object("format"))
    options, _ = options_of(Fields(values), model, fields.whole("max_output_tokens", 1, 2**31 - 1))
    effort = Fields({"reasoning_effort": reasoning.raw("effort")})
    kwargs = template_kwargs(effort, model, {})
    if kwargs:
        options["chat_template_kwargs"] = encoder.encode(kwargs).decode()
    include = fields.strings("include")
    top = fields.whole("top_logprobs", 0, 20)
    if top and LOGPROBS not in include:
        raise invalid("top_logprobs", f"needs {LOGPROBS} in include; add it")
    if LOGPROBS in include:
        options |= {"return_log_probs": True, "return_token_ids": True}
        options |= {"logprobs": top} if top else {}
    stream = fields.flag("stream") or False
    request = request_of(model, messages, tools, options, stream)
    renderer = Response(model, body, (top or 0) if LOGPROBS in include else None)
    unknown = [*fields.unknown(), *(f"text.{name}" for name in text.unknown())]
    unknown += [*(f"reasoning.{name}" for name in reasoning.unknown())]
    if effort.unknown():
        unknown.append("reasoning.effort")
    return Plan((request,), renderer, stream, unknown, model.id)


def _format(given: dict[str, Any] | None) -> dict[str, Any] | None:
    """Chat's response_format: there the schema lies one level deeper."""
    kind = "text" if given is None else given.get("type")
    if kind not in ("text", "json_object", "json_schema"):
        raise invalid("text.format", "must have the type text, json_object or json_schema")
    if given is None or kind != "json_schema":
        return given
    return {"type": "json_schema", "json_schema": {"schema": given.get("schema")}}
