#!/usr/bin/env python3
"""Counts what an engine's loss costs its clients, with the model parameter restart_hold_ms and without.

A real server with the simulated engine, which takes --load-ms to start; clients that each send a short request every
--every-ms. The engine is killed (SIGKILL) in the middle. Printed for each setting: requests, how many failed, of those
how many were in the engine when it died, and the longest time any request took. Exit status: 0 done, 1 an error.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from bench.simulated_model import serving
from build_engine.arguments import Parser
from inflight_tools.clients.connection import Value
from inflight_tools.clients.grpc import Connection
from inflight_tools.common import option_types as types
from inflight_tools.common.layout import ENGINE
from inflight_tools.common.report import Failure, run_main

PLACES = 8  # in the engine: some requests wait
TOKENS = 20


@dataclass(frozen=True, slots=True)
class Answer:
    """One request: when it was sent and ended (monotonic seconds), and the error, if it had one."""

    sent: float
    ended: float
    error: str


class Client(threading.Thread):
    """Sends one request after another, one each `every_s`, until `until`."""

    def __init__(self, url: str, number: int, every_s: float, until: float) -> None:
        """Not started yet."""
        super().__init__(name=f"client-{number}", daemon=True)
        self._url, self._number, self._every_s, self._until = url, number, every_s, until
        self.answers: list[Answer] = []

    def run(self) -> None:
        """See the class's text."""
        with Connection(self._url) as connection:
            next_at = time.monotonic() + self._every_s * (self._number % 16) / 16
            while next_at < self._until:
                time.sleep(max(0.0, next_at - time.monotonic()))
                sent, error = time.monotonic(), ""
                prompt = f"client {self._number}"
                values: dict[str, Value] = {"text_input": prompt, "max_tokens": TOKENS, "stream": True}
                try:
                    for _ in connection.stream("llm", values, batched=False, idle_timeout_s=60.0):
                        pass
                except Failure as failure:
                    error = str(failure)
                self.answers.append(Answer(sent, time.monotonic(), error))
                next_at += self._every_s


def measure(options: argparse.Namespace, hold_ms: int) -> tuple[list[Answer], float]:
    """All answers of one run, and when the engine was killed. Raises `Failure`."""
    engine = {"step_ms": 5.0, "max_running": PLACES, "load_ms": options.load_ms}
    with serving(options.engine, engine, {"restart_hold_ms": str(hold_ms)}) as server:
        until = time.monotonic() + options.seconds
        clients = [Client(server.grpc_url, number, options.every_ms / 1000, until) for number in range(options.clients)]
        for client in clients:
            client.start()
        time.sleep(options.seconds / 3)
        (pid,) = server.engine_pids()
        killed = time.monotonic()
        os.kill(pid, signal.SIGKILL)
        for client in clients:
            client.join(options.seconds + 120.0)
        return [answer for client in clients for answer in client.answers], killed


def main(arguments: Sequence[str] | None = None) -> int:
    """See the module's text."""
    parser = Parser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument(
        "--engine", type=types.engine, default=str(ENGINE), metavar="DIR", help="a directory with tokenizer.json"
    )
    parser.add_argument(
        "--hold-ms", type=types.count_or_none, default=10_000, help="restart_hold_ms (default: %(default)s)"
    )
    parser.add_argument(
        "--load-ms", type=types.count_or_none, default=2000, help="what an engine takes to load (default: %(default)s)"
    )
    parser.add_argument("--seconds", type=types.positive, default=9.0, help="of a run (default: %(default)s)")
    parser.add_argument("--clients", type=types.count, default=16, help="default: %(default)s")
    parser.add_argument(
        "--every-ms", type=types.count, default=200, help="between a client's requests (default: %(default)s)"
    )
    options = parser.parse_args(arguments)
    print("| restart_hold_ms | requests | failed | of those sent after the kill | longest, s |\n|---|---|---|---|---|")
    for hold_ms in (0, options.hold_ms):
        answers, killed = measure(options, hold_ms)
        failed = [answer for answer in answers if answer.error]
        late = sum(answer.sent > killed for answer in failed)
        if not answers:
            raise Failure("nobody has asked anything in that time: give it more --seconds.")
        longest = max(answer.ended - answer.sent for answer in answers)
        print(f"| {hold_ms} | {len(answers)} | {len(failed)} | {late} | {longest:.1f} |", flush=True)
    return 0


if __name__ == "__main__":
    run_main(main)
