"""What an exception of an engine ends, decided by one table; what an engine may say, decided by one list."""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from inflight.engine_process import frames
from inflight.engine_process.framing import FrameBuffer
from inflight.engine_process.roster import FORGOTTEN_AFTER_S, OWED_AFTER_S, OWED_AFTER_STEPS, Roster
from inflight.engine_process.worker import Worker
from inflight.engines.base import EngineBroken, EngineOutput, EngineStats, FinishReason
from inflight.engines.faults import MOST_WORDS, Sparingly, end_of_add, fit_for_clients
from inflight.errors import ErrorCode
from tests.doubles.misbehaving import RAISED, MisbehavingEngine
from tests.unit.machines.delivery_fakes import LETTERS
from tests.unit.machines.faulty_world import Page
from tests.unit.machines.strategies import engine_request, info

pytestmark = pytest.mark.fast

CODES = {"invalid": ErrorCode.INVALID_ARG, "unavailable": ErrorCode.UNAVAILABLE, "internal": ErrorCode.INTERNAL}


class Rig:
    """A worker over an engine that misbehaves, one turn at a time."""

    def __init__(self) -> None:
        self.engine = MisbehavingEngine(info(), LETTERS)
        self.ours, self._theirs = socket.socketpair()
        page: Any = Page()
        self.page = page
        self.worker = Worker(self.engine, self._theirs, page)
        self._buffer = FrameBuffer(frames.MAX_FRAME_BYTES)

    def add(self, request_id: int, fault: str = "", **changes: Any) -> None:
        """Ask for a request that goes wrong in this way."""
        request = engine_request(request_id, **changes)
        changed = frames.Add(type(request)(**{**to_dict(request), "cache_salt": fault or None}))
        self.ours.sendall(frames.encode(changed))

    def say(self, message: frames.ToEngine) -> None:
        """Anything else."""
        self.ours.sendall(frames.encode(message))

    def turn(self) -> list[frames.FromEngine]:
        """One round; what the backend hears."""
        self.worker.turn()
        self.ours.setblocking(False)
        found: list[frames.FromEngine] = []
        try:
            while data := self.ours.recv(1 << 20):
                found += [frames.decode_from_engine(body) for body in self._buffer.feed(data)]
        except BlockingIOError:
            pass
        finally:
            self.ours.setblocking(True)
        return found

    def close(self) -> None:
        self.ours.close()
        self._theirs.close()


def to_dict(request: Any) -> dict[str, Any]:
    return {name: getattr(request, name) for name in request.__struct_fields__}


def tokens_of(messages: list[frames.FromEngine], request_id: int) -> list[int]:
    """What the backend hears of a request's first sequence."""
    found: list[int] = []
    for message in messages:
        if isinstance(message, frames.Outputs):
            pairs = zip(message.ids, message.tokens, strict=True)
            found += [token for owner, token in pairs if owner == request_id]
            found += [
                token
                for output in message.outputs
                if (output.request_id, output.sequence_index) == (request_id, 0)
                for token in output.token_ids
            ]
    return found


@pytest.fixture
def rig() -> Iterator[Rig]:
    made = Rig()
    yield made
    made.close()


@pytest.mark.parametrize("fault", RAISED)
def test_whatever_add_raises_ends_its_own_request_alone(rig: Rig, fault: str) -> None:
    rig.add(1, max_tokens=4)
    heard = rig.turn()
    rig.add(2, fault)
    messages = rig.turn()
    (refused,) = [message for message in messages if isinstance(message, frames.Refused)]
    assert (refused.request_id, refused.code) == (2, CODES[RAISED[fault][1]])
    assert (refused.message == "") == (refused.code is ErrorCode.INTERNAL)
    assert refused.parameter == ("min_p" if fault == "refusal" else None)
    heard += messages
    for _ in range(3):
        heard += rig.turn()
    assert tokens_of(heard, 1) == [LETTERS[place % len(LETTERS)] for place in range(1, 5)]


