"""Texts of a network of automata at random, and whether a text belongs to one; independent of the engine."""

from __future__ import annotations

import random

from inflight.grammar.network import Network

Stack = tuple[tuple[str, int], ...]  # (rule, state) of every rule that has been entered; empty at the end of a text


def sample(network: Network, rng: random.Random, length: int = 120) -> str | None:
    """A text that the network allows; beyond `length` it takes every way out, and gives up (None) at four times it."""
    out: list[str] = []
    back: list[tuple[str, int]] = []
    rule, place = network.root, 0
    while len(out) < 4 * length:
        state = network.rules[rule][place]
        ways: list[object] = [*state.moves, *state.calls.items()]
        if state.final:
            ways += [None] * (4 * len(ways) + 1 if len(out) > length else 1)
        way = rng.choice(ways)
        if way is None:
            if not back:
                return "".join(out)
            rule, place = back.pop()
        elif isinstance(way, tuple) and len(way) == 3:
            low, high, place = way
            near = rng.randint(low, min(high, low + 90))
            out.append(chr(rng.choice([low, high, near, rng.randint(low, high)])))
        else:
            assert isinstance(way, tuple)
            back.append((rule, way[1]))
            rule, place = way[0], 0
    return None


def accepts(network: Network, text: str) -> bool:
    """Whether the network allows `text`: all ways are followed, so a conflict cannot hide."""
    configurations = _closed(network, {((network.root, 0),)})
    for char in text:
        configurations = _closed(network, _moved(network, configurations, char))
    return () in configurations


def ways(network: Network, text: str) -> int:
    """The most configurations that are alive at once while `text` is read."""
    most = 0
    configurations = _closed(network, {((network.root, 0),)})
    for char in text:
        moved = _moved(network, configurations, char)
        most = max(most, len(moved))
        configurations = _closed(network, moved)
    return most


def _moved(network: Network, stacks: set[Stack], char: str) -> set[Stack]:
    """The configurations behind `char`, before any rule is entered or left."""
    moved = set()
    for stack in stacks - {()}:
        rule, place = stack[-1]
        for low, high, target in network.rules[rule][place].moves:
            if low <= ord(char) <= high:
                moved.add((*stack[:-1], (rule, target)))
    return moved


def _closed(network: Network, stacks: set[Stack]) -> set[Stack]:
    """With all that follow without a character: rules entered and left."""
    found = set()
    left = list(stacks)
    seen = set(left)
    while left:
        stack = left.pop()
        found.add(stack)
        if not stack:
            continue
        rule, place = stack[-1]
        state = network.rules[rule][place]
        nexts = [(*stack[:-1], (rule, target), (name, 0)) for name, target in state.calls.items()]
        if state.final:
            nexts.append(stack[:-1])
        for new in nexts:
            if new not in seen and len(new) < 60:
                seen.add(new)
                left.append(new)
    return found
