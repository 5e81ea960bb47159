"""Structured values inside a request: vLLM's `structured_outputs`, and `guided_decoding`, its name until vLLM 0.11."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import msgspec

from inflight.engines.base import Guide
from inflight.errors import did_you_mean, invalid, unsupported

# vLLM's key → our kind of guide
_STRUCTURED = {
    "json": "json_schema",
    "regex": "regex",
    "choice": "choice",
    "grammar": "ebnf_grammar",
    "json_object": "json",
}
# Fields of vLLM's that say how a guide is compiled. Triton's front end sends them all, none of them set.
_COMPILING = frozenset(
    {
        "backend",
        "_backend",
        "backend_was_auto",
        "_backend_was_auto",
        "disable_fallback",
        "disable_any_whitespace",
        "disable_additional_properties",
        "whitespace_pattern",
        "structural_tag",
    }
)


def guide_from_structured_outputs(name: str, value: Any, max_bytes: int) -> Guide:
    """A guide from vLLM's form: an object with exactly one of json, regex, choice, grammar and json_object (true), or,
    as vLLM's backend wants it, a string that holds that object. Fields that are null or false are not given. `name` is
    what the client called it.
    """
    fields = {
        key: content for key, content in _object(name, value).items() if content is not None and content is not False
    }
    for key in fields:
        if key in _COMPILING:
            raise unsupported(name, f"has {key}, which this model lacks; leave it out, or null or false")
        if key not in _STRUCTURED:
            shown = key if len(key) <= 64 else key[:61] + "..."
            raise invalid(name, f"has {shown}, which is none of its fields{did_you_mean(key[:64], _STRUCTURED)}")
    if len(fields) != 1:
        found = f"has {' and '.join(fields)}" if fields else "has none"
        raise invalid(name, f"must have exactly one of {', '.join(_STRUCTURED)}, but {found}")
    ((key, content),) = fields.items()
    kind = _STRUCTURED[key]
    if kind == "json":
        if content is not True:
            raise invalid(name, "json_object must be true")
        return Guide("json", "")
    text = content if isinstance(content, str) and kind != "choice" else json.dumps(content)
    if not isinstance(content, str) and kind in ("regex", "ebnf_grammar"):
        raise invalid(name, f"{key} must be a string")
    if len(text.encode()) > max_bytes:
        raise invalid(name, f"is larger than the {max_bytes} bytes allowed")
    return Guide(kind, text)


def _object(name: str, value: Any) -> Mapping[str, Any]:
    if isinstance(value, (str, bytes)):
        data = value.encode("utf-8", "surrogatepass") if isinstance(value, str) else value
        try:
            value = msgspec.json.decode(data)
        except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
            raise invalid(name, f"is not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise invalid(name, 'must be a JSON object such as {"regex": "a+"}, or a string that holds one')
    return value
