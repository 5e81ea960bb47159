"""Sets of Unicode characters as sorted, disjoint, inclusive ranges of code points.

NUL and the surrogates belong to no set: no tokenizer makes them, and the engine's compiler crashes on NUL.
"""

from __future__ import annotations

from collections.abc import Iterable

CharSet = tuple[tuple[int, int], ...]

NONE: CharSet = ()
ALL: CharSet = ((1, 0xD7FF), (0xE000, 0x10FFFF))


def charset(ranges: Iterable[tuple[int, int]]) -> CharSet:
    """The set of all characters in `ranges` (any order, may overlap), clipped to `ALL`."""
    merged: list[tuple[int, int]] = []
    for low, high in sorted(ranges):
        if low > high:
            continue
        if merged and low <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], max(merged[-1][1], high))
        else:
            merged.append((low, high))
    return intersection(tuple(merged), ALL)


def of(text: str) -> CharSet:
    """The characters of `text`."""
    return charset((ord(char), ord(char)) for char in text)


def union(*sets: CharSet) -> CharSet:
    """Characters in any of `sets`."""
    return charset(pair for each in sets for pair in each)


def intersection(left: CharSet, right: CharSet) -> CharSet:
    """Characters in both."""
    found = []
    i = j = 0
    while i < len(left) and j < len(right):
        low, high = max(left[i][0], right[j][0]), min(left[i][1], right[j][1])
        if low <= high:
            found.append((low, high))
        if left[i][1] < right[j][1]:
            i += 1
        else:
            j += 1
    return tuple(found)


def difference(left: CharSet, right: CharSet) -> CharSet:
    """Characters of `left` that are not in `right`."""
    return intersection(left, complement(right))


def complement(chars: CharSet) -> CharSet:
    """All other characters."""
    gaps = []
    start = 0
    for low, high in chars:
        gaps.append((start, low - 1))
        start = high + 1
    gaps.append((start, 0x10FFFF))
    return intersection(tuple((low, high) for low, high in gaps if low <= high), ALL)
