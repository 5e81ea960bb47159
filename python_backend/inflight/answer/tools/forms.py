"""Which form of calls a model was trained on, and the parser for it."""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from typing import Any

from inflight.answer.tools.events import ToolParser
from inflight.answer.tools.hermes import HermesParser
from inflight.answer.tools.llama3_json import Llama3JsonParser
from inflight.answer.tools.mistral import JsonListParser, MistralParser
from inflight.answer.tools.pythonic import PythonicParser
from inflight.answer.tools.qwen3_coder import Qwen3CoderParser


class ToolForm(enum.Enum):
    """Families of formats. `JSON_LIST` is what a guide makes of a model that has no form of its own."""

    HERMES = "hermes"
    LLAMA3_JSON = "llama3_json"
    MISTRAL = "mistral"
    PYTHONIC = "pythonic"
    QWEN3_CODER = "qwen3_coder"
    JSON_LIST = "json_list"
    NONE = "none"


MARKERS: Mapping[ToolForm, tuple[str, ...]] = {
    ToolForm.HERMES: ("<tool_call>", "</tool_call>"),
    ToolForm.LLAMA3_JSON: ("<|python_tag|>",),
    ToolForm.MISTRAL: ("[TOOL_CALLS]", "[ARGS]", "[CALL_ID]"),
    ToolForm.QWEN3_CODER: ("<tool_call>", "</tool_call>"),
}
"""What may be a special token of the model and still has to be seen as text."""


def form_of_template(template: str) -> ToolForm:
    """What a chat template shows of the form that its model writes calls in."""
    if "<tool_call>" in template:
        return ToolForm.QWEN3_CODER if "<function=" in template else ToolForm.HERMES
    if "[TOOL_CALLS]" in template:
        return ToolForm.MISTRAL
    if "<|python_tag|>" in template or '{"name": function name, "parameters":' in template:
        return ToolForm.LLAMA3_JSON
    if "[func_name1(" in template:
        return ToolForm.PYTHONIC
    return ToolForm.NONE


def make_parser(form: ToolForm, tools: Sequence[Mapping[str, Any]], max_calls: int | None = None) -> ToolParser | None:
    """A parser for one sequence; None where the text holds no calls. `tools` in OpenAI's form."""
    functions: list[Mapping[str, Any]] = [tool["function"] for tool in tools]
    names = [str(function["name"]) for function in functions]
    match form:
        case ToolForm.HERMES:
            return HermesParser(max_calls)
        case ToolForm.LLAMA3_JSON:
            return Llama3JsonParser(names, max_calls)
        case ToolForm.MISTRAL:
            return MistralParser(max_calls)
        case ToolForm.PYTHONIC:
            return PythonicParser(names, max_calls)
        case ToolForm.QWEN3_CODER:
            types = {name: _types(function.get("parameters")) for name, function in zip(names, functions, strict=True)}
            return Qwen3CoderParser(types, max_calls)
        case ToolForm.JSON_LIST:
            return JsonListParser(max_calls)
        case ToolForm.NONE:
            return None


def _types(schema: object) -> dict[str, str]:
    """Of each named parameter that cannot be text, its JSON type."""
    properties = schema.get("properties") if isinstance(schema, Mapping) else None
    if not isinstance(properties, Mapping):
        return {}
    types: dict[str, str] = {}
    for key, value in properties.items():
        kind = value.get("type") if isinstance(value, Mapping) else None
        if isinstance(kind, list):
            others = [item for item in kind if item != "null"]
            kind = others[0] if len(others) == 1 else None
        if kind is None and isinstance(value, Mapping) and ("anyOf" in value or "oneOf" in value or "$ref" in value):
            kind = "any"
        if isinstance(kind, str) and kind != "string":
            types[str(key)] = kind
    return types
