"""Random schedules against the whole core of one model: whatever clients, engine and Triton do, and in whichever order
the threads come to it, every request ends exactly once, nothing stays reserved, and the counters are right.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from inflight.answer.stream import Stream
from inflight.model.parameters import model_parameters
from tests.unit.machines.delivery_model import World
from tests.unit.machines.strategies import budget

pytestmark = pytest.mark.fast

THREADS = ("parse", "guide", "dispatch", "engine", "send", "poll")
REQUESTS = st.fixed_dictionaries(
    {
        "text_input": st.sampled_from(["hello"] * 4 + ["hello " * 12, ""]),
        "stream": st.booleans(),
        "max_tokens": st.sampled_from([9, 9, 5, 3, 2, 1, 0]),
        "num_return_sequences": st.sampled_from([1, 1, 2]),
        "stop_words": st.sampled_from([[], [], ["cd"], ["zz"]]),
        "request_priority": st.sampled_from([-100, 0, 100]),
    },
    optional={"deadline_ms": st.sampled_from([30, 400]), "guided_decoding_guide": st.sampled_from(["a", "b", "bad"])},
)
TURNS = st.lists(st.sampled_from(THREADS), max_size=12)
PACES = st.lists(st.sampled_from([0, 1, 1, 2]), min_size=1, max_size=4)


def pace_of(choices: Sequence[int]) -> Callable[[int, int], int]:
    """The sequences of a request need not go at one pace."""
    return lambda request_id, index: choices[(request_id + index) % len(choices)]


def poison(stream: Stream) -> None:
    """From now on this stream raises whatever the engine makes for it."""

    def append(*_: object) -> None:
        raise RuntimeError("a bug of ours")

    stream.append = append  # type: ignore[method-assign, assignment]


STRATEGIES = model_parameters()["batching_strategy"].choices


class DeliveryMachine(RuleBasedStateMachine):
    """Each rule is one turn of one thread, or something that the outside world does."""

    @initialize(
        strategy=st.sampled_from(model_parameters()["batching_strategy"].choices),
        drain_ms=st.sampled_from([None, None, 0, 40, 2000]),
        hold_ms=st.sampled_from([0, 40, 2000]),
    )
    def begin(self, strategy: str, drain_ms: int | None, hold_ms: int) -> None:
        self.world = World(batching_strategy=strategy, restart_hold_ms=hold_ms)
        self.drain_ms = drain_ms  # how it ends: with a drain of that limit, or by itself

    # -- the outside world ---------------------------------------------------------------------------------------------

    @rule(
        kind=REQUESTS,
        count=st.integers(1, 3),
        hurry=st.sampled_from(
            ["", "parse", "parse guide", "parse dispatch", "parse dispatch engine send", "parse dispatch engine"]
        ),
    )
    def requests_arrive(self, kind: dict[str, Any], count: int, hurry: str) -> None:
        guided = {"guided_decoding_guide_type": "regex"} if "guided_decoding_guide" in kind else {}
        for _ in range(count):
            self.world.request_arrives(**kind, **guided)
            self.run_threads(hurry.split())

    @rule(which=st.integers(0, 30))
    def a_client_leaves(self, which: int) -> None:
        if self.world.records:
            self.world.records[which % len(self.world.records)].gone = True

    @rule(which=st.integers(0, 30), times=st.sampled_from([1, 1, 2, -1]))
    def triton_fails_to_send(self, which: int, times: int) -> None:
        record = self.world.records[which % len(self.world.records)] if self.world.records else None
        if record is not None and not record.terminals:
            record.breaks = times

    @rule(seconds=st.sampled_from([0.001, 0.01, 0.1, 1.0]))
    def time_passes(self, seconds: float) -> None:
        self.world.clock.sleep(seconds)

    @rule(turns=TURNS, back=st.sampled_from([True] * 7 + [False]))
    def the_engine_is_lost(self, turns: list[str], back: bool) -> None:
        if not self.world.engine.lost:
            self.world.engine_is_lost()
            self.run_threads(turns)
        if back:
            self.world.engine_comes_up()

    @rule(rare=st.integers(0, 7), turns=TURNS)
    def the_engine_is_given_up(self, rare: int, turns: list[str]) -> None:
        if rare == 0:
            self.world.engine_is_given_up()
            self.run_threads(turns)

    @rule(which=st.integers(0, 5), parameter=st.sampled_from([None, "guided_decoding_guide"]))
    def the_engine_refuses(self, which: int, parameter: str | None) -> None:
        self.world.engine_refuses(which, parameter)

    @rule(which=st.integers(0, 5))
    def a_bug_of_ours(self, which: int) -> None:
        live = self.world.live()
        if live:
            poison(live[which % len(live)].stream)

    @rule(offset=st.integers(1, 3))
    def a_request_is_too_large_for_a_frame(self, offset: int) -> None:
        self.world.engine.too_large.add(len(self.world.streams) + offset)

    # -- threads -------------------------------------------------------------------------------------------------------

    @rule(turns=TURNS, choices=PACES)
    def threads_run(self, turns: list[str], choices: list[int]) -> None:
        self.run_threads(turns, choices)

    @rule(rounds=st.integers(1, 6), choices=PACES)
    def threads_run_in_order(self, rounds: int, choices: list[int]) -> None:
        self.run_threads(["parse", "dispatch", "engine", "dispatch", "send"] * rounds, choices)

    def run_threads(self, turns: list[str], choices: Sequence[int] = (1,)) -> None:
        for turn in turns:
            if turn == "parse":
                self.world.parse_thread()
            elif turn == "guide":
                self.world.guide_thread()
            elif turn == "dispatch":
                self.world.dispatcher_thread()
            elif turn == "engine":
                self.world.engine_steps(pace_of(choices))
            elif turn == "send":
                self.world.sender_thread()
            else:
                self.world.poller_thread()

    @rule(choices=PACES)
    def the_engine_will_step_while_somebody_sends(self, choices: list[int]) -> None:
        self.world.pending_steps = [pace_of(choices)]

    @rule(meanwhile=st.integers(0, 6))
    def the_metrics_are_flushed(self, meanwhile: int) -> None:
        self.world.flush(meanwhile)

    @rule(stream=st.booleans(), first=st.integers(0, 1), tokens=st.integers(1, 6))
    def a_stop_string_ends_one_of_two_sequences_and_the_other_ends_by_itself(
        self, stream: bool, first: int, tokens: int
    ) -> None:
        self.world.request_arrives(num_return_sequences=2, stop_words=["cd"], max_tokens=9, stream=stream)
        self.run_threads(["parse", "dispatch", "dispatch"])
        for _ in range(tokens):
            self.world.engine_steps(lambda _, index: int(index == first))
        self.world.engine_steps(lambda _, index: 0 if index == first else 2)
        self.world.check_cancelled()

    @rule(tokens=st.integers(0, 4), times=st.integers(1, 2))
    def triton_fails_to_send_in_the_middle_of_a_stream(self, tokens: int, times: int) -> None:
        record = self.world.request_arrives(max_tokens=9, stream=True)
        self.run_threads(["parse", "dispatch", "dispatch", *["engine", "send"] * tokens])
        if not record.terminals:
            record.breaks = times
        self.run_threads(["engine", "send", "send"])

    @rule()
    def nothing_is_computed_for_nobody(self) -> None:
        self.world.check_cancelled()

    # -- what must hold ------------------------------------------------------------------------------------------------

    @invariant()
    def never_a_word_after_the_end(self) -> None:
        if hasattr(self, "world"):
            assert not self.world.violations()
            assert all(record.terminals <= 1 for record in self.world.records)

    def teardown(self) -> None:
        if not hasattr(self, "world"):
            return
        try:
            if self.drain_ms is not None:
                answer = self.world.drain(self.drain_ms)
                assert answer["left"] == 0, answer
            self.world.check_cancelled()
            self.world.settle()
            self.world.check_ends()
            self.world.check_counters()
        finally:
            self.world.close()


TestDeliveryMachine = DeliveryMachine.TestCase
TestDeliveryMachine.settings = settings(budget(200), stateful_step_count=40)
