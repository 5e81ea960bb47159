"""Random requests to an engine that misbehaves: whatever it does for one, nobody else notices."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from inflight.engine_process.worker import UNDO_STEPS
from tests.doubles.misbehaving import FAULTS
from tests.unit.machines.delivery_fakes import LETTERS, Record
from tests.unit.machines.faulty_world import FaultyWorld
from tests.unit.machines.strategies import budget
from tests.unit.machines.tokenizer_kinds import KINDS

pytestmark = pytest.mark.fast

THREADS = ("parse", "dispatch", "worker", "send", "poll")


TOKENIZER = KINDS["byte_level"]()


def letters(count: int) -> str:
    """The text of so many tokens."""
    return TOKENIZER.decode([LETTERS[place % len(LETTERS)] for place in range(1, count + 1)])


class FaultsMachine(RuleBasedStateMachine):
    """Each rule is a turn of some threads, or something that the outside world does."""

    @initialize()
    def begin(self) -> None:
        self.world = FaultyWorld()
        self.asked: list[tuple[Record, str, int, int]] = []  # its record, what goes wrong, sequences, tokens
        self.may_be_lost: list[Record] = []  # were under way when the engine broke

    @rule(
        fault=st.sampled_from(["", "", *FAULTS]),
        count=st.integers(1, 2),
        sequences=st.integers(1, 2),
        tokens=st.integers(1, 9),
        stream=st.booleans(),
        deadline_ms=st.sampled_from([0, 0, 300]),
        hurried=st.booleans(),
    )
    def requests_arrive(
        self, fault: str, count: int, sequences: int, tokens: int, stream: bool, deadline_ms: int, hurried: bool
    ) -> None:
        for _ in range(count):
            values = {"cache_salt": fault} if fault else {}
            if deadline_ms and fault == "forgotten":
                values["deadline_ms"] = deadline_ms  # type: ignore[assignment]
            record = self.world.request_arrives(
                stream=stream, max_tokens=tokens, num_return_sequences=sequences, **values
            )
            self.asked.append((record, fault, sequences, tokens))
            if hurried:
                self.run_threads(["parse", "dispatch", "dispatch", "worker", "send"])

    @rule(which=st.integers(0, 30))
    def a_client_leaves(self, which: int) -> None:
        if self.asked:
            self.asked[which % len(self.asked)][0].gone = True

    @rule(turns=st.lists(st.sampled_from(THREADS), max_size=14))
    def threads_run(self, turns: list[str]) -> None:
        self.run_threads(turns)

    @rule(rounds=st.integers(1, 6))
    def threads_run_in_order(self, rounds: int) -> None:
        self.run_threads(["parse", "dispatch", "worker", "dispatch", "send"] * rounds)

    @rule(seconds=st.sampled_from([0.01, 1.0, 20.0]))
    def time_passes(self, seconds: float) -> None:
        self.world.clock.sleep(seconds)

    @rule(steps=st.integers(1, UNDO_STEPS - 5))
    def the_engine_stands_still(self, steps: int) -> None:
        self.world.engine.engine.pauses = steps  # type: ignore[attr-defined]

    @rule(where=st.sampled_from(["add", "cancel", "step", "stats"]))
    def the_engine_breaks(self, where: str) -> None:
        self.world.engine.engine.breaks_in = where  # type: ignore[attr-defined]
        self.may_be_lost = [record for record, *_ in self.asked]  # who comes later may still meet the broken one

    def run_threads(self, turns: list[str]) -> None:
        world = self.world
        does = {
            "parse": world.parse_thread,
            "dispatch": world.dispatcher_thread,
            "worker": world.worker_thread,
            "send": world.sender_thread,
            "poll": world.poller_thread,
        }
        for turn in turns:
            does[turn]()

    @invariant()
    def never_a_word_after_the_end(self) -> None:
        if hasattr(self, "world"):
            assert not self.world.violations()

    def teardown(self) -> None:
        if not hasattr(self, "world"):
            return
        try:
            self.world.settle()
            self.world.check_ends()
            for record, fault, sequences, tokens in self.asked:
                self.check(record, fault, sequences, tokens)
        finally:
            self.world.close()

    def check(self, record: Record, fault: str, sequences: int, tokens: int) -> None:
        """How one request has ended, and with what text."""
        whole = dict.fromkeys(range(sequences), letters(tokens))
        excuses = {"cancelled"} if record.gone else set()
        if self.world.losses:
            excuses.add("unavailable")
        if record.outcome in excuses:
            return
        right = FAULTS.get(fault, "") or "length"
        if fault in ("error", "huge", "wrong type") and tokens < 2:
            right = "length"
        if fault == "forgotten":
            assert record.outcome in ("internal", "deadline", "unavailable"), record  # its deadline, in the queue
        else:
            assert record.outcome == right, (record, fault)
        if right == "length":
            assert record.texts == whole, (record, fault)


TestFaultsMachine = FaultsMachine.TestCase
TestFaultsMachine.settings = settings(budget(60), stateful_step_count=30)
