"""What a model thinks before its answer, as a part of the answer's grammar: free text between tags, then the guide."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from inflight.grammar import chars
from inflight.grammar.nodes import EMPTY, Chars, Grammar, Node, Repeat, alt, literal, maybe, seq

_OPENED = ((False, True), (False, False))  # optional, breaks
_OPEN_OR_NOT = ((True, True), (True, False), (False, True), (False, False))
_ROOT = "a thought and the root"  # no guide's rule can have a blank in its name


@dataclasses.dataclass(frozen=True, slots=True)
class Thought:
    """Free text up to `closing`. `opened`: the prompt has written `opening`; else the model may write it, or none."""

    opening: str
    closing: str
    opened: bool


def behind(thought: Thought, grammar: Grammar) -> Iterator[Grammar]:
    """The texts of `grammar`, behind a thought: in a form that leaves most to the model, and then in those without what
    may stand in the way of the grammar's own beginning. Where that may be a line break, the grammar has those between
    them; where it may be the thought's tag, a model that thinks has to.
    """
    for optional, breaks in _OPENED if thought.opened else _OPEN_OR_NOT:
        root = seq(_free(thought, optional, breaks), grammar.rules.get(grammar.root, EMPTY))
        yield Grammar({**grammar.rules, _ROOT: root}, grammar.opaque, _ROOT)


def text_until(closing: str) -> Node:
    """Any text up to the first `closing`, and that. It has its first character nowhere but in front."""
    # Parts of it may stand in the text, one behind the other, as long as something else follows; each further part
    # begins a new try.
    parts = [closing[:length] for length in range(1, len(closing))]
    tries = Repeat(alt(map(literal, parts)), 0, None)
    other = Chars(chars.difference(chars.ALL, chars.of(closing[0])))
    missed = [seq(literal(part), Chars(chars.difference(other.chars, chars.of(closing[len(part)])))) for part in parts]
    return seq(Repeat(alt([other, seq(tries, alt(missed))]), 0, None), tries, literal(closing))


def _free(thought: Thought, optional: bool, breaks: bool) -> Node:
    """Any text up to the closing tag; `optional`: or nothing at all. `breaks`: line breaks may follow."""
    free = seq(text_until(thought.closing), Repeat(literal("\n"), 0, 2 if breaks else 0))
    if thought.opened:
        return free
    begun = seq(literal(thought.opening), free)
    return maybe(begun) if optional else begun