def test_half_a_request_is_taken_back(rig: Rig) -> None:
    """Its second sequence could not be added: the first one must not go on for nobody."""
    rig.add(1, "half added", num_sequences=2)
    rig.add(2)
    messages = rig.turn()
    assert [message.request_id for message in messages if isinstance(message, frames.Refused)] == [1]
    rig.turn()
    assert set(rig.engine.requests) == {2}
    assert not tokens_of(messages, 1)


@pytest.mark.parametrize("call", ["add", "cancel", "step", "stats"])
def test_what_shows_the_engine_broken_ends_it(rig: Rig, call: str) -> None:
    rig.add(1)
    rig.turn()
    rig.engine.breaks_in = call
    rig.add(2)
    rig.say(frames.Cancel(1))
    with pytest.raises(RuntimeError if call == "step" else EngineBroken):
        rig.turn()


def test_a_cancel_that_fails_ends_nothing(rig: Rig) -> None:
    rig.add(1, "cancel raises", max_tokens=3)
    rig.add(2, max_tokens=3)
    heard = rig.turn()
    rig.say(frames.Cancel(1))
    for _ in range(3):
        heard += rig.turn()
    assert len(tokens_of(heard, 1)) == len(tokens_of(heard, 2)) == 3


def test_statistics_that_fail_are_the_last_ones_known(rig: Rig) -> None:
    rig.add(1, max_tokens=9)
    (before,) = rig.turn()
    assert isinstance(before, frames.Outputs)
    for fault in ("statistics raise", "statistics lie"):
        rig.add(2 if fault == "statistics raise" else 3, fault, max_tokens=1)
        (message,) = rig.turn()
        assert isinstance(message, frames.Outputs)
        assert message.stats.blocks_max == before.stats.blocks_max
        assert tokens_of([message], 1)


