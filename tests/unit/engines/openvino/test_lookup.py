"""When guessing is left alone."""

from __future__ import annotations

import pytest

pytest.importorskip("openvino_genai")

from inflight.engines.openvino.lookup import LEAST_STEPS, MOST_PAUSE, Payoff

GOOD = (10 * LEAST_STEPS, 4 * LEAST_STEPS)
VAIN = (4 * LEAST_STEPS, 4 * LEAST_STEPS)


def left_alone(payoff: Payoff) -> int:
    """How many requests go the ordinary way before the next one that does not."""
    count = 0
    while not payoff.is_due():
        count += 1
    return count


def test_vain_guessing_is_tried_ever_more_seldom() -> None:
    payoff = Payoff()
    assert left_alone(payoff) == 0
    pauses = []
    for _ in range(7):
        payoff.ended(*VAIN)
        pauses.append(left_alone(payoff))
    assert pauses == [2, 4, 8, 16, 32, MOST_PAUSE, MOST_PAUSE]


def test_a_gain_forgets_what_was_in_vain() -> None:
    payoff = Payoff()
    for _ in range(3):
        payoff.ended(*VAIN)
    assert left_alone(payoff) == 8
    payoff.ended(*GOOD)
    assert left_alone(payoff) == 0
    payoff.ended(*VAIN)
    assert left_alone(payoff) == 2


def test_short_answers_say_nothing() -> None:
    payoff = Payoff()
    payoff.ended(LEAST_STEPS - 1, LEAST_STEPS - 1)
    assert payoff.is_due()
