"""The service that checks guides: one process, a cache, who waits, what it may cost, crashes, stopping."""

from __future__ import annotations

import itertools
import os
import queue
import random
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import pytest

from inflight.engines.base import Guide
from inflight.errors import ErrorCode, RequestError, unavailable
from inflight.guides import service as guides
from inflight.guides.frames import Check, LinkError, Verdict
from inflight.guides.process import TooLong
from inflight.guides.service import Decision, GuideLimits, GuideService, NewGuide


class FakeProcess:
    """Stands in for the process: `behave` answers, or raises what the real one raises."""

    made: ClassVar[list[FakeProcess]]
    behave: Callable[[Check], Verdict]
    refusal = ""
    pid = 1
    vocab_size = 0
    crashes = True  # when it is lost, it ended by its own doing

    def __init__(self, start: Any, python: str = "") -> None:
        self.closed = False
        self.python = python
        self.checked: list[Check] = []
        type(self).made.append(self)

    def check(self, check: Check, limit_s: float) -> Verdict:
        assert not self.closed
        self.checked.append(check)
        return type(self).behave(check)

    def wait_ready(self) -> None:
        assert not self.closed

    def crashed(self) -> bool:
        return type(self).crashes

    def interrupt(self) -> None:
        self.closed = True

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> type[FakeProcess]:
    class Fresh(FakeProcess):
        made: ClassVar[list[FakeProcess]] = []

        @staticmethod
        def behave(check: Check) -> Verdict:
            return Verdict(grammar=f"root ::= {check.text}", compile_s=0.1)

    monkeypatch.setattr(guides, "GuideProcess", Fresh)
    return Fresh


@pytest.fixture
def gate(fake: type[FakeProcess]) -> threading.Event:
    """No check ends before it is set."""
    gate = threading.Event()

    def behave(check: Check) -> Verdict:
        assert gate.wait(20.0)
        return Verdict(grammar="g")

    fake.behave = staticmethod(behave)
    return gate


@pytest.fixture
def service(fake: type[FakeProcess]) -> Iterator[GuideService]:
    made = GuideService("openvino", "nowhere", GuideLimits(waiting=3, known=5))
    yield made
    made.stop()


def ask(service: GuideService, text: str, kind: str = "regex") -> Decision:
    guide = Guide(kind, text)
    found = service.known(guide)
    if found is not None:
        return found
    answers: queue.Queue[Decision] = queue.Queue()
    service.ask(guide, answers.put)
    return answers.get(timeout=20.0)


def error(decision: Decision) -> RequestError:
    assert decision.error is not None
    return decision.error


def test_a_guide_becomes_a_grammar_and_is_remembered(service: GuideService, fake: type[FakeProcess]) -> None:
    guide = Guide("regex", "a")
    with pytest.raises(NewGuide):
        service.decide(guide, None)
    assert ask(service, "a").guide == Guide("ebnf_grammar", "root ::= a")
    assert service.decide(guide, None) == Guide("ebnf_grammar", "root ::= a")
    assert service.checks == 1


def test_the_process_runs_under_the_engines_own_python(fake: type[FakeProcess]) -> None:
    service = GuideService("vllm", "nowhere", python="/opt/vllm/bin/python")
    ask(service, "a")
    service.stop()
    assert [process.python for process in fake.made] == ["/opt/vllm/bin/python"]


def test_the_kind_belongs_to_the_key(service: GuideService) -> None:
    ask(service, '["a"]', "choice")
    assert service.known(Guide("regex", '["a"]')) is None


def test_refusals_are_remembered_too(service: GuideService, fake: type[FakeProcess]) -> None:
    fake.behave = staticmethod(lambda check: Verdict(problem="is bad"))
    for _ in range(3):
        found = error(ask(service, "a"))
    assert (found.code, found.message) == (ErrorCode.INVALID_ARG, "guided_decoding_guide is bad")
    assert service.checks == 1


def test_what_compiles_too_slowly_for_the_engine_is_refused(service: GuideService, fake: type[FakeProcess]) -> None:
    fake.behave = staticmethod(lambda check: Verdict(grammar="g", compile_s=2.5, wall_s=2.5))
    found = error(ask(service, "a"))
    assert found.code is ErrorCode.INVALID_ARG
    assert "takes too long to compile" in found.message


