"""A request to /v1/messages, or to count its tokens. Pure."""

from __future__ import annotations

from typing import Any

from inflight_gateway.core.errors import invalid, unsupported
from inflight_gateway.core.models import Model
from inflight_gateway.wire.anthropic.answer import Count, Message
from inflight_gateway.wire.anthropic.turns import choice_of, messages_of, tools_of
from inflight_gateway.wire.conversation import Tools, request_of
from inflight_gateway.wire.effort import SWITCHES, template_kwargs
from inflight_gateway.wire.fields import Fields
from inflight_gateway.wire.openai import Plan, encoder
from inflight_gateway.wire.sampling import options_of

# They change no answer here.
IGNORED = (
    "model", "metadata", "service_tier", "cache_control", "inference_geo", "user_profile_id", "workspace_id",
    "diagnostics", "speed",
)  # fmt: skip
# They would change the answer.
REFUSED = ("container", "mcp_servers", "context_management")


def parse(body: dict[str, Any], model: Model) -> Plan:
    """One request. Raises `GatewayError`."""
    fields = Fields(body)
    most = fields.whole("max_tokens", 1, 2**31 - 1)
    if most is None:
        raise invalid("max_tokens", "must be given")
    stops = fields.strings("stop_sequences")
    messages, tools, more, told, thoughts = _asked(fields, model)
    output = Fields(fields.object("output_config") or {})
    effort = Fields({"reasoning_effort": output.raw("effort")})
    told = template_kwargs(effort, model, told)
    values: dict[str, Any] = {name: fields.raw(name) for name in ("temperature", "top_p", "top_k")}
    values |= {"stop": stops, "response_format": _format(output.object("format"))}
    options, _ = options_of(Fields(values), model, most)
    stream = fields.flag("stream") or False
    request = request_of(model, messages, tools, options | more | _told(told), stream)
    unknown = [*fields.unknown(), *(f"output_config.{name}" for name in output.unknown())]
    unknown += ["output_config.effort"] if effort.unknown() else []
    return Plan((request,), Message(model, stops, thoughts), stream, unknown, model.id)


def parse_count(body: dict[str, Any], model: Model) -> Plan:
    """A request to count the tokens of a prompt. Raises `GatewayError`."""
    fields = Fields(body)
    fields.ignore(("output_config",))
    messages, tools, more, told, _ = _asked(fields, model)
    request = request_of(model, messages, tools, {"max_tokens": 0, **more, **_told(told)}, stream=True)
    return Plan((request,), Count(), False, fields.unknown(), model.id)


def _told(kwargs: dict[str, Any]) -> dict[str, Any]:
    return {"chat_template_kwargs": encoder.encode(kwargs).decode()} if kwargs else {}


def _asked(fields: Fields, model: Model) -> tuple[list[dict[str, Any]], Tools, dict[str, Any], dict[str, Any], bool]:
    """Messages, tools, further options, what the template is told, and whether thoughts are shown."""
    fields.ignore(IGNORED)
    fields.refuse(REFUSED)
    messages, prefilled = messages_of(fields.raw("system"), fields.raw("messages"))
    choice, parallel = choice_of(fields.object("tool_choice"))
    tools = Tools(tools_of(fields.raw("tools") or []), choice, parallel)
    options: dict[str, Any] = {"continue_final_message": True} if prefilled else {}
    thinking, thinks = fields.object("thinking"), model.info.reasoning_format != "none"
    kind = "" if thinking is None else thinking.get("type")
    if kind not in ("", "enabled", "adaptive", "between_tools", "disabled"):
        raise invalid("thinking.type", "must be enabled, adaptive or disabled")
    if kind == "enabled" and not thinks:
        raise unsupported("thinking", "cannot be enabled: this model does not think; leave it out")
    switches = [name for name in SWITCHES if name in model.info.template_variables]
    if kind == "disabled" and thinks and not switches:
        raise unsupported("thinking", "cannot be disabled: this model's template has no switch for it; leave it out")
    told: dict[str, Any] = dict.fromkeys(switches, kind != "disabled") if kind else {}
    omitted = thinking is not None and thinking.get("display") == "omitted"
    if model.adapter is not None:
        options["lora_name"] = model.adapter
    return messages, tools, options, told, kind != "disabled" and not omitted


def _format(given: dict[str, Any] | None) -> dict[str, Any] | None:
    if given is None:
        return None
    if given.get("type") != "json_schema" or not isinstance(given.get("schema"), dict):
        raise invalid("output_config.format", "must have the type json_schema and a schema")
    return {"type": "json_schema", "json_schema": {"schema": given["schema"]}}
