"""JSON texts as `nodes`: strings, numbers in a range, any value, and the white space between them.

White space is bounded (one blank, or one line break and an indent), because small models otherwise write nothing else.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Mapping

from inflight.grammar import chars
from inflight.grammar.chars import CharSet
from inflight.grammar.nodes import (
    EMPTY,
    Alt,
    Call,
    Chars,
    GrammarError,
    Node,
    Repeat,
    Seq,
    alt,
    literal,
    maybe,
    seq,
)

MAX_INDENT = 32
MAX_DIGITS = 15  # of a number without bounds: what a double keeps exactly
_SCALE = 10**6

_DIGIT = Chars(chars.of("0123456789"))
_HEX = Chars(chars.of("0123456789abcdefABCDEF"))
_QUOTE = literal('"')
_PLAIN: CharSet = chars.difference(chars.charset([(0x20, 0x10FFFF)]), chars.of('"\\'))
_NOT_SURROGATE = alt(
    [
        seq(Chars(chars.of("0123456789abcefABCEF")), _HEX, _HEX, _HEX),
        seq(Chars(chars.of("dD")), Chars(chars.of("01234567")), _HEX, _HEX),
    ]
)


def _any_char(escapes: str) -> Node:
    return alt([Chars(_PLAIN), seq(literal("\\"), alt([Chars(chars.of(escapes)), seq(literal("u"), _NOT_SURROGATE)]))])


_ANY_CHAR = _any_char('"\\/bfnrt')
_SHORT = {"\b": "\\b", "\f": "\\f", "\n": "\\n", "\r": "\\r", "\t": "\\t", '"': '\\"', "\\": "\\\\"}

WHITE = Call("white")
STRING = Call("string")
VALUE = Call("value")
OBJECT = Call("object")

_ZERO_TO = maybe(literal("-"))
_WHOLE = alt([literal("0"), seq(Chars(chars.of("123456789")), Repeat(_DIGIT, 0, MAX_DIGITS - 1))])
INTEGER: Node = seq(_ZERO_TO, _WHOLE)
_FRACTION = seq(literal("."), Repeat(_DIGIT, 1, MAX_DIGITS))
_EXPONENT = seq(Chars(chars.of("eE")), maybe(Chars(chars.of("+-"))), Repeat(_DIGIT, 1, 2))
NUMBER: Node = seq(_ZERO_TO, _WHOLE, maybe(_FRACTION), maybe(_EXPONENT))

_PAIR = seq(STRING, literal(":"), WHITE, VALUE)
_VALUES = seq(VALUE, Repeat(seq(literal(","), WHITE, VALUE), 0, None), WHITE)
_PAIRS = seq(_PAIR, Repeat(seq(literal(","), WHITE, _PAIR), 0, None), WHITE)
_ARRAY = seq(literal("["), WHITE, maybe(_VALUES), literal("]"))
ANY_OBJECT = seq(literal("{"), WHITE, maybe(_PAIRS), literal("}"))

RULES: Mapping[str, Node] = {
    "white": maybe(
        alt([literal(" "), seq(literal("\n"), alt([Repeat(literal(" "), 0, MAX_INDENT), Repeat(literal("\t"), 1, 8)]))])
    ),
    "string": seq(_QUOTE, Repeat(_ANY_CHAR, 0, None), _QUOTE),
    "value": alt([STRING, NUMBER, literal("true"), literal("false"), literal("null"), _ARRAY, OBJECT]),
    "object": ANY_OBJECT,
    "integer": INTEGER,
    "number": NUMBER,
}


PYTHON_RULES: Mapping[str, Node] = {
    **RULES,
    "string": seq(_QUOTE, Repeat(_any_char('"\\bfnrt'), 0, None), _QUOTE),  # Python knows no escaped slash
    "value": alt([STRING, NUMBER, literal("True"), literal("False"), literal("None"), _ARRAY, OBJECT]),
}
"""The same with Python's words for what is neither text, number, list nor object."""


def constant(value: object, python: bool = False) -> Node:
    """Exactly this value, in one spelling; `python`: as a literal of that language."""
    return literal(_python(value) if python else json.dumps(value, ensure_ascii=False))


def _python(value: object) -> str:
    if isinstance(value, list):
        return "[" + ", ".join(map(_python, value)) + "]"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{json.dumps(key, ensure_ascii=False)}: {_python(value[key])}" for key in value) + "}"
    return str(value) if value is None or isinstance(value, bool) else json.dumps(value, ensure_ascii=False)


def string_of_length(least: int, most: int | None) -> Node:
    """A string with so many characters."""
    return seq(_QUOTE, Repeat(_ANY_CHAR, least, most), _QUOTE)


def string_matching(pattern: Node) -> Node:
    """A string whose whole content matches `pattern` (a regular expression's nodes), escaped as JSON wants it."""
    return seq(_QUOTE, _escaped(pattern), _QUOTE)


def _escaped(node: Node) -> Node:
    if isinstance(node, Chars):
        options: list[Node] = []
        plain = chars.intersection(node.chars, _PLAIN)
        if plain:
            options.append(Chars(plain))
        for low, high in chars.difference(node.chars, _PLAIN):
            for code in range(low, high + 1):
                options.append(literal(_SHORT.get(chr(code), f"\\u{code:04x}")))
        return alt(options) if options else Chars(chars.NONE)
    if isinstance(node, Seq):
        return Seq(tuple(_escaped(part) for part in node.parts))
    if isinstance(node, Alt):
        return Alt(tuple(_escaped(option) for option in node.options))
    if isinstance(node, Repeat):
        return Repeat(_escaped(node.body), node.least, node.most)
    raise GrammarError("has a pattern that is not a regular expression")


