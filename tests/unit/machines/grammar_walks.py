"""Texts of a network of automata at random, and whether a text belongs to one; independent of the engine."""

from __future__ import annotations

import random

from inflight.grammar.network import Network


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
    configurations: set[tuple[tuple[str, int], ...]] = _closed(network, {((network.root, 0),)})
    for char in text:
        moved = set()
        for stack in configurations - {()}:
            rule, place = stack[-1]
            for low, high, target in network.rules[rule][place].moves:
                if low <= ord(char) <= high:
                    moved.add((*stack[:-1], (rule, target)))
        configurations = _closed(network, moved)
    return () in configurations


def ways(network: Network, text: str) -> int:
    """The most configurations that are alive at once while `text` is read."""
    most = 0
    configurations = _closed(network, {((network.root, 0),)})
    for char in text:
        moved = set()
        for stack in configurations - {()}:
            rule, place = stack[-1]
            for low, high, target in network.rules[rule][place].moves:
                if low <= ord(char) <= high:
                    moved.add((*stack[:-1], (rule, target)))
        most = max(most, len(moved))
        configurations = _closed(network, moved)
    return most


def _closed(network: Network, stacks: set[tuple[tuple[str, int], ...]]) -> set[tuple[tuple[str, int], ...]]:
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
