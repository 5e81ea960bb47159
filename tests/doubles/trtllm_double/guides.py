"""What guided decoding answers: the shortest text that follows the guide, as token ids of the tokenizer given."""

from __future__ import annotations

import json
import re
from typing import Any

from inflight.grammar.ebnf import parse_ebnf
from inflight.grammar.nodes import Alt, Call, Chars, Grammar, Node, Seq


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
        return shortest(parse_ebnf(guide))
    except (ValueError, AssertionError, re.error, KeyError, TypeError) as error:
        raise RuntimeError(f"[TensorRT-LLM][ERROR] the grammar cannot be compiled: {error}") from None


def shortest(grammar: Grammar) -> str:
    """A shortest text of a grammar: texts of rules are improved until nothing changes."""
    texts: dict[str, str | None] = dict.fromkeys(grammar.rules)

    def of(node: Node) -> str | None:
        if isinstance(node, Chars):
            return chr(node.chars[0][0]) if node.chars else None
        if isinstance(node, Call):
            return texts[node.rule]
        if isinstance(node, Seq):
            parts = [of(part) for part in node.parts]
            return None if None in parts else "".join(part for part in parts if part is not None)
        if isinstance(node, Alt):
            found = [text for option in node.options if (text := of(option)) is not None]
            return min(found, key=len) if found else None
        if not node.least:
            return ""
        body = of(node.body)
        return None if body is None else body * node.least

    for _ in range(len(texts) + 1):
        before = dict(texts)
        for name, node in grammar.rules.items():
            text, old = of(node), texts[name]
            if text is not None and (old is None or len(text) < len(old)):
                texts[name] = text
        if texts == before:
            break
    text = texts[grammar.root]
    assert text is not None, "the grammar has no text"
    return text


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
