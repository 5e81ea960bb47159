"""Ctrl-C and SIGTERM as `Interrupted`, for as long as something is at work that has to tidy up after itself."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

from build_engine.errors import Interrupted

SIGNALS = (signal.SIGTERM, signal.SIGINT)
STOPPED = "stopped; nothing was left behind"
_arrived: list[int] = []


@contextmanager
def interruptible() -> Iterator[None]:
    """Inside the block a signal raises `Interrupted`; afterwards the handlers are those of before.

    Python runs code whose exceptions nobody sees (finalizers, some imports). A signal that arrived in it is raised by
    the next `check`, at the latest at the block's end.
    """
    _arrived.clear()
    with _handled_by(_interrupt):
        yield
        check()


def check() -> None:
    """Raise `Interrupted` if a signal has arrived in this block and its exception was lost."""
    if _arrived:
        raise Interrupted(_arrived[0])


@contextmanager
def leaving_at_once() -> Iterator[None]:
    """Inside the block, where nothing is under way yet (imports), a signal ends the process with a sentence."""
    with _handled_by(_leave):
        yield


@contextmanager
def _handled_by(handler: Callable[[int, FrameType | None], object]) -> Iterator[None]:
    before = {number: signal.signal(number, handler) for number in SIGNALS}
    try:
        yield
    finally:
        for number, earlier in before.items():
            if earlier is not None:  # None: not set from Python, and cannot be put back from it
                signal.signal(number, earlier)


def _interrupt(number: int, frame: FrameType | None) -> NoReturn:
    """End the command; a second ^C does not interrupt the cleaning up after the first."""
    for each in SIGNALS:
        signal.signal(each, signal.SIG_IGN)
    _arrived.append(number)
    raise Interrupted(number)


def _leave(number: int, frame: FrameType | None) -> NoReturn:
    os.write(2, f"{STOPPED}\n".encode())
    os._exit(128 + number)
