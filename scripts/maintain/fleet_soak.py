#!/usr/bin/env python3
"""Keeps three servers behind Envoy busy while something of them is killed every so often, and watches what clients see.

An engine, a tritonserver or a gateway gets SIGKILL, at random; what does not come back by itself is started again. Load
comes over gRPC, generate_stream and OpenAI's completions, and a canary asks the same over each of them. Writes
fleet_soak.csv and fleet_soak.svg. Exit status 1 when a request had no end or a silent one, the canary's text changed,
the memory of a fresh server grew from one life to the next, or something was left over.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import csv
import os
import random
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path

import psutil

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from bench import fleet, recipes
from bench.fleet_load import PROTOCOLS, Clients, Request
from bench.fleet_servers import FleetServer
from build_engine import svg
from build_engine.arguments import Parser
from inflight_tools.common import option_types as types
from inflight_tools.common.layout import ENGINE
from inflight_tools.common.report import Failure, run_main
from inflight_tools.server import shm

CLIENTS = 6  # over each protocol
EVERY_S = 0.15  # between a client's requests
CANARY_S = 2.0
CANARY = Request("grpc", "the canary sings", 24)
TOLD_S = 60.0  # between lines that say how it goes
GROWTH = 1.25  # of the fleet's memory, the last quarter over the second: servers of many ages
MEBI = 1 << 20


@dataclass(frozen=True, slots=True)
class Sample:
    """One look: seconds since the start, resident bytes and open files of everything, requests ended so far."""

    seconds: float
    resident: int
    files: int
    requests: int
    failed: int


@dataclass(slots=True)
class Seen:
    """What the clients saw, counted."""

    ends: Counter[str] = field(default_factory=Counter)
    kills: Counter[str] = field(default_factory=Counter)
    refusals: Counter[str] = field(default_factory=Counter)  # what was said to clients that had no token
    problems: list[str] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    regions: set[Path] = field(default_factory=set)  # of shared memory, that the fleet's stubs had
    canaries: int = 0
    text: str = ""

    @property
    def failed(self) -> int:
        """Requests that ended in an error."""
        return sum(count for how, count in self.ends.items() if how != "whole")

    def line(self) -> str:
        """How it goes, or went."""
        resident = self.samples[-1].resident / MEBI if self.samples else 0.0
        counts = f"requests: {dict(self.ends)}; killed: {dict(self.kills)}; canaries: {self.canaries} alike"
        return "; ".join([f"{counts}; {resident:.0f} MiB", *self.problems])

    def note(self, request: Request) -> None:
        """One request has ended."""
        if request.whole:
            self.ends["whole"] += 1
        elif request.error.startswith("no end"):
            self._problem(f"{request.protocol}: {request.error}")
        elif not request.error:
            self._problem(f"{request.protocol}: a silent end after {request.got} of {request.tokens} tokens")
        else:
            self.ends["broken after tokens" if request.got else "refused"] += 1
            if not request.got:
                self.refusals[f"{request.protocol}: {request.error[:160]}"] += 1

    def sing(self, request: Request) -> None:
        """A canary has ended."""
        self.note(request)
        if request.whole:
            self.canaries += 1
            self.text = self.text or request.text
            if request.text != self.text:
                self._problem(f"the canary over {request.protocol} said {request.text!r}, not {self.text!r}")

    def _problem(self, what: str) -> None:
        self.ends["problem"] += 1
        if len(self.problems) < 20:
            self.problems.append(what)


async def load(balancer: recipes.Balancer, seen: Seen, over: threading.Event) -> None:
    """Every client, and the canary, until `over`."""
    async with Clients(balancer) as clients:

        async def client(protocol: str, number: int) -> None:
            due, sent = time.monotonic() + EVERY_S * number / CLIENTS, 0
            while not over.is_set():
                await asyncio.sleep(max(0.0, due - time.monotonic()))
                due, sent = max(due + EVERY_S, time.monotonic()), sent + 1
                tokens = 200 if sent % 40 == 0 else 6
                seen.note(await clients.send(Request(protocol, f"{protocol} {number} {sent % 50}", tokens)))

        async def canary() -> None:
            while not over.is_set():
                for protocol in PROTOCOLS:
                    seen.sing(await clients.send(Request(protocol, CANARY.prompt, CANARY.tokens)))
                await asyncio.sleep(CANARY_S)

        await asyncio.gather(canary(), *(client(protocol, at) for protocol in PROTOCOLS for at in range(CLIENTS)))


def regions_of(pid: int) -> set[Path]:
    """The regions of shared memory that a process has mapped; other servers of this machine have theirs."""
    with contextlib.suppress(OSError):
        lines = Path(f"/proc/{pid}/maps").read_text(encoding="utf-8").splitlines()
        names = {line.split()[-1] for line in lines if shm.PATTERN.rstrip("*") in line}
        return {Path(name) for name in names}
    return set()


def look(servers: Sequence[FleetServer], seen: Seen, began: float) -> None:
    """One sample of every process of the fleet."""
    resident = files = 0
    for server in servers:
        for process in server.family():
            with contextlib.suppress(psutil.Error):
                resident += process.memory_info().rss
                files += process.num_fds()
                seen.regions |= regions_of(process.pid)
    seen.samples.append(Sample(time.monotonic() - began, resident, files, seen.ends.total(), seen.failed))


def kill(servers: Sequence[FleetServer], seen: Seen, chance: random.Random) -> None:
    """Something of one of them; it comes back."""
    server, what = chance.choice(servers), chance.choice(("engine", "server", "gateway"))
    if not server.is_ready():
        return
    seen.kills[what] += 1
    if what == "server":
        server.kill()
        server.serve()
    else:
        os.kill(server.engine_pid() if what == "engine" else server.gateway_pid(), signal.SIGKILL)


def soak(folder: Path, options: argparse.Namespace) -> Seen:
    """The whole of it."""
    seen, over, chance = Seen(), threading.Event(), random.Random(options.seed)
    with (
        fleet.fleet(folder, options) as servers,
        recipes.envoy(folder, recipes.Recipe([one.place for one in servers])) as at,
    ):
        with ThreadPoolExecutor(1, "fleet-soak") as executor:
            running = executor.submit(asyncio.run, load(at, seen, over))
            began = time.monotonic()
            next_kill, next_told = began + options.every, began + TOLD_S
            try:
                while time.monotonic() - began < options.seconds and not running.done():
                    time.sleep(max(1.0, options.seconds / 600))
                    look(servers, seen, began)
                    if time.monotonic() >= next_kill:
                        next_kill += options.every
                        kill(servers, seen, chance)
                    if time.monotonic() >= next_told:
                        next_told += TOLD_S
                        print(f"{time.monotonic() - began:.0f} s: {seen.line()}", file=sys.stderr, flush=True)
            finally:
                over.set()
            running.result()
        for server in servers:
            server.wait_ready()
            answer = server.command("status")
            left = {name: answer[name] for name in ("running", "waiting", "under_way", "blocks_reserved")}
            if any(left.values()):
                seen.problems.append(f"a server still has {left}")
    left_regions = sorted(str(path) for path in seen.regions if path.exists())
    if left_regions or not seen.regions:
        seen.problems.append(f"of {len(seen.regions)} regions left in /dev/shm: {left_regions}")
    return seen


def judge_growth(seen: Seen) -> str:
    """The fleet's memory, early and late."""
    values = sorted(sample.resident for sample in seen.samples[len(seen.samples) // 4 : len(seen.samples) // 2])
    late = sorted(sample.resident for sample in seen.samples[-(len(seen.samples) // 4) :])
    first, last = values[len(values) // 2], late[len(late) // 2]
    if last > GROWTH * first:
        seen.problems.append(f"memory grew from {first / MEBI:.0f} to {last / MEBI:.0f} MiB")
    return f"{first / MEBI:.0f} MiB in the second quarter, {last / MEBI:.0f} in the last"


def write(seen: Seen, folder: Path) -> None:
    """The samples and a chart of them."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "fleet_soak.csv").open("w", encoding="utf-8", newline="") as file:
        rows = csv.DictWriter(file, list(asdict(seen.samples[0])), lineterminator="\n")
        rows.writeheader()
        rows.writerows(asdict(sample) for sample in seen.samples)
    memory = [(sample.seconds / 60, sample.resident / MEBI) for sample in seen.samples]
    axes = svg.Axis("minutes"), svg.Axis("resident memory of the fleet, MiB")
    chart = svg.chart("Three servers behind Envoy, something killed every 20 s", *axes, [svg.Series("all", memory)])
    (folder / "fleet_soak.svg").write_text(chart, encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> int:
    """See the module's text."""
    parser = Parser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--seconds", type=types.positive, default=3600.0, help="default: %(default)s")
    parser.add_argument(
        "--every", type=types.positive, default=20.0, metavar="S", help="between kills (default: %(default)s)"
    )
    parser.add_argument("--seed", type=types.count_or_none, default=1, help="default: %(default)s")
    parser.add_argument("--engine", type=types.engine, default=str(ENGINE), metavar="DIR", help="engine directory")
    parser.add_argument("--openvino", action="store_true", help="real engines instead of simulated ones")
    parser.add_argument("--output", type=types.output_folder, default=Path("."), metavar="DIR", help="default: here")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="inflight-fleet-soak-") as name:
        seen = soak(Path(name), options)
    if len(seen.samples) < 2:  # the early is compared with the late
        raise Failure("less than two samples were taken: give it more --seconds.")
    memory = judge_growth(seen)
    write(seen, options.output)
    print(f"requests: {dict(seen.ends)}; killed: {dict(seen.kills)}; canaries: {seen.canaries} alike; memory: {memory}")
    for refusal, count in seen.refusals.most_common(20):
        print(f"refused {count} times: {refusal}")
    for problem in seen.problems:
        print(f"PROBLEM: {problem}")
    return 1 if seen.problems else 0


if __name__ == "__main__":
    run_main(main)