def test_processor_time_alone_decides(service: GuideService, fake: type[FakeProcess]) -> None:
    """On a busy machine a check takes long by the clock, and somewhat more processor time than it would alone."""
    took = {
        "fine": (1.9, 60.0, 1.0),
        "it waited": (3.0, 6.0, 0.0),
        "beside others": (3.0, 3.0, 0.8),
        "too high": (3.0, 3.1, 0.2),
        "too high anyway": (4.1, 60.0, 1.0),
    }
    fake.behave = staticmethod(lambda check: Verdict("g", "", *took[check.text]))
    assert ask(service, "fine").guide is not None
    for text in ("it waited", "beside others"):
        assert error(ask(service, text)).code is ErrorCode.UNAVAILABLE
        assert service.known(Guide("regex", text)) is None
    for text in ("too high", "too high anyway"):
        assert error(ask(service, text)).code is ErrorCode.INVALID_ARG
        assert service.known(Guide("regex", text)) is not None


def test_a_large_vocabulary_may_cost_more(fake: type[FakeProcess]) -> None:
    limits = []

    def behave(check: Check) -> Verdict:
        return Verdict("g", "", float(check.text), float(check.text))

    class Fresh(fake):  # type: ignore[misc, valid-type]
        def check(self, check: Check, limit_s: float) -> Verdict:
            limits.append(limit_s)
            return super().check(check, limit_s)  # type: ignore[no-any-return]

    fake.behave = staticmethod(behave)
    fake.vocab_size = 100_000
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(guides, "GuideProcess", Fresh)
        service = GuideService("openvino", "nowhere", GuideLimits(check_s=5.0, compile_s=1.0))
        assert ask(service, "1.9").guide is not None
        assert "more than 2.0 s" in error(ask(service, "2.1")).message
        service.stop()
    assert limits == [6.0, 6.0]


def test_a_killed_check_ends_its_own_request_only(service: GuideService, fake: type[FakeProcess]) -> None:
    def behave(check: Check) -> Verdict:
        if check.text == "slow":
            raise TooLong(busy=False)
        return Verdict(grammar="g")

    fake.behave = staticmethod(behave)
    assert "takes too long" in error(ask(service, "slow")).message
    assert ask(service, "fast").guide == Guide("ebnf_grammar", "g")
    assert len(fake.made) == 2
    assert fake.made[0].closed
    assert "takes too long" in error(ask(service, "slow")).message
    assert (service.checks, service.kills) == (2, 1)


def test_a_busy_machine_is_not_the_guides_fault(service: GuideService, fake: type[FakeProcess]) -> None:
    def behave(check: Check) -> Verdict:
        raise TooLong(busy=True)

    fake.behave = staticmethod(behave)
    assert error(ask(service, "a")).code is ErrorCode.UNAVAILABLE
    assert service.known(Guide("regex", "a")) is None


def test_a_lost_process_is_replaced_and_the_check_repeated(service: GuideService, fake: type[FakeProcess]) -> None:
    def behave(check: Check) -> Verdict:
        if len(fake.made) == 1:
            raise LinkError("gone")
        return Verdict(grammar="g")

    fake.behave = staticmethod(behave)
    assert ask(service, "a").guide == Guide("ebnf_grammar", "g")


def test_a_guide_that_crashes_the_compiler_twice_is_refused(service: GuideService, fake: type[FakeProcess]) -> None:
    def behave(check: Check) -> Verdict:
        raise LinkError("gone")

    fake.behave = staticmethod(behave)
    assert "crashes the grammar compiler" in error(ask(service, "a")).message
    assert len(fake.made) == 2


def test_a_process_that_is_killed_from_outside_says_nothing_about_the_guide(
    service: GuideService, fake: type[FakeProcess]
) -> None:
    def behave(check: Check) -> Verdict:
        if len(fake.made) <= 2:
            raise LinkError("gone")
        return Verdict(grammar="g")

    fake.behave = staticmethod(behave)
    fake.crashes = False
    assert error(ask(service, "a")).code is ErrorCode.UNAVAILABLE
    assert ask(service, "a").guide == Guide("ebnf_grammar", "g")


def test_one_crash_and_one_kill_are_not_two_crashes(service: GuideService, fake: type[FakeProcess]) -> None:
    def behave(check: Check) -> Verdict:
        fake.crashes = len(fake.made) == 1
        raise LinkError("gone")

    fake.behave = staticmethod(behave)
    assert error(ask(service, "a")).code is ErrorCode.UNAVAILABLE
    assert service.known(Guide("regex", "a")) is None


def test_a_last_verdict_ends_the_process(service: GuideService, fake: type[FakeProcess]) -> None:
    fake.behave = staticmethod(lambda check: Verdict(grammar="g", last=True))
    ask(service, "a")
    ask(service, "b")
    assert [process.closed for process in fake.made] == [True, True]


