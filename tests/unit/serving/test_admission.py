from __future__ import annotations

import math

import pytest

from inflight.errors import ErrorCode, RequestError
from inflight.serving.admission import AGEING_S, AdmissionQueue, Reservation, worst_case
from tests.unit.machines.strategies import engine_request, info

pytestmark = pytest.mark.fast


def queue_of(
    strategy: str = "inflight", *, places: int = 4, blocks: int = 64, size: int = 100, tokens: int = 0
) -> AdmissionQueue:
    return AdmissionQueue(info(max_running=places, blocks_total=blocks, block_size=16), 0, size, tokens, strategy, 0.05)


def refused(queue: AdmissionQueue, *args: int, **changes: int) -> RequestError:
    with pytest.raises(RequestError) as caught:
        queue.offer(engine_request(*args, **changes), 0.0)
    return caught.value


@pytest.mark.parametrize(
    ("prompt", "answer", "sequences", "beams", "block_size", "reservation"),
    [
        (16, 16, 1, 1, 16, (1, 2)),
        (16, 17, 1, 1, 16, (1, 3)),
        (1, 1, 1, 1, 16, (1, 1)),
        (16, 16, 3, 1, 16, (3, 9)),  # none shared, and one more for each to copy on write
        (16, 16, 1, 4, 16, (4, 12)),
        (16, 16, 2, 4, 16, (4, 12)),
        (100, 100, 2, 1, 0, (2, 0)),  # the engine reserves by itself
    ],
)
def test_the_worst_case_of_a_request(
    prompt: int, answer: int, sequences: int, beams: int, block_size: int, reservation: tuple[int, int]
) -> None:
    request = engine_request(1, prompt, answer, num_sequences=sequences, beam_width=beams)
    assert worst_case(request, block_size) == Reservation(*reservation)


def test_a_worst_case_is_never_less_than_what_any_run_can_use() -> None:
    for prompt in range(1, 50, 7):
        for answer in range(1, 50, 5):
            blocks = worst_case(engine_request(1, prompt, answer), 16).blocks
            assert blocks * 16 >= prompt + answer
            assert (blocks - 1) * 16 < prompt + answer


def test_what_can_never_fit_is_refused_at_once_by_name() -> None:
    queue = queue_of(places=4, blocks=8)
    error = refused(queue, 1, 100, 100)
    assert (error.code, error.parameter) == (ErrorCode.INVALID_ARG, "max_tokens")
    assert "128" in error.message, "the message says how much there is"
    error = refused(queue, 2, num_sequences=5)
    assert (error.code, error.parameter) == (ErrorCode.INVALID_ARG, "num_return_sequences")
    error = refused(queue, 3, beam_width=5)
    assert (error.code, error.parameter) == (ErrorCode.INVALID_ARG, "beam_width")
    assert queue.waiting == 0
    queue.offer(engine_request(4, 64, 64), 0.0)
    assert queue.take(0.0) == [4]


def test_a_full_queue_refuses_with_unavailable() -> None:
    queue = queue_of(size=2)
    queue.offer(engine_request(1), 0.0)
    queue.offer(engine_request(2), 0.0)
    assert refused(queue, 3).code is ErrorCode.UNAVAILABLE
    queue.withdraw(1)
    queue.offer(engine_request(3), 0.0)
    assert queue.waiting == 2


def test_the_queue_is_bounded_by_prompt_tokens_too_but_never_refuses_the_first() -> None:
    queue = queue_of(tokens=100)
    queue.offer(engine_request(1, 300), 0.0)
    assert refused(queue, 2, 1).code is ErrorCode.UNAVAILABLE
    assert queue.take(0.0) == [1]
    queue.offer(engine_request(2, 100), 0.0)
    assert refused(queue, 3, 1).code is ErrorCode.UNAVAILABLE
    assert queue.withdraw(2)
    queue.offer(engine_request(3, 1), 0.0)


def test_places_and_blocks_both_bound_what_runs() -> None:
    queue = queue_of(places=2, blocks=64)
    for request_id in range(3):
        queue.offer(engine_request(request_id), 0.0)
    assert queue.take(0.0) == [0, 1]
    assert queue.take(1.0) == []
    assert queue.release(0, 1.0)
    assert queue.take(1.0) == [2]
    queue = queue_of(places=9, blocks=4)
    for request_id in range(3):
        queue.offer(engine_request(request_id, 16, 16), 0.0)
    assert queue.take(0.0) == [0, 1]
    assert queue.blocks_used == 4


def test_max_running_lowers_the_engines_limit_and_cannot_raise_it() -> None:
    assert AdmissionQueue(info(max_running=4), 2, 9, 0)._places == 2
    assert AdmissionQueue(info(max_running=4), 9, 9, 0)._places == 4
    assert AdmissionQueue(info(max_running=4), 0, 9, 0)._places == 4


