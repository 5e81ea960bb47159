#!/usr/bin/env python3
"""Keeps a server busy with every kind of client for a given time, and watches its memory.

Starts a server of its own. Clients stream and wait for whole answers, over gRPC and HTTP, leave early, read slowly, and
ask nonsense. Writes soak.csv and soak.svg. Exit status 1 when something was left over at the end, a request had no end,
an answer changed, or the memory of stub or engine grew.
"""

from __future__ import annotations

import asyncio
import csv
import dataclasses
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from build_engine import svg
from build_engine.arguments import Parser
from inflight import control
from inflight_tools.clients.soak import CLIENTS, Clients, canary
from inflight_tools.common import option_types as types
from inflight_tools.common.layout import ENGINE
from inflight_tools.common.report import run_main
from inflight_tools.server.server import Server, ServerConfig

GROWTH_BYTES = 12 << 20  # allowed between the second and the last quarter, beside 5 %
SETTLE_S = 30.0
MEBI = 1 << 20
CONFIG = """\
backend: "inflight"
max_batch_size: 0
model_transaction_policy {{ decoupled: true }}
instance_group [ {{ count: 1, kind: KIND_CPU }} ]
parameters {{ key: "engine" value {{ string_value: "{engine}" }} }}
parameters {{ key: "max_tokens_limit" value {{ string_value: "200" }} }}
parameters {{ key: "engine_options" value {{ string_value: {options} }} }}
"""
SIMULATED = {"step_ms": 5, "max_running": 64}


def write_repository(folder: Path, engine: str) -> Path:
    """One model over the built engine's files."""
    model = folder / "repository" / "llm"
    (model / "1").mkdir(parents=True)
    (model / "1" / "engine").symlink_to(ENGINE)
    options = json.dumps(json.dumps(SIMULATED if engine == "simulated" else {}))
    (model / "config.pbtxt").write_text(CONFIG.format(engine=engine, options=options), encoding="utf-8")
    return model.parent


@dataclasses.dataclass(frozen=True, slots=True)
class Sample:
    """One look at the server: seconds since the start, resident bytes, descriptors, and requests ended so far."""

    seconds: float
    server: int
    stub: int
    engine: int
    descriptors: int
    running: int
    waiting: int
    requests: int


def status(server: Server) -> dict[str, Any]:
    """What the model says it is doing."""
    (pid,) = server.stub_pids()
    return control.ask(control.control_dir() / f"llm-{pid}.sock", {"command": "status"}, 10.0)


class Watcher:
    """Takes a sample every so often."""

    def __init__(self, server: Server, clients: Clients) -> None:
        self._server = server
        self._clients = clients
        self._began = time.monotonic()
        (self._stub,) = server.stub_pids()
        self.samples: list[Sample] = []

    def look(self) -> Sample:
        """One sample."""
        now = status(self._server)
        processes = [psutil.Process(pid) for pid in (self._server.pid, self._stub, now["engine_pid"])]
        server, stub, engine = (process.memory_info().rss for process in processes)
        sample = Sample(
            time.monotonic() - self._began,
            server,
            stub,
            engine,
            sum(process.num_fds() for process in processes),
            now["running"],
            now["waiting"],
            self._clients.ends.total(),
        )
        self.samples.append(sample)
        return sample

    async def watch(self, seconds: float) -> None:
        """For a time."""
        every = max(0.5, min(10.0, seconds / 240))
        await asyncio.to_thread(self.look)
        while time.monotonic() - self._began < seconds:
            await asyncio.sleep(every)
            await asyncio.to_thread(self.look)


