"""Two real Tritons behind one gateway, under steady load: one drains and comes back, the other is killed.

An answer is whole, or it was never begun and came from the other server, or it ends with its error: never in silence.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bench.fleet_servers import FleetServer
from inflight_tools.common.layout import ENGINE
from tests.conftest import require_installation
from tests.harness.gateway import Gateway, running
from tests.harness.http_client import metric
from tests.reliability.conftest import Report

pytestmark = [pytest.mark.server, pytest.mark.full]

CLIENTS = 12
TOKENS = 12
OPTIONS = {"step_ms": 8}
SETTLED_S = 1.0


@pytest.fixture
def members(tmp_path: Path) -> Iterator[list[FleetServer]]:
    require_installation()
    made = [FleetServer(tmp_path / name, ENGINE, OPTIONS) for name in "ab"]
    for member in made:
        member.serve()
    for member in made:
        member.wait_ready()
    yield made
    for member in made:
        member.stop()


@pytest.fixture
def gateway(members: list[FleetServer]) -> Iterator[Gateway]:
    first, second = (f"127.0.0.1:{member.ports.grpc}" for member in members)
    with running(first, "--triton", second, "--drain-notice", "0") as found:
        found.wait_ready()
        yield found


def finished(members: list[FleetServer]) -> list[float]:
    """Requests that each has brought to their end."""
    places = [f"http://127.0.0.1:{member.ports.metrics}/metrics" for member in members]
    return [metric(place, "inflight_requests_total", outcome="length") for place in places]


async def complete(port: int, number: int, session: str) -> str:
    """One streamed completion: how its client saw it end."""
    asked = {"model": "llm", "prompt": f"request {number}", "max_tokens": TOKENS, "ignore_eos": True, "stream": True}
    asked |= {"stream_options": {"include_usage": True}}
    body = json.dumps(asked).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: gateway\r\nConnection: close\r\nContent-Length: {len(body)}\r\n"
    head += f"x-session-id: {session}\r\n" if session else ""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(f"{head}\r\n".encode() + body)
        answer = (await asyncio.wait_for(reader.read(), 60.0)).decode()
    finally:
        writer.close()
    if " 200 " not in answer.split("\r\n", 1)[0]:
        return f"refused: {answer[-300:]}"
    events = [json.loads(line[6:]) for line in answer.splitlines() if line.startswith("data: {")]
    if any("error" in event for event in events):
        return "broke with its error"
    counted = [event["usage"]["completion_tokens"] for event in events if event.get("usage")]
    return "whole" if "data: [DONE]" in answer and counted == [TOKENS] else f"silent: {answer[-300:]}"


def under_load(port: int, seconds: float, event: Callable[[], Any], sessions: int = 0) -> tuple[Counter[str], Any]:
    """Steady load; after a second `event` happens, and the load goes on for `seconds` more."""

    async def work() -> tuple[Counter[str], Any]:
        ends: Counter[str] = Counter()
        over = asyncio.Event()

        async def client(place: int) -> None:
            number = 0
            while not over.is_set():
                number += 1
                session = f"session {place % sessions}" if sessions else ""
                ends[await complete(port, number * CLIENTS + place, session)] += 1

        clients = [asyncio.ensure_future(client(place)) for place in range(CLIENTS)]
        await asyncio.sleep(1.0)
        try:
            answer = await asyncio.to_thread(event)
            await asyncio.sleep(seconds)
        finally:
            over.set()
        await asyncio.gather(*clients)
        return ends, answer

    return asyncio.run(work())


def test_spread_affinity_a_drain_and_a_kill(members: list[FleetServer], gateway: Gateway, report: Report) -> None:
    before = finished(members)
    ends, _ = under_load(gateway.port, 3.0, lambda: None)
    time.sleep(SETTLED_S)
    shares = [after - begun for after, begun in zip(finished(members), before, strict=True)]
    assert set(ends) == {"whole"}, ends
    assert max(shares) < 1.2 * min(shares), shares
    report(f"spread: {shares} of {sum(ends.values())}")

    before = finished(members)
    ends, _ = under_load(gateway.port, 3.0, lambda: None, sessions=1)  # one session is everybody: the bound holds
    time.sleep(SETTLED_S)
    crowd = [after - begun for after, begun in zip(finished(members), before, strict=True)]
    assert set(ends) == {"whole"}, ends
    assert max(crowd) < 0.8 * sum(crowd), crowd
    assert max(crowd) > 0.52 * sum(crowd), crowd
    report(f"one session of twelve clients: {crowd}")

    def there_and_back() -> tuple[list[float], list[float]]:
        answer = members[0].command("drain")
        assert (answer["drained"], answer["ended"], answer["left"]) == (True, 0, 0)
        time.sleep(SETTLED_S)
        at_rest = finished(members)
        time.sleep(2 * SETTLED_S)
        still = finished(members)
        assert members[0].command("undrain")["undrained"] is True
        return at_rest, still

    ends, (at_rest, still) = under_load(gateway.port, 4.0, there_and_back)
    time.sleep(SETTLED_S)
    assert set(ends) == {"whole"}, ends
    assert still[0] == at_rest[0]
    assert still[1] > at_rest[1]
    assert finished(members)[0] > at_rest[0] + 20, "it was not taken back"
    report(f"drain and undrain: {dict(ends)}")

    ends, _ = under_load(gateway.port, 4.0, members[0].kill)
    assert set(ends) <= {"whole", "broke with its error"}, ends
    assert ends["broke with its error"] <= CLIENTS, "more than were under way"
    assert ends["whole"] > 50
    assert gateway.call("GET", "/ready")[0] == 200
    report(f"killed: {dict(ends)}")
