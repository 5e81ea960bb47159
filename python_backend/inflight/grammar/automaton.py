"""Expressions → nondeterministic → deterministic → smallest automaton, each bounded in size.

An edge is a range of characters or the call of a rule. Thompson's construction, the subset construction, and Moore's
partition refinement, as in any textbook (Hopcroft, Motwani, Ullman: Introduction to Automata Theory, ch. 2–4).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from inflight.grammar.chars import CharSet
from inflight.grammar.nodes import Call, Chars, GrammarError, Node, Repeat, Seq

MAX_NODES = 100_000  # of the nondeterministic automaton: repetition counts multiply
MAX_STATES = 16_000  # of a deterministic one
MAX_WORK = 300_000  # places looked at in the subset construction: about two seconds
MAX_REFINEMENTS = 64  # longer chains have nothing to merge; they stay as they are


@dataclasses.dataclass
class State:
    """`moves` are sorted, disjoint (low, high, target); `calls` map a rule's name to a target."""

    moves: list[tuple[int, int, int]] = dataclasses.field(default_factory=list)
    calls: dict[str, int] = dataclasses.field(default_factory=dict)
    final: bool = False


class _Nfa:
    """Built from the end to the beginning: a part that is used twice before the same continuation is built once."""

    def __init__(self, inline: Callable[[str], Node | None]) -> None:
        self._inline = inline
        self._built: dict[tuple[int, int], int] = {}
        self.empty: list[list[int]] = []
        self.moves: list[list[tuple[CharSet, int]]] = []
        self.calls: list[list[tuple[str, int]]] = []

    def new(self) -> int:
        if len(self.empty) >= MAX_NODES:
            raise GrammarError(
                f"is too large: written out, its repetitions and rules have more than {MAX_NODES:,} characters"
            )
        self.empty.append([])
        self.moves.append([])
        self.calls.append([])
        return len(self.empty) - 1

    def add(self, node: Node, end: int) -> int:
        """Put `node` in front of `end`; the place in front of it."""
        key = (id(node), end)
        if key not in self._built:
            self._built[key] = self._add(node, end)
        return self._built[key]

    def _add(self, node: Node, end: int) -> int:
        if isinstance(node, Seq):
            for part in reversed(node.parts):
                end = self.add(part, end)
            return end
        if isinstance(node, Call):
            body = self._inline(node.rule)
            if body is not None:
                return self.add(body, end)
        if isinstance(node, Repeat):
            return self._repeat(node, end)
        start = self.new()
        if isinstance(node, Chars):
            self.moves[start].append((node.chars, end))
        elif isinstance(node, Call):
            self.calls[start].append((node.rule, end))
        else:
            for option in node.options:
                self.empty[start].append(self.add(option, end))
        return start

    def _repeat(self, node: Repeat, end: int) -> int:
        here = end
        if node.most is None:
            here = self.new()
            self.empty[here] += [end, self.add(node.body, here)]
        else:
            for _ in range(node.most - node.least):
                behind, here = here, self.new()
                self.empty[here] += [end, self.add(node.body, behind)]
        for _ in range(node.least):
            here = self.add(node.body, here)
        return here

    def closure(self, places: frozenset[int]) -> frozenset[int]:
        seen = set(places)
        left = list(places)
        while left:
            for target in self.empty[left.pop()]:
                if target not in seen:
                    seen.add(target)
                    left.append(target)
        return frozenset(seen)


def automaton(node: Node, inline: Callable[[str], Node | None] = lambda name: None) -> list[State]:
    """The smallest deterministic automaton of `node`; it starts in state 0. `inline` gives a rule's body to copy it in
    place of a call, or None. Raises `GrammarError` when it would be too large.
    """
    nfa = _Nfa(inline)
    end = nfa.new()
    try:
        start = nfa.add(node, end)
    except RecursionError:
        raise GrammarError("is nested too deeply") from None
    return _minimize(_determinize(nfa, start, end))


def _determinize(nfa: _Nfa, start: int, end: int) -> list[State]:
    first = nfa.closure(frozenset([start]))
    numbers = {first: 0}
    order = [first]
    states: list[State] = []
    work = 0
    while len(states) < len(order):
        subset = order[len(states)]
        work += len(subset)
        if work > MAX_WORK:
            raise GrammarError("is too large: too many ways to read it are open at once; use smaller repetition counts")
        state = State(final=end in subset)
        states.append(state)

        def number(places: frozenset[int]) -> int:
            closed = nfa.closure(places)
            if closed not in numbers:
                if len(order) >= MAX_STATES:
                    raise GrammarError(
                        f"is too large: it needs more than {MAX_STATES:,} states; use smaller repetition counts"
                    )
                numbers[closed] = len(order)
                order.append(closed)
            return numbers[closed]

        calls: dict[str, set[int]] = {}
        for place in subset:
            for name, target in nfa.calls[place]:
                calls.setdefault(name, set()).add(target)
        for name in sorted(calls):
            state.calls[name] = number(frozenset(calls[name]))
        for low, high, targets in _split([move for place in subset for move in nfa.moves[place]]):
            state.moves.append((low, high, number(targets)))
    return states


def _split(moves: list[tuple[CharSet, int]]) -> list[tuple[int, int, frozenset[int]]]:
    """Disjoint ranges with all the targets of each."""
    events: list[tuple[int, bool, int]] = []
    for chars, target in moves:
        for low, high in chars:
            events += [(low, True, target), (high + 1, False, target)]
    events.sort()
    counts: dict[int, int] = {}
    pieces: list[tuple[int, int, frozenset[int]]] = []
    here = 0
    for place, opens, target in events:
        if counts and place > here:
            pieces.append((here, place - 1, frozenset(counts)))
        here = place
        counts[target] = counts.get(target, 0) + (1 if opens else -1)
        if not counts[target]:
            del counts[target]
    return pieces


def _minimize(states: list[State]) -> list[State]:
    group = [int(state.final) for state in states]
    count = len(set(group))
    for _ in range(MAX_REFINEMENTS):
        names: dict[object, int] = {}
        refined = []
        for place, state in enumerate(states):
            calls = tuple((name, group[target]) for name, target in state.calls.items())
            key = (group[place], _joined(state.moves, group), calls)
            refined.append(names.setdefault(key, len(names)))
        group = refined
        if len(names) == count:
            break
        count = len(names)
    else:
        group = list(range(len(states)))
    order = sorted(set(group), key=lambda number: number != group[0])
    place_of = {number: place for place, number in enumerate(order)}
    target_of = [place_of[number] for number in group]
    smallest: list[State | None] = [None] * len(order)
    for place, state in enumerate(states):
        if smallest[target_of[place]] is None:
            calls_now = {name: target_of[target] for name, target in state.calls.items()}
            smallest[target_of[place]] = State(list(_joined(state.moves, target_of)), calls_now, state.final)
    return [state for state in smallest if state is not None]


def _joined(moves: list[tuple[int, int, int]], target_of: list[int]) -> tuple[tuple[int, int, int], ...]:
    """`moves` with new targets; neighbours with the same target become one."""
    joined: list[tuple[int, int, int]] = []
    for low, high, target in moves:
        new = target_of[target]
        if joined and joined[-1][2] == new and joined[-1][1] + 1 == low:
            joined[-1] = (joined[-1][0], high, new)
        else:
            joined.append((low, high, new))
    return tuple(joined)
