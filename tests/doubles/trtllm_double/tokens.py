"""The stand-in's "model": the next token is a function of everything before it, so that texts can be checked."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

MASK = (1 << 64) - 1
FIRST, COUNT = 300, 12_000  # ordinary tokens of any byte-level vocabulary


def advance(state: int, token: int) -> int:
    """The state after one more token."""
    return (state * 6364136223846793005 + token * 2 + 1442695040888963407) & MASK


def start(prompt: Iterable[int], seed: int | None = None, sequence: int = 0, adapter: int = 0) -> int:
    """The state after a prompt. `seed` is None for greedy, where the sequences of one request are equal."""
    state = adapter & MASK
    if seed is not None:
        state = advance(state, (seed ^ (sequence * 0x9E3779B9)) & MASK)
    for token in prompt:
        state = advance(state, token)
    return state


def candidate(state: int, attempt: int, vocabulary: int) -> int:
    """The `attempt`-th choice for the next token."""
    mixed = ((state + attempt * 0x9E3779B97F4A7C15) & MASK) * 0xBF58476D1CE4E5B9 & MASK
    return (
        FIRST + (mixed >> 33) % max(1, min(COUNT, vocabulary - FIRST))
        if vocabulary > FIRST
        else (mixed >> 33) % vocabulary
    )


def logprob(state: int) -> float:
    """The log-probability of a token chosen in `state`."""
    return -((state >> 40) % 1000) / 500.0 - 0.001


def logits(states: Sequence[int], vocabulary: int) -> Any:
    """[states, vocabulary] as a torch tensor: the next token has its log-probability, all others share the rest."""
    import torch

    rows = torch.empty(len(states), vocabulary)
    for row, state in zip(rows, states, strict=True):
        row.fill_(math.log(-math.expm1(logprob(state)) / (vocabulary - 1)))
        row[next_token(state, vocabulary, ())] = logprob(state)
    return rows


def perplexity(windows: Sequence[Sequence[int]], vocabulary: int) -> float:
    """Of texts under those logits, without a tensor; for tests."""
    losses = []
    for window in windows:
        for length in range(1, len(window)):
            state = start(window[:length])
            hit = next_token(state, vocabulary, ()) == window[length]
            losses.append(-logprob(state) if hit else -math.log(-math.expm1(logprob(state)) / (vocabulary - 1)))
    return math.exp(sum(losses) / len(losses))


def next_token(state: int, vocabulary: int, made: Sequence[int], bad_words: Sequence[Sequence[int]] = ()) -> int:
    """The next token; never one that would complete a bad word."""
    for attempt in range(64):
        token = candidate(state, attempt, vocabulary)
        tail = [*made, token]
        if not any(word and tail[-len(word) :] == list(word) for word in bad_words):
            return token
    raise AssertionError("every candidate is forbidden")


def expected(
    prompt: Sequence[int],
    count: int,
    vocabulary: int,
    *,
    seed: int | None = None,
    sequence: int = 0,
    adapter: int = 0,
    bad_words: Sequence[Sequence[int]] = (),
) -> list[int]:
    """What the stand-in answers to a prompt; for tests."""
    state, made = start(prompt, seed, sequence, adapter), list[int]()
    for _ in range(count):
        token = next_token(state, vocabulary, made, bad_words)
        made.append(token)
        state = advance(state, token)
    return made
