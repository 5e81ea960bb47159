"""The process that checks guides: `python -m inflight.guides.worker FD`.

It does in a place that can be killed what must not be done anywhere else: it turns a client's guide into a grammar and
compiles that with the engine's own compiler, which crashes on some inputs and takes minutes for others. It has no
state worth keeping and dies with its parent.
"""

from __future__ import annotations

import contextlib
import logging
import os
import resource
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Protocol

from inflight.engine_process import processors
from inflight.engine_process.parent import die_with_parent
from inflight.engines.faults import sparingly
from inflight.grammar.nodes import GrammarError
from inflight.grammar.prepare import prepare
from inflight.guides.cost import Meter, Spent
from inflight.guides.frames import Check, LinkError, Ready, Start, Verdict, receive_in_worker, send

log = logging.getLogger("inflight.guide_worker")

CPU_BACKSTOP_S = 60  # processor time of one check after which the kernel ends us, should the parent not
MAX_GROWTH_BYTES = 1 << 30  # compiled grammars stay in the compiler's cache: beyond this a new process takes over
MAX_PROBLEM = 500  # characters of a sentence to the client
NICENESS = 5  # a check is less urgent than the tokens of those who are served
RECURSION = 5_000


class Compiler(Protocol):
    """An engine's compiler of grammars, away from the engine, for `vocab_size` tokens. A `broken` one must not be used
    again.
    """

    broken: bool
    vocab_size: int

    def compile(self, grammar: str) -> None:
        """Compile it as the engine would. Raises `GrammarError` when it cannot, `MemoryError` when room runs out."""

    def close(self) -> None:
        """Leave nothing behind."""


def main(connection: socket.socket) -> int:
    """Serve until the parent closes the connection."""
    die_with_parent()
    processors.take_all()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.nice(NICENESS)
    sys.setrecursionlimit(RECURSION)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    start = receive_in_worker(connection)
    if not isinstance(start, Start):
        return 1
    try:
        compiler = _compiler(start)
    except GrammarError as error:
        send(connection, Ready(str(error)))
        return 0
    try:
        _limit_memory(start.spare_bytes)
        send(connection, Ready(vocab_size=compiler.vocab_size))
        most_bytes = _rss_bytes() + MAX_GROWTH_BYTES
        while True:
            check = receive_in_worker(connection)
            if not isinstance(check, Check):
                return 1
            _limit_cpu()
            verdict = _check(compiler, check, most_bytes)
            send(connection, verdict)
            if verdict.last:
                return 0
    except LinkError:
        return 0
    finally:
        compiler.close()


def _check(compiler: Compiler, check: Check, most_bytes: int) -> Verdict:
    """`most_bytes` is the memory beyond which this process is to be replaced."""
    grammar = problem = ""
    spent = Spent(0.0, 0.0, 0.0)
    try:
        grammar = prepare(check.kind, check.text, check.thought)
        meter = Meter(time.process_time)
        _compile(compiler, check.kind, grammar)
        spent = meter.spent()
    except GrammarError as error:
        problem = str(error)
    except MemoryError:
        problem = "takes too much memory to compile; make it smaller"
    except RecursionError:
        problem = "is nested too deeply"
    if len(problem) > MAX_PROBLEM:  # it may quote the guide
        problem = problem[:MAX_PROBLEM] + "…"
    last = compiler.broken or _rss_bytes() > most_bytes
    return Verdict("" if problem else grammar, problem, spent.used_s, spent.wall_s, spent.others, last)


def _compile(compiler: Compiler, kind: str, grammar: str) -> None:
    """What the compiler says is about a grammar that no client has seen: it goes to the log."""
    try:
        compiler.compile(grammar)
    except GrammarError as error:
        sparingly.warning("a guide", "the grammar of a guide (%s) is refused by the engine's compiler: %s", kind, error)
        raise GrammarError("is beyond the engine's grammar compiler; simplify it") from None


def _compiler(start: Start) -> Compiler:
    """The engine's compiler. Raises `GrammarError` when this model cannot be guided at all."""
    if start.engine == "openvino":
        from inflight.engines.openvino.guides import OpenVinoCompiler

        return OpenVinoCompiler(Path(start.engine_dir))
    if start.engine == "vllm":
        from inflight.engines.vllm.guides import XgrammarCompiler

        return XgrammarCompiler(Path(start.engine_dir))
    return _NoCompiler()


class _NoCompiler:
    """For engines that compile guides in a place of their own, where a bad one costs only its own request."""

    broken = False
    vocab_size = 0

    def compile(self, grammar: str) -> None:
        """Nothing to do."""

    def close(self) -> None:
        """Nothing to leave."""


def _limit_memory(spare_bytes: int) -> None:
    pages = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[0])
    limit = pages * resource.getpagesize() + spare_bytes
    with contextlib.suppress(ValueError, OSError):  # a harder limit from outside stays
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def _limit_cpu() -> None:
    used = resource.getrusage(resource.RUSAGE_SELF)
    soft = int(used.ru_utime + used.ru_stime) + CPU_BACKSTOP_S
    hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_CPU, (soft if hard < 0 else min(soft, hard), hard))


def _rss_bytes() -> int:
    return int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[1]) * resource.getpagesize()


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(name)s[%(process)d] %(levelname)s %(message)s")
    with socket.socket(fileno=int(sys.argv[1])) as parent_end:
        sys.exit(main(parent_end))