def other_string(words: frozenset[str]) -> Node:
    """A string that is none of `words`, without escapes (so that no other spelling of a word slips in)."""
    return seq(_QUOTE, _other(words), _QUOTE)


def _other(words: frozenset[str]) -> Node:
    branches: dict[str, set[str]] = {}
    for word in words:
        if word:
            branches.setdefault(word[0], set()).add(word[1:])
    rest = chars.difference(_PLAIN, chars.of("".join(branches)))
    options: list[Node] = [] if "" in words else [EMPTY]
    options.append(seq(Chars(rest), Repeat(Chars(_PLAIN), 0, None)))
    options += [
        seq(literal(first), _other(frozenset(tails))) for first, tails in branches.items() if first in _plain(first)
    ]
    return alt(options)


def _plain(char: str) -> str:
    return char if chars.intersection(chars.of(char), _PLAIN) else ""


def integer_between(least: int | None, most: int | None) -> Node:
    """Whole numbers from `least` to `most`, both included; None is no bound."""
    if least is not None and most is not None and least > most:
        raise GrammarError(f"allows no number: the least ({least}) is more than the most ({most})")
    options: list[Node] = []
    if least is None or least < 0:
        low = 1 if most is None or most >= 0 else -most
        high = None if least is None else -least
        if high is None or high >= low:
            options.append(seq(literal("-"), _natural(low, high)))
    if most is None or most >= 0:
        options.append(_natural(max(least or 0, 0), most))
    return alt(options)


def _natural(least: int, most: int | None) -> Node:
    """`least` … `most` as decimal digits without leading zeros; without `most`, as many digits as `least` needs or
    `MAX_DIGITS`.
    """
    top = most if most is not None else 10 ** max(MAX_DIGITS, len(str(least))) - 1
    options: list[Node] = []
    for length in range(len(str(least)), len(str(top)) + 1):
        low = max(least, 10 ** (length - 1) if length > 1 else 0)
        high = min(top, 10**length - 1)
        if low <= high:
            options.append(_digits(str(low), str(high)))
    return alt(options)


def _digits(low: str, high: str) -> Node:
    """Strings of digits between two of the same length."""
    if not low:
        return EMPTY
    first, last = int(low[0]), int(high[0])
    zeros, nines = "0" * (len(low) - 1), "9" * (len(low) - 1)
    if first == last:
        return seq(literal(low[0]), _digits(low[1:], high[1:]))
    options: list[Node] = []
    if low[1:] != zeros:
        options.append(seq(literal(low[0]), _digits(low[1:], nines)))
        first += 1
    if high[1:] != nines:
        options.append(seq(literal(high[0]), _digits(zeros, high[1:])))
        last -= 1
    if first <= last:
        options.append(seq(Chars(chars.charset([(48 + first, 48 + last)])), Repeat(_DIGIT, len(zeros), len(zeros))))
    return alt(options)


def number_between(least: float | None, most: float | None, above: float | None, below: float | None) -> Node:
    """Numbers in a range; `above` and `below` do not belong to it. Whole numbers, and decimals: free ones between
    neighbouring whole numbers of the range, six digits where a border cuts.
    """
    low = max((bound for bound in (least, above) if bound is not None), default=None)
    high = min((bound for bound in (most, below) if bound is not None), default=None)
    options: list[Node] = []
    with contextlib.suppress(GrammarError):
        options.append(whole_between(least, most, above, below))
    options += _decimals(low, high)
    options += [seq(literal("-"), node) for node in _decimals(_negative(high), _negative(low))]
    if not options:
        raise GrammarError("allows no number between its bounds")
    return alt(options)


def _negative(bound: float | None) -> float | None:
    return None if bound is None else -bound


def _decimals(low: float | None, high: float | None) -> list[Node]:
    """Positive decimals strictly between two bounds."""
    if high is not None and high <= 0:
        return []
    low = max(low or 0.0, 0.0)
    options: list[Node] = []
    first, last = math.ceil(low), None if high is None else math.floor(high) - 1
    if last is None or first <= last:
        some = seq(literal("."), Repeat(_DIGIT, 0, MAX_DIGITS - 1), Chars(chars.of("123456789")))
        options.append(seq(_natural(first, last), some))
    for whole in {math.floor(low), math.floor(low if high is None else high)}:
        begin = math.floor(low * _SCALE) + 1 if whole < low else whole * _SCALE + 1
        end = (whole + 1) * _SCALE - 1
        if high is not None:
            end = min(end, math.ceil(high * _SCALE) - 1)
        if begin <= end and (whole < low or (high is not None and whole < high < whole + 1)):
            digits = (str(place - whole * _SCALE).rjust(6, "0") for place in (begin, end))
            options.append(seq(literal(f"{whole}."), _digits(*digits)))
    return options


def whole_between(least: float | None, most: float | None, above: float | None, below: float | None) -> Node:
    """Whole numbers in a range; `above` and `below` do not belong to it."""
    lows = [math.ceil(least)] if least is not None else []
    lows += [math.floor(above) + 1] if above is not None else []
    highs = [math.floor(most)] if most is not None else []
    highs += [math.ceil(below) - 1] if below is not None else []
    return integer_between(max(lows, default=None), min(highs, default=None))