def test_a_model_that_cannot_be_guided_says_so(service: GuideService, fake: type[FakeProcess]) -> None:
    fake.refusal = "cannot be used with this model's tokenizer (no vocabulary)"
    found = error(ask(service, "a"))
    assert found.code is ErrorCode.UNSUPPORTED
    assert found.parameter == "guided_decoding_guide_type"
    assert error(ask(service, "b")).message == found.message
    assert [process.closed for process in fake.made] == [True]  # one was asked, and is not kept for nothing


def test_equal_guides_share_one_check(service: GuideService, gate: threading.Event) -> None:
    answers: list[Decision] = []
    for _ in range(50):
        service.ask(Guide("regex", "a"), answers.append)
    gate.set()
    wait_for(lambda: len(answers) == 50)
    assert service.checks == 1


def test_too_many_new_guides_are_turned_away(service: GuideService, gate: threading.Event) -> None:
    answers: list[Decision] = []
    for number in range(10):
        service.ask(Guide("regex", str(number)), answers.append)
    turned_away = [decision for decision in answers if decision.error is not None]
    assert len(turned_away) == 6  # one is being checked, three wait
    assert {error(decision).code for decision in turned_away} == {ErrorCode.UNAVAILABLE}
    gate.set()
    wait_for(lambda: len(answers) == 10)


def test_who_has_left_costs_no_check(service: GuideService, fake: type[FakeProcess], gate: threading.Event) -> None:
    answers: list[Decision] = []
    service.ask(Guide("regex", "first"), answers.append)
    service.ask(Guide("regex", "left"), answers.append, gone=lambda: True)
    service.ask(Guide("regex", "half left"), answers.append, gone=lambda: True)
    service.ask(Guide("regex", "half left"), answers.append)
    gate.set()
    wait_for(lambda: len(answers) == 4)
    assert [check.text for check in fake.made[0].checked] == ["first", "half left"]
    assert error(answers[1]).code is ErrorCode.CANCELLED
    assert service.known(Guide("regex", "left")) is None


def test_who_has_waited_too_long_is_told_to_come_back(fake: type[FakeProcess]) -> None:
    service = GuideService("openvino", "nowhere", GuideLimits(patience_s=0.2))

    def behave(check: Check) -> Verdict:
        time.sleep(0.4)
        return Verdict(grammar="g")

    fake.behave = staticmethod(behave)
    answers: list[Decision] = []
    for number in range(4):
        service.ask(Guide("regex", str(number)), answers.append)
    wait_for(lambda: len(answers) == 4)
    service.stop()
    assert [decision.error is None for decision in answers] == [True, False, False, False]
    assert error(answers[-1]).code is ErrorCode.UNAVAILABLE


@pytest.mark.parametrize("first_has", ["left", "waited too long"])
def test_who_joins_while_another_is_asked_waits_on(fake: type[FakeProcess], first_has: str) -> None:
    """The question to the first one takes a while; in it a second request comes with the same new guide."""
    limits = GuideLimits(patience_s=0.005 if first_has == "waited too long" else 10.0)
    service = GuideService("openvino", "nowhere", limits)
    first: queue.Queue[Decision] = queue.Queue()
    second: queue.Queue[Decision] = queue.Queue()

    def gone() -> bool:
        time.sleep(0.01)
        service.ask(Guide("regex", "a"), second.put)
        return first_has == "left"

    service.ask(Guide("regex", "a"), first.put, gone)
    told = error(first.get(timeout=20.0))
    assert told.code is (ErrorCode.CANCELLED if first_has == "left" else ErrorCode.UNAVAILABLE)
    assert second.get(timeout=20.0).guide == Guide("ebnf_grammar", "root ::= a")
    service.stop()


def test_each_is_judged_by_its_own_patience(fake: type[FakeProcess], gate: threading.Event) -> None:
    service = GuideService("openvino", "nowhere", GuideLimits(patience_s=0.3))
    answers: list[queue.Queue[Decision]] = [queue.Queue() for _ in range(3)]
    service.ask(Guide("regex", "first"), answers[0].put)
    service.ask(Guide("regex", "shared"), answers[1].put)
    time.sleep(0.35)
    service.ask(Guide("regex", "shared"), answers[2].put)
    gate.set()
    decisions = [each.get(timeout=20.0) for each in answers]
    service.stop()
    assert error(decisions[1]).code is ErrorCode.UNAVAILABLE
    assert [decision.error is None for decision in decisions] == [True, False, True]


