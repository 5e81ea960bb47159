#!/usr/bin/env python3
"""Measures a fleet: three servers with a gateway each behind Envoy, then behind HAProxy, as deploy/ has them.

By policy: how conversations spread, how much of their prompts no server computed again, time to the first token. Then
what clients see, none of which tries again, while a server is killed, its engine is killed, it drains, or all servers
are restarted one after another. Engines are simulated; with --openvino they are real ones. Exit status: 0 done,
1 an error.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import signal
import statistics
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from bench import recipes
from bench.fleet_load import PROTOCOLS, Clients, Request, Traffic, conversations, steady
from bench.fleet_servers import FleetServer
from bench.recipes import Balancer, Recipe
from bench.results import write_results
from build_engine import svg
from build_engine.arguments import Parser
from inflight_tools.common import option_types as types
from inflight_tools.common.layout import ENGINE, REPOSITORY
from inflight_tools.common.report import Failure, run_main

SERVERS = 3
HOLD_MS = "15000"  # restart_hold_ms, as deploy/ recommends: longer than an engine takes to load
SIMULATED = {"step_ms": 8, "prefill_us_per_token": 400, "chunk_tokens": 512}
# name in the table, weights, the word for requests without a session, whether conversations send x-session-id
POLICIES = (
    ("round robin", (1, 1, 1), "round robin", False),
    ("least requests", (1, 1, 1), "least", False),
    ("weights 2:1:1", (2, 1, 1), "round robin", False),
    ("by session", (1, 1, 1), "least", True),
)
BALANCERS: dict[str, Callable[[Path, Recipe], contextlib.AbstractContextManager[Balancer]]] = {
    "envoy": recipes.envoy,
    "haproxy": recipes.haproxy,
}


@contextlib.contextmanager
def fleet(
    folder: Path,
    options: argparse.Namespace,
    hold_ms: str = HOLD_MS,
    models: Sequence[str] = ("llm",),
    count: int = SERVERS,
) -> Iterator[list[FleetServer]]:
    """Ready servers, each with all of `models`. Raises `Failure`."""
    parameters = {"restart_hold_ms": hold_ms, "max_restarts": "100"}
    engine = None if options.openvino else SIMULATED
    servers = [
        FleetServer(folder / recipes.NAMES[at], options.engine, engine, parameters, gateway=True, models=models)
        for at in range(count)
    ]
    try:
        for server in servers:
            server.serve()
        for server in servers:
            server.wait_ready()
        yield servers
    finally:
        for server in servers:
            server.stop()


def metric(server: FleetServer, name: str) -> float:
    """The sum over a metric's samples."""
    with urllib.request.urlopen(f"http://127.0.0.1:{server.ports.metrics}/metrics", timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith((f"{name}{{", f"{name} ")))


def counts(servers: Sequence[FleetServer]) -> list[tuple[float, float, float]]:
    """Of each server: requests ended, prompt tokens, and those that were not computed again."""
    time.sleep(1.5)  # metrics are handed over at an interval
    names = ("inflight_requests_total", "inflight_prompt_tokens_total", "inflight_prefix_cache_hit_tokens_total")
    return [(found[0], found[1], found[2]) for found in ([metric(each, name) for name in names] for each in servers)]


def conversation_row(
    servers: Sequence[FleetServer], balancer: Balancer, options: argparse.Namespace, name: str, sessions: bool
) -> dict[str, Any]:
    """One run of the conversations."""

    async def work() -> list[Request]:
        async with Clients(balancer) as clients:
            return await conversations(clients, options.conversations, options.turns, name, sessions)

    before = counts(servers)
    requests = asyncio.run(work())
    moved = [
        [now - then for now, then in zip(*pair, strict=True)] for pair in zip(counts(servers), before, strict=True)
    ]
    lost = [request for request in requests if not request.whole]
    if lost:
        raise Failure(f"{len(lost)} of {len(requests)} requests failed: {lost[0].error}")
    times = sorted(request.ttft_ms for request in requests)
    return {
        "spread": [int(each[0]) for each in moved],
        # OpenVINO's pipeline does not say how much of a prompt it had already.
        "hits": None if options.openvino else sum(each[2] for each in moved) / sum(each[1] for each in moved),
        "ttft_p50_ms": statistics.median(times),
        "ttft_p99_ms": times[int(0.99 * (len(times) - 1))],
    }