def test_a_big_request_at_the_head_is_not_overtaken_by_small_ones() -> None:
    queue = queue_of(places=9, blocks=8)
    queue.offer(engine_request(1, 64, 32), 0.0)
    assert queue.take(0.0) == [1]
    queue.offer(engine_request(2, 64, 32), 0.1)
    queue.offer(engine_request(3, 1, 1), 0.2)
    assert queue.take(0.3) == []
    queue.release(1, 0.4)
    assert queue.take(0.4) == [2, 3]


def test_higher_priority_first_and_first_come_first_served_within_one() -> None:
    queue = queue_of(places=1)
    for request_id, priority in enumerate([0, 5, 0, 5, -5]):
        queue.offer(engine_request(request_id, priority=priority), 0.0)
    order = []
    while queue.waiting:
        (started,) = queue.take(0.0)
        order.append(started)
        queue.release(started, 0.0)
    assert order == [1, 3, 0, 2, 4]


def test_the_lowest_priority_is_not_starved_by_a_stream_of_the_highest() -> None:
    """One place, a fresh request of priority 100 at every service: the one of −100 runs within the promised time."""
    queue = queue_of(places=1, size=10_000)
    queue.offer(engine_request(0, priority=-100), 0.0)
    queue.offer(engine_request(1, priority=100), 0.0)
    now, request_id, started_at = 0.0, 1, math.inf
    while now < 300 * AGEING_S:
        (running,) = queue.take(now)
        if running == 0:
            started_at = now
            break
        now += 0.1
        request_id += 1
        queue.offer(engine_request(request_id, priority=100), now)
        queue.release(running, now)
    assert started_at <= 200 * AGEING_S + 0.1
    assert started_at > 190 * AGEING_S, "priorities must count for something"


def test_withdrawing_is_only_for_the_waiting_and_releasing_only_for_the_running() -> None:
    queue = queue_of()
    queue.offer(engine_request(1), 0.0)
    assert not queue.release(1, 0.0)
    assert queue.withdraw(1)
    assert not queue.withdraw(1)
    queue.offer(engine_request(1), 0.0)
    assert queue.take(0.0) == [1]
    assert not queue.withdraw(1)
    assert queue.release(1, 0.0)
    assert not queue.release(1, 0.0)
    assert (queue.places_used, queue.blocks_used, queue.waiting, queue.running) == (0, 0, 0, 0)


def test_withdrawn_entries_do_not_pile_up() -> None:
    queue = queue_of(places=1, size=10_000)
    queue.offer(engine_request(0), 0.0)
    assert queue.take(0.0) == [0]
    for request_id in range(1, 5000):
        queue.offer(engine_request(request_id), 0.0)
        assert queue.withdraw(request_id)
    assert len(queue._heap) < 200


def test_in_flight_joins_a_running_batch_at_once() -> None:
    queue = queue_of("inflight")
    queue.offer(engine_request(1), 0.0)
    assert queue.take(0.0) == [1]
    queue.offer(engine_request(2), 0.01)
    assert queue.take(0.01) == [2]
    assert queue.next_wakeup(0.01) is None


@pytest.mark.parametrize("strategy", ["dynamic", "static"])
def test_a_batch_runs_to_its_end_before_the_next(strategy: str) -> None:
    queue = queue_of(strategy, places=2)
    for request_id in range(5):
        queue.offer(engine_request(request_id), 0.0)
    assert queue.take(0.0) == [0, 1], "a full batch starts at once"
    assert queue.release(0, 1.0)
    assert queue.take(1.0) == [], "the freed place stays empty until the batch is over"
    assert queue.next_wakeup(1.0) is None
    assert queue.release(1, 1.1)
    assert queue.take(1.1) == [2, 3]


def test_dynamic_collects_for_a_window_after_the_first_arrival() -> None:
    queue = queue_of("dynamic")
    queue.offer(engine_request(1), 10.0)
    assert queue.take(10.0) == []
    assert queue.next_wakeup(10.01) == pytest.approx(0.04)
    queue.offer(engine_request(2), 10.03)
    assert queue.take(10.049) == []
    assert queue.take(10.0501) == [1, 2]


def test_dynamic_starts_at_once_what_waited_through_the_last_batch() -> None:
    queue = queue_of("dynamic")
    queue.offer(engine_request(1), 0.0)
    assert queue.take(0.06) == [1]
    queue.offer(engine_request(2), 0.07)
    queue.release(1, 5.0)
    assert queue.take(5.0) == [2]


def test_static_waits_again_for_a_full_batch_once_the_engine_is_free() -> None:
    queue = queue_of("static")
    queue.offer(engine_request(1), 0.0)
    assert queue.take(0.06) == [1]
    queue.offer(engine_request(2), 0.07)
    queue.release(1, 5.0)
    assert queue.take(5.0) == []
    assert queue.next_wakeup(5.0) == pytest.approx(0.05)
    for request_id in (3, 4, 5):
        queue.offer(engine_request(request_id), 5.01)
    assert queue.take(5.01) == [2, 3, 4, 5], "full before the wait is over"
