"""The phases of a drain: what is served, refused and said in each, in every order of orders."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from inflight.serving.drain import Drain, Phase, judge


def test_the_phases_follow_the_clock() -> None:
    drain = Drain()
    assert drain.phase(0.0) is Phase.SERVING
    number = drain.order(10.0, 5.0, 30.0)
    assert (drain.phase(14.9), drain.refuses(14.9)) == (Phase.NOTICE, False)
    assert (drain.phase(15.0), drain.refuses(15.0)) == (Phase.REFUSING, True)
    assert (drain.notice_left(12.0), drain.time_left(12.0), drain.time_left(45.0)) == (3.0, 33.0, 0.0)
    assert drain.finish(number)
    assert drain.phase(46.0) is Phase.DRAINED
    assert drain.undo()
    assert (drain.phase(46.0), drain.refuses(46.0)) == (Phase.SERVING, False)
    assert not drain.undo()


def test_an_order_after_another_gives_no_second_notice_and_its_own_limit() -> None:
    """SIGTERM after a preStop command, or a person who is in a hurry."""
    drain = Drain()
    number = drain.order(0.0, 5.0, 30.0)
    assert drain.order(6.0, 5.0, 60.0) == number
    assert drain.phase(6.0) is Phase.REFUSING
    assert drain.time_left(6.0) == 60.0
    assert drain.order(7.0, 0.0, 0.0) == number
    assert drain.time_left(7.0) == 0.0


def test_who_waits_for_a_drain_that_was_undone_does_not_end_the_next_one() -> None:
    drain = Drain()
    first = drain.order(0.0, 0.0, 30.0)
    drain.undo()
    second = drain.order(1.0, 5.0, 30.0)
    assert not drain.is_on(first)
    assert not drain.finish(first)
    assert drain.phase(1.0) is Phase.NOTICE
    assert drain.finish(second)


Orders = st.lists(st.tuples(st.floats(0, 10), st.floats(0, 10), st.floats(0, 10)), min_size=1, max_size=6)


@given(Orders, st.floats(0, 100))
def test_no_order_lengthens_the_notice_and_phases_only_go_on(
    orders: list[tuple[float, float, float]], at: float
) -> None:
    drain, now, refuse_at = Drain(), 0.0, float("inf")
    seen = []
    for wait, notice, limit in orders:
        now += wait
        drain.order(now, notice, limit)
        refuse_at = min(refuse_at, now + notice)
        assert abs(drain.notice_left(now) - max(0.0, refuse_at - now)) < 1e-9
        assert drain.time_left(now) >= drain.notice_left(now)
        seen.append(list(Phase).index(drain.phase(now)))
    assert seen == sorted(seen)
    assert drain.refuses(now + at) == (now + at >= refuse_at)


@given(
    st.sampled_from(["starting", "ready", "restarting", "failed", "stopped"]),
    st.sampled_from([*Phase]),
    st.sampled_from([None, "the queue is full (9 requests are under way)"]),
)
def test_ready_is_said_in_one_way_only(engine: str, phase: Phase, full: str | None) -> None:
    said = judge(engine, "", phase, 3.0, full)
    assert said.ready == (engine == "ready" and phase is Phase.SERVING and full is None)
    assert said.ready == (said.state == "ready") == (said.reason == "")
    assert said.phase is phase