def growth(samples: list[Sample], name: str) -> tuple[float, float]:
    """Median resident bytes of a process in the second and in the last quarter."""
    values = [getattr(sample, name) for sample in samples]
    quarter = max(len(values) // 4, 1)
    return statistics.median(values[quarter : 2 * quarter]), statistics.median(values[-quarter:])


@dataclasses.dataclass(frozen=True, slots=True)
class Result:
    """What a soak says; `problems` is empty when all is well."""

    samples: list[Sample]
    ends: Counter[str]
    lines: list[str]
    problems: list[str]


def judge(samples: list[Sample], ends: Counter[str], same_answer: bool, left: dict[str, Any]) -> Result:
    """Look for what must not be."""
    problems = [f"{count} requests had no end ({kind})" for kind, count in ends.items() if kind.endswith("no end")]
    problems += [f"{count} × {kind}" for kind, count in ends.items() if kind.endswith(("Error", "nothing"))]
    lines = [
        f"{ends.total()} requests in {samples[-1].seconds:.0f} s: " + ", ".join(f"{n} {k}" for k, n in ends.items())
    ]
    for name in ("server", "stub", "engine"):
        before, after = growth(samples, name)
        lines.append(f"{name}: {before / MEBI:.0f} MiB in the second quarter, {after / MEBI:.0f} MiB in the last")
        if name != "server" and after > before * 1.05 + GROWTH_BYTES:
            problems.append(f"the memory of the {name} grew from {before / MEBI:.0f} to {after / MEBI:.0f} MiB")
    for name in ("under_way", "running", "waiting", "blocks_reserved", "restarts"):
        if left[name]:
            problems.append(f"{name} is {left[name]} at the end")
    if not same_answer:
        problems.append("the same request was answered differently before and afterwards")
    lines.append("left over: nothing" if not problems else "problems: " + "; ".join(problems))
    return Result(samples, ends, lines, problems)


def write(result: Result, folder: Path) -> None:
    """soak.csv and soak.svg."""
    folder.mkdir(parents=True, exist_ok=True)
    names = [field.name for field in dataclasses.fields(Sample)]
    with (folder / "soak.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(names)
        writer.writerows(dataclasses.astuple(sample) for sample in result.samples)
    series = [
        svg.Series(name, [(sample.seconds, getattr(sample, name) / MEBI) for sample in result.samples])
        for name in ("server", "stub", "engine")
    ]
    title = f"Memory during {result.ends.total()} requests"
    (folder / "soak.svg").write_text(
        svg.chart(title, svg.Axis("seconds"), svg.Axis("resident MiB"), series), encoding="utf-8"
    )


async def soak(server: Server, seconds: float, seed: int, count: int = CLIENTS) -> Result:
    """Keep `server` busy with `count` clients for a time; it has to be ready."""
    before = await canary(server)
    clients = Clients(server, seed, count)
    await clients.greatest()
    watcher = Watcher(server, clients)
    work = asyncio.ensure_future(clients.run())
    await watcher.watch(seconds)
    clients.stopping = True
    await work
    give_up = time.monotonic() + SETTLE_S
    while time.monotonic() < give_up and (await asyncio.to_thread(status, server))["under_way"]:
        await asyncio.sleep(0.1)
    left = await asyncio.to_thread(status, server)
    return judge(watcher.samples, clients.ends, await canary(server) == before, left)


def main(arguments: Sequence[str] | None = None) -> int:
    """Start a server, soak it, write the files."""
    parser = Parser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--seconds", type=types.positive, default=3600.0, help="default: %(default)s")
    parser.add_argument("--engine", choices=("simulated", "openvino"), default="simulated", help="default: %(default)s")
    parser.add_argument("--seed", type=types.count_or_none, default=1, help="default: %(default)s")
    parser.add_argument(
        "--output", type=types.output_folder, default=Path("soak"), metavar="DIR", help="default: %(default)s"
    )
    options = parser.parse_args(arguments)
    folder = Path(tempfile.mkdtemp(prefix="inflight-soak-"))
    os.environ["INFLIGHT_CONTROL_DIR"] = str(folder / "control")
    try:
        repository = write_repository(folder, options.engine)
        config = ServerConfig(repository=repository, log=folder / "tritonserver.log", drain_timeout_s=5.0)
        with Server(config) as server:
            server.wait_ready()
            result = asyncio.run(soak(server, options.seconds, options.seed))
        write(result, options.output)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print("\n".join(result.lines))
    return 1 if result.problems else 0


if __name__ == "__main__":
    run_main(main)
