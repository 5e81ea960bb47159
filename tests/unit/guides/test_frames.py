"""The words between the backend and the process that checks guides, over a real socket pair."""

from __future__ import annotations

import socket
import struct
import threading
import time
from collections.abc import Iterator

import pytest

from inflight.guides import frames
from inflight.guides.frames import Check, LinkError, Ready, Start, Verdict, receive_from_worker, receive_in_worker, send

pytestmark = pytest.mark.fast

Pair = tuple[socket.socket, socket.socket]


@pytest.fixture
def pair() -> Iterator[Pair]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


def soon() -> float:
    return time.monotonic() + 5.0


@pytest.mark.parametrize("message", [Start("vllm", "here", 5), Check("regex", "a" * 1_000_000), Check("choice", "é🙂")])
def test_what_the_backend_says_arrives(pair: Pair, message: Start | Check) -> None:
    ours, theirs = pair
    speaker = threading.Thread(target=send, args=(ours, message))
    speaker.start()
    assert receive_in_worker(theirs) == message
    speaker.join()


@pytest.mark.parametrize("message", [Ready(), Ready("cannot"), Verdict("root ::= 🙂" * 100_000, "", 0.5, last=True)])
def test_what_the_process_says_arrives(pair: Pair, message: Ready | Verdict) -> None:
    ours, theirs = pair
    speaker = threading.Thread(target=send, args=(theirs, message))
    speaker.start()
    assert receive_from_worker(ours, soon()) == message
    speaker.join()


def test_what_is_too_large_is_not_sent(pair: Pair) -> None:
    ours, theirs = pair
    with pytest.raises(LinkError, match="larger"):
        send(theirs, Verdict("a" * (frames.MAX_FRAME_BYTES + 1)))
    send(theirs, Ready())
    assert receive_from_worker(ours, soon()) == Ready()


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (struct.pack("<I", frames.MAX_FRAME_BYTES + 1), "larger"),
        (struct.pack("<I", 3) + b"abc", "."),
        (struct.pack("<I", 0) + struct.pack("<I", 0), "out of turn"),
        (struct.pack("<I", 1) + b"\xc0" + b"x", "out of turn"),
    ],
)
def test_what_is_no_message_is_an_error(pair: Pair, data: bytes, words: str) -> None:
    ours, theirs = pair
    theirs.sendall(data)
    with pytest.raises(LinkError, match=words):
        receive_from_worker(ours, soon())


def test_a_half_message_is_waited_for_until_the_deadline_or_the_end(pair: Pair) -> None:
    ours, theirs = pair
    theirs.sendall(struct.pack("<I", 10) + b"half")
    with pytest.raises(TimeoutError):
        receive_from_worker(ours, time.monotonic() + 0.05)
    theirs.close()
    with pytest.raises(LinkError, match="closed"):
        receive_from_worker(ours, soon())