def test_a_question_that_fails_is_no_answer(service: GuideService, gate: threading.Event) -> None:
    def gone() -> bool:
        raise RuntimeError("no connection")

    answers: queue.Queue[Decision] = queue.Queue()
    service.ask(Guide("regex", "a"), answers.put, gone)
    gate.set()
    assert answers.get(timeout=20.0).guide is not None


def test_who_withdraws_when_asked_is_not_called_back(
    service: GuideService, fake: type[FakeProcess], gate: threading.Event
) -> None:
    answers: queue.Queue[Decision] = queue.Queue()
    withdrawn: list[bool] = []

    def gone() -> bool:
        withdrawn.append(withdraw())
        return True

    service.ask(Guide("regex", "first"), answers.put)
    withdraw = service.ask(Guide("regex", "a"), answers.put, gone)
    gate.set()
    assert answers.get(timeout=20.0).guide is not None
    assert ask(service, "after").guide is not None
    assert withdrawn == [True]
    assert answers.empty()


def test_the_memory_of_verdicts_is_bounded(service: GuideService) -> None:
    for number in range(9):
        ask(service, str(number))
    known = [number for number in range(9) if service.known(Guide("regex", str(number))) is not None]
    assert known == [4, 5, 6, 7, 8]


def test_a_verdict_that_is_kept_anew_counts_once(service: GuideService) -> None:
    guide = Guide("regex", "ä" * 100)
    for _ in range(3):
        service._answer(guides._key(guide), Decision(guide=Guide("ebnf_grammar", "ä" * 100)), True)
    assert service._known_bytes == 200
    service._answer(guides._key(guide), Decision(error=unavailable("x")), True)
    assert service._known_bytes == 0


def test_who_asks_for_what_is_known_by_now_is_told_at_once(service: GuideService) -> None:
    ask(service, "a")
    answers: list[Decision] = []
    assert not service.ask(Guide("regex", "a"), answers.append)()
    assert [decision.guide for decision in answers] == [Guide("ebnf_grammar", "root ::= a")]
    assert service.checks == 1


def test_who_withdraws_is_not_called_back(
    service: GuideService, fake: type[FakeProcess], gate: threading.Event
) -> None:
    answers: list[Decision] = []
    service.ask(Guide("regex", "first"), answers.append)
    wait_for(lambda: bool(fake.made and fake.made[0].checked))
    alone = service.ask(Guide("regex", "alone"), answers.append)
    one_of_two = service.ask(Guide("regex", "shared"), answers.append)
    service.ask(Guide("regex", "shared"), answers.append)
    assert [alone(), one_of_two(), alone(), one_of_two()] == [True, True, False, False]
    gate.set()
    wait_for(lambda: len(answers) == 2)
    service.stop()
    assert [check.text for check in fake.made[0].checked] == ["first", "shared"]
    assert len(answers) == 2


def test_stopping_answers_who_waits(fake: type[FakeProcess]) -> None:
    service = GuideService("openvino", "nowhere")

    def behave(check: Check) -> Verdict:
        wait_for(lambda: fake.made[0].closed)
        raise LinkError("gone")

    fake.behave = staticmethod(behave)
    answers: list[Decision] = []
    for number in range(4):
        service.ask(Guide("regex", str(number)), answers.append)
    wait_for(lambda: bool(fake.made and fake.made[0].checked))
    service.stop()
    assert [error(decision).code for decision in answers] == [ErrorCode.UNAVAILABLE] * 4
    service.ask(Guide("regex", "late"), answers.append)
    assert error(answers[-1]).code is ErrorCode.UNAVAILABLE


def test_a_request_that_fails_to_go_on_does_not_stop_the_service(service: GuideService) -> None:
    def fails(decision: Decision) -> None:
        raise ValueError("a bug")

    service.ask(Guide("regex", "a"), fails)
    assert ask(service, "b").guide is not None


def test_who_withdraws_while_another_is_told_leaves_nobody_waiting_for_ever(
    service: GuideService, fake: type[FakeProcess], gate: threading.Event
) -> None:
    told = threading.Event()

    def done(_: Decision) -> None:
        assert withdraw()
        told.set()

    service.ask(Guide("regex", "first"), lambda _: None)
    service.ask(Guide("regex", "a"), done, gone=lambda: True)
    withdraw = service.ask(Guide("regex", "a"), lambda _: None)
    gate.set()
    assert told.wait(20.0)
    assert ask(service, "a").guide is not None


