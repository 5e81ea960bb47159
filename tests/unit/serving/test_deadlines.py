"""The heap of deadlines: the soonest first, nothing that has ended, and no more room than what has not needs."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inflight.serving.deadlines import LEAST, Deadlines
from tests.unit.machines.strategies import budget

pytestmark = pytest.mark.fast


@dataclasses.dataclass(eq=False)
class Item:
    at: float
    closed: bool = False


@given(st.lists(st.tuples(st.floats(0.0, 100.0), st.booleans()), max_size=60), st.floats(0.0, 100.0))
@budget(200)
def test_what_is_due_comes_once_and_in_order(entries: list[tuple[float, bool]], now: float) -> None:
    deadlines: Deadlines[Item] = Deadlines()
    items = [Item(at, closed) for at, closed in entries]
    for item in items:
        deadlines.add(item.at, item)
    due = [item.at for item in deadlines.due(now)]
    assert due == sorted(item.at for item in items if item.at <= now and not item.closed)
    assert not list(deadlines.due(now))
    following = deadlines.next()
    assert following is None or following > now


def test_what_has_ended_does_not_pile_up() -> None:
    deadlines: Deadlines[Item] = Deadlines()
    open_ones = [Item(1.0) for _ in range(10)]
    for item in open_ones:
        deadlines.add(item.at, item)
    for _ in range(10_000):
        deadlines.add(2.0, Item(2.0, closed=True))
        assert len(deadlines._heap) <= 2 * len(open_ones) + LEAST + 1
    assert list(deadlines.due(1.0)) == open_ones
