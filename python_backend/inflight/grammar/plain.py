"""JSON Schemas with the same meaning in fewer words: what says nothing is left out, what older drafts and OpenAPI 3.0
write in their own way is written as draft 2020-12 has it. Nothing is lost here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from inflight.grammar.nodes import Alt, Call, Chars, GrammarError, Node, Repeat
from inflight.grammar.regex import parse_regex

_BEYOND = 10**15
_BOUNDS = (("minimum", "exclusiveMinimum"), ("maximum", "exclusiveMaximum"))


def plain(schema: Mapping[str, Any]) -> dict[str, Any]:
    """One schema, without what is nested in it."""
    found = dict(schema)
    if found.get("uniqueItems") is False:
        del found["uniqueItems"]
    if found.get("minProperties") == 0:
        del found["minProperties"]
    if found.get("propertyNames") in ({}, True, {"type": "string"}):  # as zod writes z.record
        del found["propertyNames"]
    for inclusive, exclusive in _BOUNDS:  # a boolean in draft 4 and OpenAPI 3.0
        if isinstance(found.get(exclusive), bool) and found.pop(exclusive) and inclusive in found:
            found[exclusive] = found.pop(inclusive)
    if found.get("type") == "integer":  # beyond the fifteen digits that are written
        for keyword, sign in (("minimum", -1), ("maximum", 1)):
            if isinstance(found.get(keyword), int) and abs(found[keyword]) >= _BEYOND and sign * found[keyword] > 0:
                del found[keyword]
    if isinstance(found.get("items"), list):  # a tuple before draft 2020-12
        found["prefixItems"] = found.pop("items")
        if "additionalItems" in found:
            found["items"] = found.pop("additionalItems")
    for keyword in ("anyOf", "oneOf"):  # zod writes {"not": {}} for undefined
        options = found.get(keyword)
        if isinstance(options, list) and any(option != {"not": {}} for option in options):
            found[keyword] = [option for option in options if option != {"not": {}}]
    _lengths(found)
    return found


def with_null(schema: Mapping[str, Any]) -> dict[str, Any]:
    """OpenAPI 3.0's `nullable` as a type, a value or an alternative."""
    found = dict(schema)
    if found.pop("nullable", False) is not True:
        return found
    if isinstance(found.get("enum"), list):
        if None not in found["enum"]:
            found["enum"] = [*found["enum"], None]
        if isinstance(found.get("type"), str):
            found["type"] = [found["type"], "null"]
    elif isinstance(found.get("type"), str) and found["type"] != "null":
        found["type"] = [found["type"], "null"]
    else:
        for keyword in ("anyOf", "oneOf"):
            if isinstance(found.get(keyword), list) and {"type": "null"} not in found[keyword]:
                found[keyword] = [*found[keyword], {"type": "null"}]
    return found


def _lengths(found: dict[str, Any]) -> None:
    """Lengths that the form of a string has by itself."""
    least, most = 0, None
    if isinstance(found.get("pattern"), str):
        try:
            least, most = _lengths_of(parse_regex(found["pattern"]))
        except (GrammarError, RecursionError):
            return
    elif isinstance(found.get("format"), str):
        least = 1  # no format takes the empty string
    if _is_count(found.get("minLength")) and found["minLength"] <= least:
        del found["minLength"]
    if most is not None and _is_count(found.get("maxLength")) and found["maxLength"] >= most:
        del found["maxLength"]


def _lengths_of(node: Node) -> tuple[int, int | None]:
    """The fewest and the most characters of a text; None: without end."""
    if isinstance(node, Chars):
        return 1, 1
    if isinstance(node, Call):
        return 0, None
    if isinstance(node, Repeat):
        least, most = _lengths_of(node.body)
        return least * node.least, 0 if most == 0 else None if most is None or node.most is None else most * node.most
    parts = [_lengths_of(part) for part in (node.options if isinstance(node, Alt) else node.parts)]
    if not parts:
        return 0, 0
    fewest = [least for least, _ in parts]
    longest = [most for _, most in parts if most is not None]
    ends = len(longest) == len(parts)
    if isinstance(node, Alt):
        return min(fewest), max(longest) if ends else None
    return sum(fewest), sum(longest) if ends else None


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
