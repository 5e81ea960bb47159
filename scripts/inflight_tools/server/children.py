"""Processes that end with the one that started them, and not before: whichever of its threads did it.

The kernel's death signal (PR_SET_PDEATHSIG) is of a thread: it comes when the thread that forked ends, though its
process lives on. So children are forked by a thread that lives as long as its process (`start_child`), and a program
that is to end with its parent looks whose child it is (`end_with_parent`).
"""

from __future__ import annotations

import ctypes
import os
import queue
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, AnyStr

_PR_SET_PDEATHSIG = 1  # <linux/prctl.h>
_LIBC = ctypes.CDLL(None, use_errno=True)
_LOOK_S = 0.2

Bind = Callable[[], None]
"""For `preexec_fn`: ties the new process to its parent."""


class _Forker:
    """The thread `forker`, started with the first child; a daemon, so that it ends with the process and not before."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._orders: queue.SimpleQueue[tuple[Callable[[], Any], Future[Any]]] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def run(self, work: Callable[[], Any]) -> Any:
        """`work()`, done by the thread; what it raises is raised here."""
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._obey, name="forker", daemon=True)
                self._thread.start()
        done: Future[Any] = Future()
        self._orders.put((work, done))
        return done.result()

    def _obey(self) -> None:
        while True:
            work, done = self._orders.get()
            try:
                done.set_result(work())
            except Exception as error:  # noqa: BLE001 - it is raised where the child was asked for
                done.set_exception(error)


_forker = _Forker()


def _begin_anew() -> None:
    global _forker
    _forker = _Forker()  # a fork takes one thread along, and not that one


os.register_at_fork(after_in_child=_begin_anew)


def start_child(start: Callable[[Bind], subprocess.Popen[AnyStr]]) -> subprocess.Popen[AnyStr]:
    """What `start` returns: `lambda bind: subprocess.Popen(…, preexec_fn=bind)`. The child gets SIGTERM when this
    process ends, in any way. Raises what `start` raises.
    """
    us = os.getpid()

    def bind() -> None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != us:  # it has ended already
            os._exit(1)

    child: subprocess.Popen[AnyStr] = _forker.run(lambda: start(bind))
    return child


def end_with_parent() -> None:
    """From now on: SIGTERM to this process when the process that started it ends, in any way."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_LOOK_S)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="end-with-parent", daemon=True).start()
