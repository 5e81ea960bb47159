"""A grammar with one way to read every text, as a network of deterministic automata, printed as EBNF.

Why: the engine's parser (Earley's, over tokens) keeps every way to read the text so far alive, for every token of the
vocabulary and at every step. With several ways that costs seconds per step, and other streams wait meanwhile. Here
rules that do not contain themselves are copied into their callers, every rule becomes a deterministic automaton, and
where rules still call each other the next character must decide which way to go (the LL(1) condition; Aho, Lam, Sethi,
Ullman: Compilers, §4.4). Then one way is alive at any time, whatever the text.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from inflight.grammar import chars
from inflight.grammar.automaton import State, automaton
from inflight.grammar.chars import CharSet
from inflight.grammar.nodes import Alt, Call, Grammar, GrammarError, Node, Repeat, Seq

MAX_TEXT = 1 << 20  # characters of the printed grammar, which are one byte each


class Conflict(GrammarError):
    """Two ways to read the same text."""


class Network:
    """The automata of a grammar's rules, by name; `root` is where a text begins."""

    def __init__(self, grammar: Grammar) -> None:
        """Raises `GrammarError` for a rule that is missing, for a grammar without any text, for one that is too large,
        and `Conflict` for one that can be read in two ways.
        """
        self.root = grammar.root
        called = {name: frozenset(_calls(body)) for name, body in grammar.rules.items()}
        _check_defined(grammar, called)
        kept = {grammar.root, *grammar.opaque, *_recursive(called)}
        reach = _reachable(grammar.root, called)

        def inline(name: str) -> Node | None:
            return None if name in kept else grammar.rules[name]

        self.rules: dict[str, list[State]] = {
            name: automaton(grammar.rules[name], inline) for name in sorted(kept & reach)
        }
        self._drop_dead_ends()
        self._check_conflicts()

    def _drop_dead_ends(self) -> None:
        """Remove every edge from which no end can be reached."""
        ends: dict[str, set[int]] = {name: set() for name in self.rules}
        changed = True
        while changed:
            changed = False
            for name, states in self.rules.items():
                for place in reversed(range(len(states))):
                    state = states[place]
                    if place not in ends[name] and (
                        state.final
                        or any(target in ends[name] for _, _, target in state.moves)
                        or any(0 in ends[rule] and target in ends[name] for rule, target in state.calls.items())
                    ):
                        ends[name].add(place)
                        changed = True
        if 0 not in ends[self.root]:
            raise GrammarError("allows no text at all")
        for name, states in self.rules.items():
            for state in states:
                state.moves = [move for move in state.moves if move[2] in ends[name]]
                state.calls = {
                    rule: target for rule, target in state.calls.items() if 0 in ends[rule] and target in ends[name]
                }

    def _check_conflicts(self) -> None:
        if not any(state.calls for states in self.rules.values() for state in states):
            return
        sets = _Sets(self.rules, self.root)
        for name, states in self.rules.items():
            for state in states:
                if not state.calls:
                    ways = [_moved(state)]
                else:
                    ways = [_moved(state), *(sets.predict_call(name, *call) for call in state.calls.items())]
                if state.final:
                    ways.append(sets.follow[name])
                seen = chars.NONE
                for way in ways:
                    both = chars.intersection(seen, way)
                    if both:
                        raise Conflict(
                            f"can be read in two ways (in rule {name!r}, at the character {chr(both[0][0])!r}), which "
                            "would slow the engine down: make the alternatives begin differently"
                        )
                    seen = chars.union(seen, way)
                empty = [rule for rule, target in state.calls.items() if sets.skips(name, rule, target)]
                if len(empty) + state.final > 1:
                    raise Conflict(f"can be read in two ways (rule {name!r} has two ways to be empty)")

    def print(self) -> str:
        """EBNF that the engine's compiler takes. Raises `GrammarError` when it is too large."""
        names = {(rule, 0): ("root" if rule == self.root else f"r{n}") for n, rule in enumerate(self.rules)}
        for rule, states in self.rules.items():
            for place in range(1, len(states)):
                names[rule, place] = f"s{len(names)}"
        lines = []
        for rule, states in self.rules.items():
            skipped = _literal_middles(states)
            for place in _used(states):
                if place not in skipped and (place == 0 or not _is_end(states[place])):
                    lines.append(f"{names[rule, place]} ::= {_body(rule, states, place, skipped, names)}")
        lines.sort(key=lambda line: not line.startswith("root ::="))
        text = "\n".join(lines) + "\n"
        if len(text) > MAX_TEXT:
            raise GrammarError(f"is too large: written out it has {len(text):,} characters; {MAX_TEXT:,} are allowed")
        return text