@pytest.mark.parametrize("seed", [1, 2])
def test_everybody_is_called_back_once_or_has_withdrawn(fake: type[FakeProcess], seed: int) -> None:
    """Threads that switch all the time ask for few guides, leave, withdraw, and join while others are judged."""
    service = GuideService("openvino", "nowhere", GuideLimits(waiting=4, patience_s=0.002, known=2))

    def behave(check: Check) -> Verdict:
        time.sleep(0.0005)
        return Verdict(grammar="g")

    def ask_often(chance: random.Random, told: list[list[Decision]], withdrawn: list[bool]) -> None:
        for _ in range(1_000):
            answers: list[Decision] = []
            leaves = chance.random() < 0.3
            withdraw = service.ask(
                Guide("regex", str(chance.randrange(6))), answers.append, lambda leaves=leaves: leaves
            )
            if chance.random() < 0.5:
                time.sleep(0.0002)
            withdrawn.append(chance.random() < 0.3 and withdraw())
            told.append(answers)

    fake.behave = staticmethod(behave)
    before = sys.getswitchinterval()
    sys.setswitchinterval(5e-6)
    try:
        told: list[list[list[Decision]]] = [[] for _ in range(6)]
        withdrawn: list[list[bool]] = [[] for _ in range(6)]
        threads = [
            threading.Thread(
                target=ask_often, args=(random.Random(f"{seed} {number}"), told[number], withdrawn[number])
            )
            for number in range(6)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30.0)
    finally:
        sys.setswitchinterval(before)
    wait_for(lambda: not service._asking)
    service.stop()
    for answers, gave_up in zip(itertools.chain(*told), itertools.chain(*withdrawn), strict=True):
        assert len(answers) == (0 if gave_up else 1)
    codes = {each.error.code if each.error else None for answers in itertools.chain(*told) for each in answers}
    assert codes == {None, ErrorCode.CANCELLED, ErrorCode.UNAVAILABLE}


# -- with a real process -----------------------------------------------------------------------------------------------


@pytest.fixture
def real() -> Iterator[GuideService]:
    """For an engine without a compiler of its own: the process only makes grammars."""
    service = GuideService("simulated", "nowhere", GuideLimits(check_s=1.0))
    yield service
    service.stop()


def test_a_real_process_makes_grammars(real: GuideService) -> None:
    assert ask(real, "[0-9]{2}").guide == Guide("ebnf_grammar", "root ::= [0-9] s1\ns1 ::= [0-9]\n")
    assert "missing )" in error(ask(real, "((")).message
    pid = real.pid
    real.stop()
    wait_for(lambda: not os.path.exists(f"/proc/{pid}"))


def test_a_real_process_is_killed_when_it_takes_too_long(real: GuideService) -> None:
    ask(real, "a")
    first = real.pid
    began = time.monotonic()
    long = "".join(f"(a{number}|b)?" for number in range(4_000))
    message = error(ask(real, long)).message
    assert re.search("too (long|large|busy)", message)  # by how quick and how busy the machine is
    assert time.monotonic() - began < 15.0
    assert ask(real, "b").guide is not None
    assert real.kills == (real.pid != first)


def test_a_real_process_that_dies_is_replaced(real: GuideService) -> None:
    ask(real, "a")
    os.kill(real.pid, signal.SIGKILL)
    assert ask(real, "b").guide is not None


LONG = "".join(f"(a{number}|b)?" for number in range(700))  # takes a while


@pytest.mark.parametrize(
    ("how", "code"), [(signal.SIGKILL, ErrorCode.UNAVAILABLE), (signal.SIGSEGV, ErrorCode.INVALID_ARG)]
)
def test_a_real_process_is_ended_in_the_middle_of_two_checks(
    real: GuideService, how: signal.Signals, code: ErrorCode
) -> None:
    ask(real, "a")
    answers: queue.Queue[Decision] = queue.Queue()
    for attempt in (2, 3):
        if attempt == 2:
            real.ask(Guide("regex", LONG), answers.put)
        wait_for(lambda: real.checks == attempt)  # noqa: B023 — called here only
        os.kill(real.pid, how)
    assert error(answers.get(timeout=20.0)).code is code
    assert (real.known(Guide("regex", LONG)) is None) == (how is signal.SIGKILL)


def test_a_real_process_that_hangs_is_replaced(real: GuideService) -> None:
    ask(real, "a")
    os.kill(real.pid, signal.SIGSTOP)
    assert error(ask(real, "b")).code is ErrorCode.UNAVAILABLE
    assert ask(real, "b").guide is not None


def wait_for(condition: Callable[[], bool], timeout_s: float = 20.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "nothing happened in time"
        time.sleep(0.01)
