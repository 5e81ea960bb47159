"""How much an expression of a chat template would make, known before it is computed.

An estimate takes the most characters that are allowed, then a filter's or method's arguments. It may be a few times too
large, and stops to count above what is allowed; it is never much too small.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

MAX_STEPS = 1 << 26  # characters or elements copied by one expression that goes over its input again and again
MAX_INDENT = 64
PRINTED = 16
ESCAPED = 6  # characters that JSON may need for one
_NUMBER = re.compile(r"\d+")
_NESTED_FIELD = re.compile(r"\{[^{}]*\{")
PLAIN = frozenset(
    [
        "string",
        "upper",
        "lower",
        "title",
        "capitalize",
        "escape",
        "e",
        "forceescape",
        "urlencode",
        "striptags",
        "wordcount",
        "xmlattr",
        "truncate",
        "int",
        "float",
        "safe",
    ]
)


def size(value: Any, most: int, indent: int = 0) -> int:
    """Of `value` as text; the count stops above `most`. With `indent`, each element stands on an indented line."""
    total = 0
    level = [(value, 0)]
    while level and total <= most:
        item, depth = level.pop()
        total += indent * depth + 1
        if isinstance(item, (str, bytes)):
            total += len(item)
        elif isinstance(item, int):
            total += item.bit_length() // 3
        elif isinstance(item, Mapping):
            total += len(item)
            level += [(each, depth + 1) for pair in item.items() for each in pair] if total <= most else []
        elif isinstance(item, (list, tuple, set, frozenset)):
            total += len(item)
            level += [(each, depth + 1) for each in item] if total <= most else []
        else:
            total += 16
    return total


def _text(value: Any) -> str:
    return value if isinstance(value, str) else value.decode("latin-1") if isinstance(value, bytes) else ""


def _plain(most: int, value: Any, *others: Any, **named: Any) -> int:
    return size([value, *others, *named.values()], most)


def _printed(most: int, value: Any, *others: Any, **named: Any) -> int:
    """Python's pretty printer is slow."""
    return PRINTED * size(value, most)


def _compared(most: int, value: Any, other: Any = "", *others: Any, **named: Any) -> int:
    """Each character of `value` with each of `other`, where Python knows no better way."""
    text, chars = _text(value), _text(other)
    return most + 1 if len(text) * len(chars) > MAX_STEPS else len(text)


def _padded(most: int, value: Any, width: Any = 80, *others: Any) -> int:
    return size(value, most) + int(width)


def _expanded(most: int, value: Any, tabsize: Any = 8) -> int:
    return len(value) + _text(value).count("\t") * int(tabsize)


def _indented(most: int, value: Any, width: Any = 4, *others: Any, **named: Any) -> int:
    margin = len(width) if isinstance(width, str) else int(width)
    return size(value, most) + margin * (_text(value).count("\n") + 1)


def _joined(most: int, items: Any, d: Any = "", attribute: Any = None) -> int:
    return size(items, most) + len(items) * size(d, most)


def _replaced(most: int, value: Any, old: Any, new: Any, *others: Any, **named: Any) -> int:
    if size([value, old, new], most) > most:
        return most + 1
    return len(str(value)) + str(value).count(str(old)) * len(str(new))


def _translated(most: int, value: Any, table: Any, *others: Any) -> int:
    longest = max((len(each) for each in table.values() if isinstance(each, str)), default=1) if table else 1
    return len(value) * longest


def _wrapped(
    most: int, value: Any, width: Any = 79, break_long_words: Any = True, wrapstring: Any = None, *_: Any, **named: Any
) -> int:
    text = _text(value)
    lines = len(text) // max(1, int(width)) + text.count("\n") + 1
    if len(text) * lines > MAX_STEPS:  # it copies what is left at each line
        return most + 1
    return len(text) + lines * len(wrapstring or "\n")


def formatted(text: Any, values: Any, most: int) -> int:
    """`text % values`."""
    shown = _text(text)
    found = _NUMBER.findall(shown)
    if any(len(number) > 9 for number in found):
        return most + 1
    numbers = [int(number) for number in found]
    given = list(values.values()) if isinstance(values, Mapping) else values if isinstance(values, tuple) else [values]
    if "*" in shown:
        numbers += [each for each in given if isinstance(each, int)]
    longest = max((size(each, most) for each in given), default=0) + max(numbers, default=0)
    return len(shown) + shown.count("%") * longest


def _formats(most: int, text: Any, *values: Any, **named: Any) -> int:
    """The filter `format`."""
    return formatted(text, named or values, most)


def _fields(most: int, text: Any, *values: Any, **named: Any) -> int:
    """`text.format(…)` and its like."""
    shown = _text(text)
    found = _NUMBER.findall(shown)
    if any(len(number) > 9 for number in found):
        return most + 1
    numbers = [int(number) for number in found]
    given = [*values, *named.values()]
    if _NESTED_FIELD.search(shown):
        numbers += [each for each in given if isinstance(each, int)]
    longest = max((size(each, most) for each in given), default=0) + max(numbers, default=0)
    return len(shown) + shown.count("{") * longest


def _as_json(most: int, value: Any, ensure_ascii: Any = False, indent: Any = None, **named: Any) -> int:
    width = indent if isinstance(indent, int) else len(indent) if isinstance(indent, str) else 0
    if width > MAX_INDENT:
        return most + 1
    return size(value, most, width) * (ESCAPED if ensure_ascii else 1)


def _cells(most: int, value: Any, *counts: Any, **named: Any) -> int:
    return int(counts[0] if counts else named.get("linecount", named.get("slices", 0)))


def _summed(most: int, items: Any, attribute: Any = None, start: Any = 0) -> int:
    if isinstance(start, (int, float)):
        return 0
    total = sum(len(each) for each in items if hasattr(each, "__len__"))
    return total if total * len(items) <= MAX_STEPS else most + 1


ESTIMATES: dict[str, Callable[..., int]] = {
    **dict.fromkeys(PLAIN, _plain),
    **dict.fromkeys(("method rfind", "method rindex", "method rsplit", "method rpartition"), _compared),
    **dict.fromkeys(("method strip", "method lstrip", "method rstrip", "trim"), _compared),
    "pprint": _printed,
    **dict.fromkeys(("method center", "method ljust", "method rjust", "method zfill", "center"), _padded),
    **dict.fromkeys(("replace", "method replace"), _replaced),
    **dict.fromkeys(("batch", "slice"), _cells),
    **dict.fromkeys(("method format", "method format_map"), _fields),
    "method expandtabs": _expanded,
    "method join": lambda most, between, items: _joined(most, items, between),
    "method translate": _translated,
    "indent": _indented,
    "join": _joined,
    "wordwrap": _wrapped,
    "format": _formats,
    "tojson": _as_json,
    "sum": _summed,
}
