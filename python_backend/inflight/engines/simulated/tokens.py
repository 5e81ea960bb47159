"""The simulated engine's answers: tokens that depend on the prompt, the seed (when sampled) and the sequence, and on
nothing else. Pure.

A linear congruential generator walks through the vocabulary; 256 places at a time, because place k follows from the
first one by a multiplication and an addition of its own.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator, Sequence
from itertools import chain

import numpy as np
import numpy.typing as npt

from inflight.engines.base import EngineRequest, FinishReason

_FACTOR, _STEP, _MODULUS = 6364136223846793005, 1442695040888963407, 2**64
_RUN = 256


def _jumps() -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint64]]:
    """(a, b) so that the place k + 1 steps on is a[k] × place + b[k]."""
    factors, offsets = [_FACTOR], [_STEP]
    for _ in range(_RUN - 1):
        factors.append(factors[-1] * _FACTOR % _MODULUS)
        offsets.append((offsets[-1] * _FACTOR + _STEP) % _MODULUS)
    return np.array(factors, dtype=np.uint64), np.array(offsets, dtype=np.uint64)


_FACTORS, _OFFSETS = _jumps()


class Vocabulary:
    """Token ids [n] that answers are made of, and the end-of-sequence token that is none of them."""

    def __init__(self, token_ids: Sequence[int], eos: int) -> None:
        shuffled = list(token_ids)
        random.Random(0).shuffle(shuffled)
        self.tokens = np.array(shuffled, dtype=np.int64)
        self.eos = eos


class Answer:
    """One sequence's tokens, and where they end: after `length` tokens, for the reason `finish`, with the
    end-of-sequence token as the last one when `ends_with_eos`.
    """

    __slots__ = ("_start", "_vocabulary", "ends_with_eos", "finish", "ids", "length")

    def __init__(self, request: EngineRequest, index: int, vocabulary: Vocabulary, eos_every: int) -> None:
        sampling = request.sampling
        # Seed 0 is as good as any other, but 0 stands for greedy here, so that it is told by a number that is no seed.
        seed, place = (sampling.seed or 2**64, index) if sampling.temperature > 0 else (0, 0)
        material = repr((request.token_ids, seed, place)).encode()
        self._start = int.from_bytes(hashlib.sha256(material).digest()[:8], "little")
        self._vocabulary = vocabulary
        self.length, self.finish, self.ends_with_eos = sampling.max_tokens, FinishReason.LENGTH, False
        stops = [stop for stop in sampling.stop_token_ids if stop != vocabulary.eos]
        if stops:
            self._end_at_stop(stops, sampling.min_tokens)
        eos_at = max(eos_every, sampling.min_tokens + 1)
        if eos_every and vocabulary.eos in sampling.stop_token_ids and eos_at <= self.length:
            self.length, self.finish, self.ends_with_eos = eos_at, FinishReason.STOP, True
        # Nothing that refers to this answer: an answer that nobody takes to its end is then freed at once.
        self.ids = chain.from_iterable(map(np.ndarray.tolist, _runs(self._start, self.length, vocabulary.tokens)))

    def draws(self) -> random.Random:
        """Chances of its own, for the drafts that are accepted."""
        return random.Random(self._start)

    def first(self, count: int) -> list[int]:
        """The first `count` tokens, which it need not have given yet."""
        found: list[int] = []
        for run in _runs(self._start, self.length, self._vocabulary.tokens):
            found += run.tolist()
            if len(found) >= count:
                break
        del found[count:]
        return found

    def _end_at_stop(self, stops: Sequence[int], min_tokens: int) -> None:
        before = 0
        for run in _runs(self._start, self.length, self._vocabulary.tokens):
            for place in np.flatnonzero(np.isin(run, stops)).tolist():
                if before + place + 1 > min_tokens:
                    self.length, self.finish = before + place + 1, FinishReason.STOP
                    return
            before += len(run)


def _runs(place: int, left: int, tokens: npt.NDArray[np.int64]) -> Iterator[npt.NDArray[np.int64]]:
    """`left` tokens that follow the place, a run at a time."""
    while left > 0:
        count = min(_RUN, left)
        places = _FACTORS[:count] * np.uint64(place) + _OFFSETS[:count]
        yield tokens[((places >> np.uint64(33)) % np.uint64(len(tokens))).astype(np.intp)]
        place = int(places[-1])
        left -= count
