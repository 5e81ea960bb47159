"""While an engine starts again, held requests end once each, whatever comes in between: on the real server."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from tests.harness.http_client import HttpClient
from tests.reliability.conftest import OpenRig, Report
from tests.reliability.load import LEFT, End, Load, drive, make_request, tally

pytestmark = [pytest.mark.server, pytest.mark.full]

LOAD_S = 4.0  # what an engine takes to start
HOLD_MS = 30_000
MODELS = ("llm", "drained", "unloaded", "short")


def test_leaves_deadlines_a_drain_an_unload_and_the_limit(open_rig: OpenRig, report: Report) -> None:
    options = {"step_ms": 5, "max_running": 4, "load_ms": LOAD_S * 1000}
    parameters = {"engine_options": options, "restart_hold_ms": HOLD_MS, "metrics_interval_ms": 100}
    models: dict[str, dict[str, Any]] = dict.fromkeys(MODELS, parameters)
    models["short"] = {**parameters, "restart_hold_ms": 700}
    rig = open_rig(models)

    async def without_engine(load: Load, model: str, then: Callable[[], Awaitable[object]], **inputs: Any) -> list[End]:
        """Six requests of a model whose engine was killed; `then` happens while they are held."""
        await asyncio.to_thread(rig.signal_engine, signal.SIGKILL, model)
        await asyncio.to_thread(rig.until, lambda: not rig.status(model)["ready"], 10.0, 0.005)
        requests = [make_request(model, text_input=f"{model} {number}", max_tokens=8, **inputs) for number in range(6)]
        tasks = [asyncio.ensure_future(load.run(each)) for each in requests]
        await asyncio.to_thread(rig.until_at_work, 0, 6, model)
        await then()
        return list(await asyncio.gather(*tasks))

    async def some_leave(load: Load) -> list[End]:
        tasks: list[asyncio.Task[End]] = []

        async def then() -> None:
            leaver, hurried = make_request(text_input="leaves"), make_request(text_input="hurried", deadline_ms=400)
            tasks.append(asyncio.ensure_future(load.run(leaver, leave_after_s=0.3)))
            tasks.append(asyncio.ensure_future(load.run(hurried)))
            await asyncio.gather(*tasks)

        held = await without_engine(load, "llm", then)
        return held + [task.result() for task in tasks]

    async def work(load: Load) -> dict[str, list[End]]:
        http = HttpClient(rig.http)
        path = "/v2/repository/models/unloaded/unload"

        async def drain() -> None:
            answer = await asyncio.to_thread(
                lambda: rig.ask("drain", "drained", timeout_s=30.0, timeout_ms=300, notice_ms=0)
            )
            assert (answer["ended"], answer["left"]) == (6, 0), answer

        return {
            "llm": await some_leave(load),
            "drained": await without_engine(load, "drained", drain),
            "unloaded": await without_engine(
                load, "unloaded", lambda: asyncio.to_thread(http.call, "POST", path, b"{}")
            ),
            "short": await without_engine(load, "short", lambda: asyncio.sleep(0)),
        }

    began = time.monotonic()
    ends = drive(rig.grpc, work)
    assert [end.how for end in ends["llm"]] == ["length"] * 6 + [LEFT, "UNAVAILABLE"], tally(ends["llm"])
    assert "deadline" in ends["llm"][-1].message
    # Triton lets a model finish what it has before it unloads it.
    for model, how in (("drained", "UNAVAILABLE"), ("unloaded", "length"), ("short", "UNAVAILABLE")):
        assert [end.how for end in ends[model]] == [how] * 6, (model, tally(ends[model]))
        assert {end.finals for end in ends[model]} == {1}
    assert all("restart_hold_ms" in end.message for end in ends["short"]), ends["short"][0]
    rig.until(lambda: rig.status("llm")["ready"], 30.0)
    left = rig.assert_nothing_left("llm")
    report(f"{ {model: tally(found) for model, found in ends.items()} } in {time.monotonic() - began:.1f} s; {left}")
