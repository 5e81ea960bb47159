"""Which server a request goes to: least in flight, affinity, and its bound."""

from __future__ import annotations

import math
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from inflight_gateway.core.choice import CROWDED, Candidate, choose


def fleet(*in_flight: int) -> list[Candidate]:
    return [Candidate(f"server-{number}:8001", count) for number, count in enumerate(in_flight)]


def test_without_affinity_the_least_busy_one_is_taken_and_equals_take_turns() -> None:
    assert choose(fleet(3, 1, 2), "", 0) == 1
    assert [choose(fleet(0, 0, 0), "", turn) for turn in range(6)] == [0, 1, 2, 0, 1, 2]


def test_an_affinity_stays_and_affinities_spread() -> None:
    servers = fleet(0, 0, 0, 0)
    chosen = {name: choose(servers, name, turn) for turn, name in enumerate(f"user {n}" for n in range(2000))}
    assert all(choose(servers, name, 7) == one for name, one in chosen.items())
    assert all(400 < count < 600 for count in Counter(chosen.values()).values())
    left = [one for place, one in enumerate(servers) if place != 2]  # one goes: only its own share moves
    for name, one in chosen.items():
        if one != 2:
            assert left[choose(left, name, 0)].name == servers[one].name


@given(st.lists(st.integers(0, 50), min_size=1, max_size=8), st.text(max_size=20), st.integers(0, 100))
def test_nobody_is_given_more_than_the_bound(in_flight: list[int], affinity: str, turn: int) -> None:
    servers = fleet(*in_flight)
    taken = servers[choose(servers, affinity, turn)]
    if len(servers) > 1:
        assert taken.in_flight < math.ceil(CROWDED * (sum(in_flight) + 1) / len(servers))
    if not affinity:
        assert taken.in_flight == min(in_flight)


def test_one_affinity_alone_fills_all_servers_to_the_bound_and_no_further() -> None:
    loads = [0, 0, 0]
    for turn in range(300):
        loads[choose(fleet(*loads), "everybody", turn)] += 1
        assert max(loads) <= math.ceil(CROWDED * sum(loads) / 3)
    assert sorted(loads)[-1] <= 125
