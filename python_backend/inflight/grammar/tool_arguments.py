"""Arguments of a call in the forms that are no JSON object: Python's keyword arguments, and Qwen3-Coder's tags.

Such a form has room for named parameters alone. What a schema says beyond them (an object of any names, alternatives of
whole objects) has none, and the call is then written as JSON (`fits`).
"""

from __future__ import annotations

import keyword
from collections.abc import Mapping, Sequence
from typing import Any, Final

from inflight.grammar import json_values as values
from inflight.grammar.json_schema import Converter, unquoted
from inflight.grammar.loosen import loosen
from inflight.grammar.nodes import Call, GrammarError, Node, alt, literal, maybe, seq
from inflight.grammar.plain import plain, with_null
from inflight.grammar.thought import text_until

PYTHONIC: Final = "pythonic"
QWEN3_CODER: Final = "qwen3_coder"
FORMS: Final = frozenset({PYTHONIC, QWEN3_CODER})
MAX_NAME: Final = 128
_END: Final = "</parameter>"
_TAG: Final = "end of a value"
_FREE: Final = "free text"
_BESIDE: Final = ("anyOf", "oneOf", "allOf", "$ref", "enum", "const", "not", "if", "patternProperties", "propertyNames")


def fits(form: str, tools: Sequence[Mapping[str, Any]]) -> bool:
    """Whether every call of these tools (in OpenAI's form) can be written in the form."""
    return all(_has_room(form, tool["function"].get("parameters")) for tool in tools)


def _has_room(form: str, schema: object) -> bool:
    if not schema:
        return True
    if not isinstance(schema, Mapping) or any(word in schema for word in _BESIDE):
        return False
    properties = schema.get("properties")
    if schema.get("type", "object") != "object" or not isinstance(properties, Mapping):
        return False
    if not properties and schema.get("additionalProperties") is not False:
        return False
    needed = schema.get("required", [])
    if not isinstance(needed, list) or any(name not in properties for name in needed):
        return False
    if form == PYTHONIC:
        return all(str(name).isidentifier() and not keyword.iskeyword(name) for name in properties)
    return all(
        0 < len(name) <= MAX_NAME and not set("<>\n\0") & set(name) and _can_be_read(each)
        for name, each in properties.items()
    )


def _can_be_read(schema: object) -> bool:
    """Whether a value comes back as what the guide lets through, which knows the schema without what it cannot keep."""
    text = kind_of(schema) == "string"
    if isinstance(schema, Mapping) and (kind_of(loosen(schema)[0]) == "string") is not text:
        return False
    return not text or _takes_text(schema)


def kind_of(schema: object) -> str:
    """What a parameter's value is read as by the form of Qwen3-Coder: "string" is text as it stands, where its schema
    does not say that it is something else; "any" may be.
    """
    if not isinstance(schema, Mapping):
        return "string"
    kind = schema.get("type")
    if isinstance(kind, list):
        others = [item for item in kind if item != "null"]
        kind = others[0] if len(others) == 1 else None
    if kind is None and ("anyOf" in schema or "oneOf" in schema or "$ref" in schema):
        return "any"
    return kind if isinstance(kind, str) else "string"


def _takes_text(schema: object) -> bool:
    """Whether text is among what the schema takes, as far as can be told at once."""
    if not isinstance(schema, Mapping):
        return schema is not False
    if any(word in schema for word in ("allOf", "not", "if")):
        return False
    if "enum" in schema or "const" in schema:
        options = schema["enum"] if isinstance(schema.get("enum"), list) else [schema.get("const")]
        return all(isinstance(value, str) and _END[0] not in value and value.strip("\n") == value for value in options)
    kind = schema.get("type", "string")
    return kind == "string" or (isinstance(kind, list) and "string" in kind)


def arguments(form: str, converter: Converter, schema: Mapping[str, Any], strict: bool, depth: int) -> Node:
    """All parameters, in the schema's order. Raises `GrammarError` for what cannot be kept, if `strict`; else any value
    is let through there.
    """
    needed = schema.get("required", [])
    found = [
        (_parameter(form, converter, str(name), each, strict, depth), name in needed)
        for name, each in schema.get("properties", {}).items()
    ]
    if form == QWEN3_CODER:
        return seq(*(node if must else maybe(node) for node, must in found))
    comma = literal(", ")
    head: Node | None = None
    tail: Node = seq()
    for node, must in reversed(found):
        with_it = seq(node, tail)
        head = with_it if must or head is None else alt([with_it, head])
        tail = seq(comma, with_it) if must else alt([seq(comma, with_it), tail])
    if head is None:
        return seq()
    return head if any(must for _, must in found) else maybe(head)


def _parameter(form: str, converter: Converter, name: str, schema: object, strict: bool, depth: int) -> Node:
    if form == PYTHONIC:
        return seq(literal(f"{name}="), _value(converter, schema, strict, depth))
    begin = literal(f"<parameter={name}>\n")
    if kind_of(schema) != "string":
        converter.rules[_TAG] = literal(f"\n{_END}\n")
        converter.opaque.add(_TAG)  # short automata are found sooner
        return seq(begin, _value(converter, schema, strict, depth), Call(_TAG))
    return seq(begin, _text(converter, schema, strict), literal("\n"))


def _value(converter: Converter, schema: object, strict: bool, depth: int) -> Node:
    try:
        return converter.convert(schema, False, depth)
    except GrammarError:
        if strict:
            raise
        return values.VALUE


def _text(converter: Converter, schema: object, strict: bool) -> Node:
    """A value that stands without quotes, and the tag behind it."""
    schema = with_null(plain(schema)) if isinstance(schema, Mapping) else {}
    end = literal(f"\n{_END}")
    if "enum" in schema or "const" in schema:
        options = schema["enum"] if "enum" in schema else [schema["const"]]
        return seq(alt(literal(value) for value in options), end)
    try:
        node = unquoted(schema)
    except GrammarError:
        if strict:
            raise
        node = None
    if node is None:
        converter.rules[_FREE] = text_until(_END)
        converter.opaque.add(_FREE)  # one rule for all: it says itself where it ends
        return Call(_FREE)
    return seq(node, end)
