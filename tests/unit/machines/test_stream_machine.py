"""Random schedules against one answer: one terminal response, streams that add up to the unary text, exact counts."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from inflight.engines.base import FinishReason
from inflight.errors import cancelled, unavailable
from tests.unit.machines.strategies import budget
from tests.unit.machines.stream_model import EOS, Client, Script, expected, logprob, make_stream
from tests.unit.machines.tokenizer_kinds import KINDS

pytestmark = pytest.mark.fast

TOKENIZER = KINDS["byte_level"]()
WORDS = st.text("The lazy dog.🙂é", max_size=14).map(
    lambda text: tuple(TOKENIZER.encode(text, add_special_tokens=False).ids)
)
FINISHES = st.sampled_from([FinishReason.STOP, FinishReason.LENGTH])
STOPS = st.lists(st.text("The lazy dog.🙂", min_size=1, max_size=4), max_size=2)


def script_of(ids: tuple[int, ...], finish: FinishReason) -> Script:
    return Script((*ids, EOS) if finish is FinishReason.STOP else ids or (TOKENIZER.token_to_id("a"),), finish)


SCRIPTS = st.builds(script_of, WORDS, FINISHES)


class AnswerMachine(RuleBasedStateMachine):
    """One request answered twice from the same engine outputs: streamed, and whole."""

    @initialize(scripts=st.lists(SCRIPTS, min_size=1, max_size=3), stops=STOPS, echo=st.sampled_from(["", "hello"]))
    def begin(self, scripts: list[Script], stops: list[str], echo: str) -> None:
        self.scripts, self.stops, self.echo = scripts, stops, echo
        self.streamed = Client(make_stream(True, len(scripts), stops, echo))
        self.unary = Client(make_stream(False, len(scripts), stops, echo))
        self.arrived = [0] * len(scripts)
        self.failed = False
        self.deadline_at: list[int] | None = None
        self.clock = 10

    @rule(data=st.data(), count=st.integers(1, 6))
    def tokens_arrive(self, data: st.DataObject, count: int) -> None:
        index = data.draw(st.integers(0, len(self.scripts) - 1))
        script, start = self.scripts[index], self.arrived[index]
        end = min(start + count, len(script.token_ids))
        if start == end:
            return
        self.clock += 1
        for client in (self.streamed, self.unary):
            client.stream.append(script.output(index, start, end), self.clock)
        self.arrived[index] = end

    def under_way(self) -> bool:
        """Whether the engine works on any of the sequences."""
        return any(place < len(script.token_ids) for place, script in zip(self.arrived, self.scripts, strict=True))

    @rule()
    def a_sender_comes(self) -> None:
        self.streamed.take(self.under_way())

    @rule()
    def a_sender_comes_to_the_unary_answer(self) -> None:
        self.unary.take(self.under_way())

    @precondition(lambda self: not self.failed and self.deadline_at is None)
    @rule(cause=st.sampled_from([cancelled(), unavailable("the engine was lost")]))
    def it_fails(self, cause: Exception) -> None:
        for client in (self.streamed, self.unary):
            client.stream.fail(cause)  # type: ignore[arg-type]
        self.failed = True

    @precondition(lambda self: not self.failed and self.deadline_at is None)
    @rule()
    def the_deadline_passes(self) -> None:
        self.deadline_at = list(self.arrived)
        for client in (self.streamed, self.unary):
            client.stream.end_by_deadline()

    @invariant()
    def never_two_ends(self) -> None:
        if hasattr(self, "streamed"):
            assert self.streamed.terminals <= 1
            assert self.unary.terminals <= 1

    def teardown(self) -> None:
        if not hasattr(self, "streamed"):
            return
        ended_before = [client.stream.done for client in (self.streamed, self.unary)]
        for index in range(len(self.scripts)):
            script, start = self.scripts[index], self.arrived[index]
            if start < len(script.token_ids):
                for client in (self.streamed, self.unary):
                    client.stream.append(script.output(index, start, len(script.token_ids)), self.clock)
        for client in (self.streamed, self.unary):
            client.take(under_way=False)
            assert client.stream.done
            assert client.terminals == 1
            client.take(under_way=False)
        if self.failed and not all(ended_before):
            self.check_failure()
        elif not self.failed:
            self.check_answers()

    def check_failure(self) -> None:
        """An error ends it: no text at all when unary, else a beginning of the answer."""
        for client in (self.streamed, self.unary):
            if not client.errors:
                continue
            assert client.abandoned >= 1, "the engine goes on for nobody"
            assert client.stream.outcome in ("cancelled", "unavailable")
            for index, script in enumerate(self.scripts):
                whole = expected(script, self.stops, self.echo)
                assert whole.text.startswith(client.texts[index])
                assert client.tokens[index] <= whole.tokens
        if self.unary.errors:
            assert self.unary.last is None

    def check_answers(self) -> None:
        for index, script in enumerate(self.scripts):
            limit = None if self.deadline_at is None else self.deadline_at[index]
            right = expected(script, self.stops, self.echo, limit)
            for client in (self.streamed, self.unary):
                assert client.texts[index] == right.text
                assert client.tokens[index] == right.tokens
                assert client.finishes[index] == right.finish
                assert client.ids[index] == list(script.token_ids[: right.tokens])
                assert client.cumulative[index] == sum(logprob(place) for place in range(right.tokens))
        total = sum(self.streamed.tokens)
        assert self.streamed.stream.output_tokens == self.unary.stream.output_tokens == total
        assert self.streamed.stream.outcome == self.unary.stream.outcome == self.streamed.finishes[0]


TestAnswerMachine = AnswerMachine.TestCase
TestAnswerMachine.settings = settings(budget(250), stateful_step_count=30)
