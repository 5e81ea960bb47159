"""What guided decoding answers: the shortest text that follows the guide, as token ids of the tokenizer given."""

from __future__ import annotations

import json
import re
from typing import Any


def guided_text(kind: str, guide: str | None) -> str:
    """A text that follows the guide. Raises `RuntimeError` for one that is not well-formed."""
    try:
        if kind == "JSON":
            return "{}"
        assert guide is not None
        if kind == "JSON_SCHEMA":
            return json.dumps(_instance(json.loads(guide)))
        if kind == "REGEX":
            text = re.sub(r"\\d|\[0-9\]", "7", re.sub(r"\[a-z\]|\\w", "a", guide))
            text = re.sub(r"(.)\{(\d+)\}", lambda match: match[1] * int(match[2]), text)
            text = re.sub(r"[+*?^$]", "", re.sub(r"\(([^()|]*)[^()]*\)", r"\1", text))
            assert re.fullmatch(guide, text), "only simple patterns are known to the stand-in"
            return text
        found = re.search(r'root\s*::=\s*"((?:\\.|[^"\\])*)"', guide)
        assert found, "no rule root with a literal"
        return str(json.loads(f'"{found[1]}"'))
    except (ValueError, AssertionError, re.error, KeyError, TypeError) as error:
        raise RuntimeError(f"[TensorRT-LLM][ERROR] the grammar cannot be compiled: {error}") from None


def _instance(schema: dict[str, Any]) -> Any:
    if "enum" in schema:
        return schema["enum"][0]
    kind = schema.get("type", "object")
    if kind == "object":
        return {name: _instance(schema["properties"][name]) for name in schema.get("required", [])}
    return {"string": "a", "integer": 1, "number": 1.5, "boolean": True, "null": None, "array": []}[kind]


def guided_tokens(kind: str, guide: str | None, tokenizer: str) -> list[int]:
    """The text's token ids; `tokenizer` is the content of a tokenizer.json."""
    from tokenizers import Tokenizer

    return list(Tokenizer.from_str(tokenizer).encode(guided_text(kind, guide), add_special_tokens=False).ids)
