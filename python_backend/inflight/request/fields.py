"""Structured values inside a request: vLLM's `structured_outputs`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from inflight.engines.base import Guide
from inflight.errors import invalid

# vLLM's key → our kind of guide
_STRUCTURED = {
    "json": "json_schema",
    "regex": "regex",
    "choice": "choice",
    "grammar": "ebnf_grammar",
    "json_object": "json",
}


def guide_from_structured_outputs(value: Mapping[str, Any], max_bytes: int) -> Guide:
    """A guide from vLLM's form: an object with exactly one of json, regex, choice, grammar and json_object (true)."""
    keys = [key for key, content in value.items() if content is not None]
    if len(keys) != 1 or keys[0] not in _STRUCTURED:
        raise invalid("structured_outputs", f"must have exactly one of {', '.join(_STRUCTURED)}")
    kind, content = _STRUCTURED[keys[0]], value[keys[0]]
    if kind == "json":
        if content is not True:
            raise invalid("structured_outputs", "json_object must be true")
        return Guide("json", "")
    text = content if isinstance(content, str) and kind != "choice" else json.dumps(content)
    if not isinstance(content, str) and kind in ("regex", "ebnf_grammar"):
        raise invalid("structured_outputs", f"{keys[0]} must be a string")
    if len(text.encode()) > max_bytes:
        raise invalid("structured_outputs", f"is larger than the {max_bytes} bytes allowed")
    return Guide(kind, text)
