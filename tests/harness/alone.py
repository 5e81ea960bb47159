"""A test in a process of its own: what it looks at, or does to its process, is nobody else's."""

from __future__ import annotations

import functools
import importlib
import multiprocessing
from collections.abc import Callable

LIMIT_S = 60.0


def in_a_process_of_its_own(test: Callable[[], None]) -> Callable[[], None]:
    """Run a test without arguments there. It fails when the process ends otherwise than it should.

    A new process, not a copy of this one: libraries that other tests have loaded do not bear what such tests do.
    """

    @functools.wraps(test)
    def run() -> None:
        process = multiprocessing.get_context("spawn").Process(target=_call, args=(test.__module__, test.__name__))
        process.start()
        process.join(LIMIT_S)
        if process.is_alive():
            process.kill()
            process.join()
            raise AssertionError(f"it took longer than {LIMIT_S:g} s")
        assert process.exitcode == 0, f"exit code {process.exitcode}; see what it wrote to its standard error"

    return run


def _call(module: str, name: str) -> None:
    getattr(importlib.import_module(module), name).__wrapped__()
