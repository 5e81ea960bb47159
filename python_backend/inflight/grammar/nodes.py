"""What every kind of guide becomes: expressions over characters and rules."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping

from inflight.grammar.chars import CharSet, of


class GrammarError(ValueError):
    """A guide cannot be used. The message completes the sentence "guided_decoding_guide …"."""


@dataclasses.dataclass(frozen=True)
class Chars:
    """One character out of a set."""

    chars: CharSet


@dataclasses.dataclass(frozen=True)
class Call:
    """A rule by its name."""

    rule: str


@dataclasses.dataclass(frozen=True)
class Seq:
    """One after the other; an empty one is the empty text."""

    parts: tuple[Node, ...]


@dataclasses.dataclass(frozen=True)
class Alt:
    """One of several."""

    options: tuple[Node, ...]


@dataclasses.dataclass(frozen=True)
class Repeat:
    """`body` at least `least` and at most `most` times (None: without end)."""

    body: Node
    least: int
    most: int | None


Node = Chars | Call | Seq | Alt | Repeat
EMPTY = Seq(())


@dataclasses.dataclass(frozen=True)
class Grammar:
    """Rules by name; `root` is where a text begins. Rules in `opaque` are always called, never copied to their callers:
    they save room where what follows can be told from their first character.
    """

    rules: Mapping[str, Node]
    opaque: frozenset[str] = frozenset()
    root: str = "root"


def literal(text: str) -> Node:
    """Exactly `text`."""
    if "\0" in text:
        raise GrammarError("contains the character NUL, which no model can write")
    return Seq(tuple(Chars(of(char)) for char in text))


def seq(*parts: Node) -> Node:
    """One after the other."""
    return Seq(parts)


def alt(options: Iterable[Node]) -> Node:
    """One of several; a single one is itself."""
    found = tuple(options)
    return found[0] if len(found) == 1 else Alt(found)


def maybe(node: Node) -> Node:
    """`node` or nothing."""
    return Repeat(node, 0, 1)
