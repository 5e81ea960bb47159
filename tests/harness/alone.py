"""A test in a process of its own: what it looks at, or does to its process, is nobody else's."""

from __future__ import annotations

import functools
import multiprocessing
from collections.abc import Callable

LIMIT_S = 60.0


def in_a_process_of_its_own(test: Callable[[], None]) -> Callable[[], None]:
    """Run a test without arguments there. It fails when the process ends otherwise than it should."""

    @functools.wraps(test)
    def run() -> None:
        process = multiprocessing.get_context("fork").Process(target=test)
        process.start()
        process.join(LIMIT_S)
        if process.is_alive():
            process.kill()
            process.join()
            raise AssertionError(f"it took longer than {LIMIT_S:g} s")
        assert process.exitcode == 0, "see what it wrote to its standard error"

    return run