@pytest.mark.parametrize("fault", ["huge", "wrong type"])
def test_an_output_that_cannot_be_sent_ends_its_sequence_alone(
    rig: Rig, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(frames, "MAX_FRAME_BYTES", 4096)
    rig.add(1, max_tokens=4)
    rig.add(2, fault, max_tokens=4, num_sequences=2)
    rig.add(3, max_tokens=4)
    heard = [message for _ in range(5) for message in rig.turn()]
    errors = [
        output.sequence_index
        for message in heard
        if isinstance(message, frames.Outputs)
        for output in message.outputs
        if output.error is not None
    ]
    assert errors == [0, 1]
    for innocent in (1, 3):
        assert len(tokens_of(heard, innocent)) == 4
    assert not rig.engine.requests


def test_many_small_outputs_that_are_too_much_for_one_frame_take_several(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(frames, "MAX_FRAME_BYTES", 512)
    for request_id in range(1, 200):
        rig.add(request_id, max_tokens=2)
    heard = rig.turn() + rig.turn()
    assert len(heard) > 2
    for request_id in range(1, 200):
        assert len(tokens_of(heard, request_id)) == 2


def test_slow_adds_give_way_to_a_step(rig: Rig) -> None:
    """Whoever is under way gets tokens while the adapters of others are read, however many came in one read."""
    rig.engine.takes_time = lambda: time.sleep(0.03)
    rig.add(1, max_tokens=50)
    heard = rig.turn()
    for request_id in range(2, 22):
        rig.add(request_id, "slow", max_tokens=50)
    for _ in range(5):
        heard += rig.turn()
    assert len(tokens_of(heard, 1)) == 6
    assert 1 < len(rig.engine.requests) < 21
    for _ in range(20):
        heard += rig.turn()
    assert list(rig.engine.requests) == list(range(1, 22)), "in their order"


def test_an_engine_with_nothing_to_do_for_its_requests_is_no_busy_loop(rig: Rig) -> None:
    rig.add(1, "forgotten")
    rig.turn()
    assert rig.worker._pause_s > 0


def test_each_sequence_ends_once_and_nothing_follows() -> None:
    roster = Roster()
    roster.add(1, 2)
    end = EngineOutput(1, 0, [], FinishReason.STOP)
    other = EngineOutput(1, 1, [7])
    strangers = [
        EngineOutput(2, 0, [7]),
        EngineOutput(1, 2, [7]),
        EngineOutput(1, -1, [7]),
        EngineOutput(1, 10**9, [7]),
    ]
    passed, dropped = roster.pass_on([end, end, other, *strangers])
    assert passed == [end, other]
    assert dropped == [end, *strangers]
    assert len(roster) == 1, "an end said twice is not the end of another sequence"
    roster.pass_on([EngineOutput(1, 1, [], error="no")])
    assert not len(roster)


def test_what_was_cancelled_ends_though_the_engine_says_nothing() -> None:
    roster = Roster()
    roster.add(1, 3)
    roster.add(2, 1)
    roster.pass_on([EngineOutput(1, 1, [], FinishReason.STOP)])
    roster.cancel(1, 100.0)
    roster.cancel(9, 100.0)
    for _ in range(OWED_AFTER_STEPS + 1):
        assert not roster.owed(101.0 + OWED_AFTER_S), "an engine may be busy in one long step"
        roster.pass_on([])
        assert not roster.owed(99.0 + OWED_AFTER_S)
    ends = roster.owed(101.0 + OWED_AFTER_S)
    assert [(end.request_id, end.sequence_index, end.finish) for end in ends] == [
        (1, 0, FinishReason.CANCELLED),
        (1, 2, FinishReason.CANCELLED),
    ]
    assert not roster.owed(1e9)
    assert 2 in roster


def test_requests_that_the_engine_holds_nothing_for_are_forgotten_ones() -> None:
    roster = Roster()
    idle, busy, unknown = (EngineStats(blocks_used=used, blocks_max=most) for used, most in ((0, 9), (1, 9), (0, 0)))
    roster.add(1, 2)
    now = 100.0
    for stats, said in ((busy, False), (idle, True), (unknown, False)):
        assert not roster.forgotten(now, idle, False)
        now += FORGOTTEN_AFTER_S + 1
        assert not roster.forgotten(now, stats, said), "it works on something, or says something, or does not know"
    assert not roster.forgotten(now, idle, False)
    ends = roster.forgotten(now + FORGOTTEN_AFTER_S + 1, idle, False)
    assert [(end.request_id, end.sequence_index, bool(end.error)) for end in ends] == [(1, 0, True), (1, 1, True)]
    assert not len(roster)


@pytest.mark.parametrize(
    ("words", "fit"),
    [
        ("is red; the adapters of this model are blue", "is red; the adapters of this model are blue"),
        ("cannot open /opt/models/llm/1/engine/lora: no such file", "cannot open …: no such file"),
        ("value 1/2 and/or text/plain is wrong", "value 1/2 and/or text/plain is wrong"),
        ("\n  bad handle 0x7ffd12345678 here\nTraceback: at /a/b.py:1\n", "bad handle … here"),
        ("", "cannot be computed"),
        ("half \ud800 of a pair", "half ? of a pair"),
        ("x" * 5000, "x" * MOST_WORDS),
    ],
)
def test_an_engines_words_hold_no_place_on_this_machine(words: str, fit: str) -> None:
    assert fit_for_clients(words) == fit


def test_broken_engines_are_told_from_requests() -> None:
    with pytest.raises(EngineBroken):
        end_of_add(EngineBroken("it broke"))
    assert end_of_add(np.exceptions.AxisError("an axis")).code is ErrorCode.INTERNAL


def test_nobody_floods_the_log(caplog: pytest.LogCaptureFixture) -> None:
    now = [0.0]
    log = Sparingly(10.0, lambda: now[0])
    with caplog.at_level(logging.WARNING):
        for number in range(1000):
            now[0] = number * 0.05
            log.warning("add", "request %d", number)
    assert len(caplog.records) == 5
    assert "199 more of this kind" in caplog.records[1].getMessage()
