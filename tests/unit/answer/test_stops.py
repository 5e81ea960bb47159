from __future__ import annotations

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


def test_a_long_text_of_near_misses_stays_cheap() -> None:
    matcher = StopMatcher(["a" * 1023 + "b"])
    emitted = sum(len(matcher.push("a" * 7)[0]) for _ in range(2000))
    assert emitted + len(matcher.held) == 14_000
    assert len(matcher.held) == 1023
