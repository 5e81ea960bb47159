"""Regular expressions in Python's syntax → `nodes`. The whole text has to match; \\d, \\w, \\s and . are ASCII's.

The standard library's own parser reads the pattern, so what it means is what `re.fullmatch(pattern, text, re.ASCII)`
means. What is not regular (look-around, back-references) or looks beyond the match (word borders) is refused.
"""

from __future__ import annotations

import re
import sys
from typing import Any

from inflight.grammar import chars
from inflight.grammar.chars import CharSet
from inflight.grammar.nodes import EMPTY, Alt, Chars, GrammarError, Node, Repeat, Seq

if sys.version_info >= (3, 11):
    from re import _constants as sre  # type: ignore[attr-defined]
    from re import _parser as sre_parse  # type: ignore[attr-defined]
else:
    import sre_constants as sre
    import sre_parse

MAX_REPEAT = 10_000

_DIGIT = chars.charset([(48, 57)])
_WORD = chars.charset([(48, 57), (65, 90), (95, 95), (97, 122)])
_SPACE = chars.of(" \t\n\r\f\v")
_CATEGORIES: dict[Any, CharSet] = {
    sre.CATEGORY_DIGIT: _DIGIT,
    sre.CATEGORY_NOT_DIGIT: chars.complement(_DIGIT),
    sre.CATEGORY_WORD: _WORD,
    sre.CATEGORY_NOT_WORD: chars.complement(_WORD),
    sre.CATEGORY_SPACE: _SPACE,
    sre.CATEGORY_NOT_SPACE: chars.complement(_SPACE),
}
_ANY = chars.complement(chars.of("\n"))
_BEGIN = (sre.AT_BEGINNING, sre.AT_BEGINNING_STRING)
_END = (sre.AT_END, sre.AT_END_STRING)
_NAMES = {
    "ASSERT": "look-around",
    "ASSERT_NOT": "look-around",
    "GROUPREF": "a back-reference",
    "GROUPREF_EXISTS": "a conditional group",
    "POSSESSIVE_REPEAT": "a possessive quantifier",
    "ATOMIC_GROUP": "an atomic group",
    "AT": "an anchor in the middle",
}


def parse_regex(pattern: str) -> Node:
    """Raises `GrammarError` with the reason for a pattern that is broken or not supported."""
    try:
        tree: Any = sre_parse.parse(pattern, re.ASCII.value)
    except re.error as error:
        raise GrammarError(f"is not a regular expression: {error}") from None
    except (RecursionError, OverflowError):
        raise GrammarError("is nested too deeply or has a repetition count beyond any bound") from None
    except Warning as warning:  # a doubtful pattern, where warnings are errors
        raise GrammarError(f"is not a regular expression: {warning}") from None
    if tree.state.flags & (re.IGNORECASE.value | re.MULTILINE.value | re.DOTALL.value | re.VERBOSE.value):
        raise GrammarError("sets flags inside the pattern, which is not supported")
    try:
        return _sequence(list(tree), True, True)
    except RecursionError:
        raise GrammarError("is nested too deeply") from None


def _sequence(items: list[Any], at_begin: bool, at_end: bool) -> Node:
    parts: list[Node] = []
    last = len(items) - 1
    for place, (kind, value) in enumerate(items):
        if kind is sre.AT:
            leading = at_begin and not parts and value in _BEGIN
            trailing = at_end and value in _END and all(other is sre.AT for other, _ in items[place:])
            if not (leading or trailing):
                raise GrammarError("is not supported: it has an anchor (^, $ or \\b) in the middle of the pattern")
            continue
        parts.append(_item(kind, value, at_begin and place == 0, at_end and place == last))
    return parts[0] if len(parts) == 1 else Seq(tuple(parts))


def _item(kind: Any, value: Any, at_begin: bool, at_end: bool) -> Node:
    if kind is sre.LITERAL:
        return Chars(_one(value))
    if kind is sre.NOT_LITERAL:
        return Chars(chars.complement(_one(value)))
    if kind is sre.ANY:
        return Chars(_ANY)
    if kind is sre.IN:
        return Chars(_class(value))
    if kind is sre.BRANCH:
        return Alt(tuple(_sequence(list(option), at_begin, at_end) for option in value[1]))
    if kind is sre.SUBPATTERN:
        _, added, removed, inner = value
        if added or removed:
            raise GrammarError("sets flags inside the pattern, which is not supported")
        return _sequence(list(inner), at_begin, at_end)
    if kind in (sre.MAX_REPEAT, sre.MIN_REPEAT):
        least, most, inner = value
        bound = None if most is sre.MAXREPEAT else int(most)
        if max(least, bound or 0) > MAX_REPEAT:
            raise GrammarError(
                f"repeats something {max(least, bound or 0):,} times; at most {MAX_REPEAT:,} are allowed"
            )
        body = _sequence(list(inner), False, False)
        return EMPTY if bound == 0 else Repeat(body, int(least), bound)
    raise GrammarError(f"has {_NAMES.get(str(kind), 'a construct')} in it, which is not supported")


def _one(code: int) -> CharSet:
    if code == 0:
        raise GrammarError("contains the character NUL, which no model can write")
    return chars.charset([(code, code)])


def _class(items: list[Any]) -> CharSet:
    negated = False
    found = chars.NONE
    for kind, value in items:
        if kind is sre.NEGATE:
            negated = True
        elif kind is sre.LITERAL:
            found = chars.union(found, chars.charset([(value, value)]))
        elif kind is sre.RANGE:
            found = chars.union(found, chars.charset([value]))
        elif kind is sre.CATEGORY:
            found = chars.union(found, _CATEGORIES[value])
        else:
            raise GrammarError("has a character class that is not supported")
    return chars.complement(found) if negated else found