def policies(folder: Path, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Every policy of every balancer, and the most hits that the conversations can have: all on one server."""
    rows = []
    with fleet(folder, options) as servers:
        alone = Balancer(f"127.0.0.1:{servers[0].ports.grpc}", "", "", "")
        for repeat in range(options.repeats):
            run = f"{os.getpid()}.{repeat}"
            possible = conversation_row(servers, alone, options, f"{run}.alone", False)
            rows.append({"balancer": "none", "policy": "one server", **possible})
            for kind, start in BALANCERS.items():
                if kind not in options.balancers:
                    continue
                for policy, weights, word, sessions in POLICIES:
                    places = [replace(each.place, weight=share) for each, share in zip(servers, weights, strict=True)]
                    with start(folder, Recipe(places, word)) as balancer:
                        found = conversation_row(servers, balancer, options, f"{run}.{kind}.{policy}", sessions)
                    rows.append({"balancer": kind, "policy": policy, **found})
                    print(rows[-1], file=sys.stderr, flush=True)
    return rows


def policy_table(rows: Sequence[dict[str, Any]]) -> str:
    """Medians over the repeats."""
    lines = ["| balancer | policy | requests of each server | prefix hits | of the possible | TTFT p50, p99, ms |"]
    lines.append("|---|---|---|---|---|---|")
    middle = statistics.median
    possible = [row["hits"] for row in rows if row["balancer"] == "none" and row["hits"] is not None]
    for key in dict.fromkeys((row["balancer"], row["policy"]) for row in rows):
        these = [row for row in rows if (row["balancer"], row["policy"]) == key]
        spread = " / ".join(f"{middle(row['spread'][at] for row in these):.0f}" for at in range(SERVERS))
        told = "not told | not told"
        if possible:
            hits = middle(row["hits"] for row in these)
            told = f"{100 * hits:.1f} % | {hits / middle(possible):.2f}"
        times = f"{middle(row['ttft_p50_ms'] for row in these):.0f}, {middle(row['ttft_p99_ms'] for row in these):.0f}"
        lines.append(f"| {key[0]} | {key[1]} | {spread} | {told} | {times} |")
    return "\n".join(lines)


def policy_chart(rows: Sequence[dict[str, Any]]) -> str:
    """Hits against the time to the first token, a series for each policy."""
    made: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        if row["balancer"] != "none" and row["hits"] is not None:
            made.setdefault(row["policy"], []).append((100 * row["hits"], row["ttft_p50_ms"]))
    series = [svg.Series(policy, sorted(points)) for policy, points in made.items()]
    axes = svg.Axis("prompt tokens that no server computed again, %"), svg.Axis("time to the first token, p50, ms")
    return svg.chart("Conversations on three servers, by policy", *axes, series)


def kill_server(servers: Sequence[FleetServer]) -> None:
    """SIGKILL to one tritonserver; a new one comes."""
    servers[0].kill()
    servers[0].serve()
    servers[0].wait_ready()
    time.sleep(1.0)


def kill_engine(servers: Sequence[FleetServer]) -> None:
    """SIGKILL to one engine, which its server starts again."""
    os.kill(servers[0].engine_pid(), signal.SIGKILL)
    time.sleep(1.0)
    servers[0].wait_ready()
    time.sleep(1.0)


def drain(servers: Sequence[FleetServer]) -> None:
    """One drains, and takes requests again."""
    servers[0].command("drain")
    time.sleep(1.0)
    servers[0].command("undrain")
    servers[0].wait_ready()
    time.sleep(1.0)


def restart_all(servers: Sequence[FleetServer]) -> None:
    """A rolling restart: SIGTERM, gone, started, ready, and the next."""
    for server in servers:
        left = server.leave()
        if any(left):
            raise Failure(f"a server of the fleet ended with {left}.")
        server.serve()
        server.wait_ready()
        time.sleep(1.0)


# name in the table, restart_hold_ms, what happens, requests at least
EVENTS: tuple[tuple[str, str, Callable[[Sequence[FleetServer]], None], int], ...] = (
    ("a server is killed", HOLD_MS, kill_server, 1000),
    ("an engine is killed", HOLD_MS, kill_engine, 1000),
    ("an engine is killed, restart_hold_ms 0", "0", kill_engine, 1000),
    ("one drains and comes back", HOLD_MS, drain, 1000),
    ("all are restarted, one by one", HOLD_MS, restart_all, 2000),
)


def events(folder: Path, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Every event behind every balancer."""
    rows = []
    for hold_ms in dict.fromkeys(event[1] for event in EVENTS):
        with fleet(folder / f"hold-{hold_ms}", options, hold_ms) as servers:
            for kind, start in BALANCERS.items():
                if kind not in options.balancers:
                    continue
                for name, its_hold, happens, requests in EVENTS:
                    if its_hold != hold_ms or (options.events and options.events not in name):
                        continue
                    with start(folder, Recipe([each.place for each in servers])) as balancer:

                        def now(happens: Callable[[Sequence[FleetServer]], None] = happens) -> None:
                            happens(servers)

                        traffic = steady(balancer, now, requests)
                    rows.append({"balancer": kind, "event": name, **judge(traffic)})
                    print({key: rows[-1][key] for key in rows[-1] if key != "lost"}, file=sys.stderr, flush=True)
    return rows


def judge(traffic: Traffic) -> dict[str, Any]:
    """How many requests failed, and of those how many before anything of an answer had come."""
    lost = traffic.lost
    return {
        "requests": len(traffic.requests),
        "by_protocol": dict(Counter(request.protocol for request in traffic.requests)),
        "seconds": traffic.over - traffic.began,
        "failed": {protocol: sum(request.protocol == protocol for request in lost) for protocol in PROTOCOLS},
        "failed_before_a_token": sum(not request.got and not request.finish for request in lost),
        "longest_s": max(request.ended_at - request.sent_at for request in traffic.requests),
        "lost": [asdict(request) for request in lost[:20]],
    }


def event_table(rows: Sequence[dict[str, Any]]) -> str:
    """One line for each."""
    lines = [
        "| balancer | what happens | requests | failed: gRPC, generate_stream, OpenAI | before a token | longest, s |"
    ]
    lines.append("|---|---|---|---|---|---|")
    for row in rows:
        failed = ", ".join(str(row["failed"][protocol]) for protocol in PROTOCOLS)
        cells = [row["balancer"], row["event"], row["requests"], failed, row["failed_before_a_token"]]
        lines.append(f"| {' | '.join(map(str, cells))} | {row['longest_s']:.1f} s |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """See the module's text."""
    parser = Parser(description=(__doc__ or "").split("\n", 1)[0])
    option = parser.add_argument
    option("what", choices=("policies", "events"))
    option("--balancers", type=types.names(tuple(BALANCERS)), default="envoy,haproxy", help="default: %(default)s")
    option("--events", default="", metavar="TEXT", help="only those whose name has this in it")
    option("--conversations", type=types.count, default=12, help="at once (default: %(default)s)")
    option(
        "--turns",
        type=types.at_least(2, "a first turn has nothing before it that could be reused"),
        default=5,
        help="of each (default: %(default)s)",
    )
    option("--repeats", type=types.count, default=3, help="of the policies (default: %(default)s)")
    option("--engine", type=types.engine, default=str(ENGINE), metavar="DIR", help="engine directory")
    option("--openvino", action="store_true", help="real engines instead of simulated ones")
    option("--output", type=types.output_folder, default=REPOSITORY / "docs" / "benchmarks" / "fleet", metavar="DIR")
    options = parser.parse_args(arguments)
    if not any(options.events in name for name, *_ in EVENTS):
        told = "; ".join(name for name, *_ in EVENTS)
        parser.error(f"--events: no event has {options.events!r} in its name, of {told}")
    command = "scripts/bench/fleet.py " + " ".join(sys.argv[1:] if arguments is None else arguments)
    with tempfile.TemporaryDirectory(prefix="inflight-fleet-") as name:
        rows = (policies if options.what == "policies" else events)(Path(name), options)
    about = "three servers behind a balancer of deploy/"
    write_results(options.output / f"{options.what}.json", about, command, options, rows=rows)
    if options.what == "policies" and not options.openvino:
        (options.output / "policies.svg").write_text(policy_chart(rows), encoding="utf-8")
    print((policy_table if options.what == "policies" else event_table)(rows))
    return 0


if __name__ == "__main__":
    run_main(main)