class _Sets:
    """Which characters can come first, and which can follow, by the usual fixpoints."""

    def __init__(self, rules: Mapping[str, list[State]], root: str) -> None:
        self._rules = rules
        self._nullable = {name: [state.final for state in states] for name, states in rules.items()}
        self._first = {name: [_moved(state) for state in states] for name, states in rules.items()}
        self.follow: dict[str, CharSet] = dict.fromkeys(rules, chars.NONE)
        self._until_stable(self._grow_first)
        self._until_stable(self._grow_follow)

    @staticmethod
    def _until_stable(grow: object) -> None:
        assert callable(grow)
        while grow():
            pass

    def _with_calls(self) -> Iterable[tuple[str, int, str, int]]:
        for name, states in self._rules.items():
            for place in reversed(range(len(states))):
                for rule, target in states[place].calls.items():
                    yield name, place, rule, target

    def _grow_first(self) -> bool:
        changed = False
        for name, place, rule, target in self._with_calls():
            new = chars.union(self._first[name][place], self._first[rule][0])
            if self._nullable[rule][0]:
                new = chars.union(new, self._first[name][target])
                if self._nullable[name][target] and not self._nullable[name][place]:
                    self._nullable[name][place] = changed = True
            if new != self._first[name][place]:
                self._first[name][place] = new
                changed = True
        return changed

    def _grow_follow(self) -> bool:
        changed = False
        for name, _, rule, target in self._with_calls():
            new = chars.union(self.follow[rule], self._first[name][target])
            if self._nullable[name][target]:
                new = chars.union(new, self.follow[name])
            if new != self.follow[rule]:
                self.follow[rule] = new
                changed = True
        return changed

    def predict_call(self, name: str, rule: str, target: int) -> CharSet:
        """Characters that choose the call of `rule` (leading to `target`) inside rule `name`."""
        found = self._first[rule][0]
        if self._nullable[rule][0]:
            found = chars.union(found, self._first[name][target])
            if self._nullable[name][target]:
                found = chars.union(found, self.follow[name])
        return found

    def skips(self, name: str, rule: str, target: int) -> bool:
        """Whether the call can lead to the end of rule `name` without any character."""
        return self._nullable[rule][0] and self._nullable[name][target]


def _calls(node: Node) -> Iterable[str]:
    left = [node]
    seen: set[int] = set()  # parts are shared
    while left:
        here = left.pop()
        if id(here) in seen:
            continue
        seen.add(id(here))
        if isinstance(here, Call):
            yield here.rule
        elif isinstance(here, Seq):
            left += here.parts
        elif isinstance(here, Alt):
            left += here.options
        elif isinstance(here, Repeat):
            left.append(here.body)


def _check_defined(grammar: Grammar, called: Mapping[str, frozenset[str]]) -> None:
    if grammar.root not in grammar.rules:
        raise GrammarError(f"has no rule {grammar.root!r}, where every text begins")
    for name, others in called.items():
        for other in others:
            if other not in grammar.rules:
                raise GrammarError(f"uses the rule {other!r} (in rule {name!r}), which is not defined")


def _reachable(start: str, called: Mapping[str, frozenset[str]]) -> frozenset[str]:
    seen = {start}
    left = [start]
    while left:
        for other in called[left.pop()]:
            if other not in seen:
                seen.add(other)
                left.append(other)
    return frozenset(seen)


def _recursive(called: Mapping[str, frozenset[str]]) -> frozenset[str]:
    """Rules that contain themselves, directly or through others."""
    return frozenset(
        name for name, others in called.items() if any(name in _reachable(other, called) for other in others)
    )


def _moved(state: State) -> CharSet:
    return chars.charset((low, high) for low, high, _ in state.moves)


def _used(states: list[State]) -> list[int]:
    seen = {0}
    order = [0]
    for place in order:
        for target in [move[2] for move in states[place].moves] + list(states[place].calls.values()):
            if target not in seen:
                seen.add(target)
                order.append(target)
    return order


def _is_end(state: State) -> bool:
    return state.final and not state.moves and not state.calls


def _single(state: State) -> tuple[int, int] | None:
    """(character, target) of a state with one way only, by one character."""
    if state.final or state.calls or len(state.moves) != 1:
        return None
    low, high, target = state.moves[0]
    return (low, target) if low == high else None


def _literal_middles(states: list[State]) -> frozenset[int]:
    """States inside a run of single characters, which need no rule of their own."""
    arrivals: dict[int, int] = {0: 2}
    singles: set[int] = set()
    for state in states:
        for target in [move[2] for move in state.moves] + list(state.calls.values()):
            arrivals[target] = arrivals.get(target, 0) + 1
        only = _single(state)
        if only is not None:
            singles.add(only[1])
    return frozenset(place for place in singles if arrivals[place] == 1 and _single(states[place]) is not None)


def _body(
    rule: str, states: list[State], place: int, skipped: frozenset[int], names: Mapping[tuple[str, int], str]
) -> str:
    state = states[place]

    def then(target: int) -> str:
        return "" if _is_end(states[target]) else " " + names[rule, target]

    options = [""] if state.final else []
    only = _single(state)
    if only is not None:
        text = _escape(only[0])
        while only is not None and only[1] in skipped:
            only = _single(states[only[1]])
            assert only is not None
            text += _escape(only[0])
        assert only is not None
        return f'"{text}"{then(only[1])}'
    by_target: dict[int, list[tuple[int, int]]] = {}
    for low, high, target in state.moves:
        by_target.setdefault(target, []).append((low, high))
    for target, ranges in by_target.items():
        inside = "".join(_escape(low) if low == high else f"{_escape(low)}-{_escape(high)}" for low, high in ranges)
        options.append(f"[{inside}]{then(target)}")
    options += [f"{names[called, 0]}{then(target)}" for called, target in state.calls.items()]
    return " | ".join(option or '""' for option in options)


def _escape(code: int) -> str:
    char = chr(code)
    if char.isascii() and (char.isalnum() or char in " _"):
        return char
    return f"\\u{code:04X}" if code <= 0xFFFF else f"\\U{code:08X}"
