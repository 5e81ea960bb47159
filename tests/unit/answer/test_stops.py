from __future__ import annotations

import random
import time
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inflight.answer.stops import StopMatcher
from tests.unit.machines.strategies import budget, cuts

pytestmark = pytest.mark.fast

# Few letters, so that stop strings overlap themselves and each other all the time.
TEXTS = st.text("ab🙂e\u0301", max_size=24) | st.text("ab", max_size=40)
STOPS = st.lists(st.text("ab🙂e\u0301", min_size=1, max_size=5), max_size=4)


def naive(text: str, stops: Sequence[str]) -> tuple[str, int | None]:
    """Character by character: (what may be emitted, characters read until the match; None without)."""
    for end in range(1, len(text) + 1):
        ending = [stop for stop in stops if text[:end].endswith(stop)]
        if ending:
            return text[: end - max(map(len, ending))], end
    return text, None


def could_become_a_stop(text: str, stops: Sequence[str]) -> str:
    """The longest ending of `text` that is a proper beginning of a stop string."""
    for length in range(len(text), 0, -1):
        ending = text[-length:]
        if any(stop.startswith(ending) and stop != ending for stop in stops):
            return ending
    return ""


@given(st.data(), TEXTS, STOPS)
@budget(600)
def test_any_cut_gives_what_reading_character_by_character_gives(
    data: st.DataObject, text: str, stops: list[str]
) -> None:
    matcher = StopMatcher(stops)
    emitted, stopped, read = "", False, 0
    for piece in data.draw(cuts(text)):
        out, stopped = matcher.push(str(piece))
        emitted += out
        read += len(piece)
        if stopped:
            break
        assert emitted + matcher.held == text[:read]
        assert matcher.held == could_become_a_stop(text[:read], stops), "held back longer or shorter than needed"
    if not stopped:
        emitted += matcher.flush()
    expected, end = naive(text, stops)
    assert (emitted, stopped) == (expected, end is not None)
    assert end is None or read >= end, "a match cannot be known before its last character"


@pytest.mark.parametrize(
    ("stops", "pieces", "emitted", "stopped"),
    [
        ([], ["a", "b"], ["a", "b"], False),
        (["\n\n"], ["one\n", "\ntwo"], ["one", ""], True),
        (["\n\n"], ["one\n", "two"], ["one", "\ntwo"], False),
        (["STOP", "ST"], ["a S", "TOP"], ["a ", ""], True),  # one a beginning of the other: the shorter ends first
        (["OP", "STOP"], ["STO", "P"], ["", ""], True),  # both end together: the longer is cut away whole
        (["aab"], ["a", "a", "a", "b"], ["", "", "a", ""], True),
        (["🙂🙂"], ["x🙂", "y"], ["x", "🙂y"], False),
        (["end"], ["the end"], ["the "], True),
        (["end"], ["end"], [""], True),
    ],
)
def test_what_leaves_at_each_piece(stops: list[str], pieces: list[str], emitted: list[str], stopped: bool) -> None:
    matcher = StopMatcher(stops)
    results = [matcher.push(piece) for piece in pieces]
    assert [text for text, _ in results] == emitted
    assert [found for _, found in results] == [False] * (len(pieces) - 1) + [stopped]


def test_held_text_is_released_once() -> None:
    matcher = StopMatcher(["END"])
    assert matcher.push("x EN") == ("x ", False)
    assert matcher.flush() == "EN"
    assert matcher.flush() == ""


def test_a_long_text_of_near_misses_is_held_no_longer_than_needed() -> None:
    matcher = StopMatcher(["a" * 1023 + "b"])
    emitted = sum(len(matcher.push("a" * 7)[0]) for _ in range(2000))
    assert emitted + len(matcher.held) == 14_000
    assert len(matcher.held) == 1023


ANSWER = "".join(random.Random(7).choices("the quick brown fox jumps over lazy dogs.", k=8000))
HOSTILE = {
    "pieces of the answer": [ANSWER[16 * number : 16 * number + 1023] + "#" for number in range(64)],
    "all from the beginning": [ANSWER[:1000] + chr(0x4E00 + number) * 24 for number in range(64)],
    "one of many": [ANSWER[:1000] + "#", *(ANSWER[number : number + 1000][::-1] + "#" * 24 for number in range(63))],
    "one letter": ["t" * (1023 - number) + "#" for number in range(64)],
    "two letters": ["ab" * 500 + "a" * number + "#" for number in range(24)] + ["ba" * 500 + "#"],
}


@pytest.mark.parametrize(
    ("stops", "answer"),
    [
        (HOSTILE["pieces of the answer"], ANSWER),
        (HOSTILE["pieces of the answer"], ANSWER[:500] * 16),
        (HOSTILE["all from the beginning"], ANSWER[:1000] * 8),
        (HOSTILE["one of many"], ANSWER[:1000] * 8),
        (HOSTILE["one letter"], "t" * 8000),
        (HOSTILE["one letter"], ("t" * 1000 + "x") * 8),
        (HOSTILE["two letters"], "ab" * 4000),
        (HOSTILE["two letters"], ("ab" * 499 + "b") * 8),
    ],
)
def test_what_a_piece_costs_does_not_grow_with_the_stop_strings(stops: list[str], answer: str) -> None:
    """The lock of a stream and the interpreter are held meanwhile."""
    matcher = StopMatcher(stops)
    began = time.thread_time()
    for start in range(0, 8000, 4):
        assert not matcher.push(answer[start : start + 4])[1]
    assert time.thread_time() - began < 2000 * 0.3e-3
