"""Calls of tools → `nodes`: the tools' schemas inside the envelope that the model's family writes calls in.

The guide's text is JSON: {"form": one of `FORMS`, "tools": OpenAI's list, "parallel": bool}. At least one of the tools
is called; `parallel` lets further calls follow.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

from inflight.grammar import json_values as values
from inflight.grammar import tool_arguments
from inflight.grammar.json_schema import Converter
from inflight.grammar.loosen import loosen
from inflight.grammar.nodes import Call, Grammar, GrammarError, Node, Repeat, alt, literal, seq

# form → (before the first call, before each, the key of arguments, after each, between two, after the last)
_ENVELOPES: Final[Mapping[str, tuple[str, str, str, str, str, str]]] = {
    "hermes": ("", "<tool_call>\n", "arguments", "\n</tool_call>", "\n", ""),
    "llama3_json": ("", "", "parameters", "", "; ", ""),
    "mistral": ("[TOOL_CALLS][", "", "arguments", "", ", ", "]"),
    "json_list": ("[", "", "arguments", "", ", ", "]"),
}
_CALLS: Final[Mapping[str, tuple[str, str, str, str, str]]] = {
    tool_arguments.PYTHONIC: ("[", "{}(", ")", ", ", "]"),
    tool_arguments.QWEN3_CODER: ("", "<tool_call>\n<function={}>\n", "</function>\n</tool_call>", "\n", ""),
}
"""form → (before the first call, before the arguments, behind them, between two calls, after the last)"""
FORMS: Final = frozenset(_ENVELOPES) | tool_arguments.FORMS


def tools_grammar(guide: object, share: bool = True) -> Grammar:
    """The grammar of at least one call. Raises `GrammarError` for a strict tool whose schema cannot be kept exactly."""
    if not isinstance(guide, Mapping) or guide.get("form") not in FORMS or not guide.get("tools"):
        raise GrammarError("is no guide of tools")
    functions = [tool["function"] for tool in guide["tools"]]
    form, python = guide["form"], guide["form"] == tool_arguments.PYTHONIC
    document = {"tools": [_parameters(place, function) for place, function in enumerate(functions)]}
    converter = Converter(document, share, python)
    calls = []
    for place, (schema, function) in enumerate(zip(document["tools"], functions, strict=True)):
        if form in _CALLS:
            first, before, after, between, last = _CALLS[form]
            name = f"arguments:{place}"
            converter.rules[name] = seq(_named_arguments(form, converter, schema, function), literal(after))
            converter.opaque.add(name)
            calls.append(seq(literal(before.format(function["name"])), Call(name)))
        else:
            first, before, key, after, between, last = _ENVELOPES[form]
            head = f'{before}{{"name": {json.dumps(function["name"])}, "{key}": '
            calls.append(seq(literal(head), _arguments(converter, schema, function), literal("}" + after)))
    call = alt(calls)
    more: Node = Repeat(seq(literal(between), call), 0, None) if guide.get("parallel", True) else seq()
    root = seq(literal(first), call, more, literal(last))
    rules = values.PYTHON_RULES if python else values.RULES
    return Grammar({**rules, **converter.rules, "root": root}, frozenset(converter.opaque))


def _named_arguments(form: str, converter: Converter, schema: object, function: Mapping[str, Any]) -> Node:
    if not isinstance(schema, Mapping):
        raise GrammarError(f"of {function['name']} has no parameters with names")
    strict = function.get("strict") is True
    try:
        return tool_arguments.arguments(form, converter, schema, strict, 1)
    except GrammarError as error:
        raise GrammarError(f"of {function['name']} {error}") from None


def _arguments(converter: Converter, schema: object, function: Mapping[str, Any]) -> Node:
    try:
        return converter.convert(schema, False, 1)
    except GrammarError as error:
        if function.get("strict") is True:
            raise GrammarError(f"of {function['name']} {error}") from None
        return values.OBJECT


def relaxations(tools: Sequence[Mapping[str, Any]]) -> list[str]:
    """What is not kept of the schemas of tools that are not strict, each as `tool/path: keyword`."""
    notes = []
    for tool in tools:
        function = tool["function"]
        if function.get("strict") is not True and function.get("parameters"):
            notes += [f"{function['name']}{note}" for note in loosen(function["parameters"])[1]]
    return notes


def any_values(schema: object) -> dict[str, Any]:
    """The schema of a tool's parameters with the same names; where their values are not plain, any value."""
    found = schema if isinstance(schema, Mapping) else {}
    names = found.get("properties")
    if not isinstance(names, Mapping):
        return {"type": "object"}
    required = found.get("required")
    kept = [name for name in required if name in names] if isinstance(required, list) else []
    values = {name: each if _is_plain(each) else {} for name, each in names.items()}
    return {"type": "object", "properties": values, "required": kept}


def _is_plain(schema: object) -> bool:
    return isinstance(schema, Mapping) and schema.get("type") in ("string", "integer", "number", "boolean", "null")


def _parameters(place: int, function: Mapping[str, Any]) -> object:
    """A tool's schema as a part of the document of all tools."""
    schema = function.get("parameters")
    if not schema:
        return {"type": "object", "additionalProperties": False}
    if function.get("strict") is not True:
        schema = loosen(schema)[0]
    if schema is True:
        schema = {"type": "object"}
    return _moved(schema, f"#/tools/{place}")


def _moved(value: Any, base: str) -> Any:
    """The same schema with its local references leading to where it stands now."""
    if isinstance(value, list):
        return [_moved(item, base) for item in value]
    if not isinstance(value, dict):
        return value
    moved = {}
    for key, inner in value.items():
        if key == "$ref" and isinstance(inner, str) and inner.startswith("#"):
            moved[key] = base + inner[1:]
        elif key in ("enum", "const"):
            moved[key] = inner
        else:
            moved[key] = _moved(inner, base)
    return moved
