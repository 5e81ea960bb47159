"""Engines that fail by themselves: they crash, raise, stop returning, cannot load, until nobody tries again."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from typing import Any

import pytest

from tests.reliability.conftest import OpenRig, Report
from tests.reliability.load import drive, make_request, tally
from tests.reliability.rig import Rig

pytestmark = pytest.mark.server

STALL_MS = 1000
FAULT_AT = 60  # the token of the engine's life at which the fault happens
FAULTS = ("crash", "raise", "stall")


@pytest.fixture(scope="module")
def rig(open_rig: OpenRig) -> Rig:
    """One model for each fault; none harms the others."""
    models: dict[str, dict[str, Any]] = {
        fault: {"engine_options": {f"{fault}_at_token": FAULT_AT}, "stall_timeout_ms": STALL_MS} for fault in FAULTS
    }
    models["hopeless"] = {"engine_options": {"crash_at_token": 1}, "max_restarts": 1}
    return open_rig(models)


def repository(rig: Rig, model: str, action: str, **body: Any) -> tuple[int, str]:
    """Triton's repository API: load or unload a model; (status, answer)."""
    url = f"http://{rig.http}/v2/repository/models/{model}/{action}"
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_ends_its_requests_and_a_new_engine_serves(rig: Rig, report: Report, fault: str) -> None:
    began = time.monotonic()
    requests = [make_request(fault, text_input=f"x{number}", max_tokens=2 * FAULT_AT) for number in range(6)]
    ends = drive(rig.grpc, lambda load: load.all(requests))
    seconds = max(end.at for end in ends) - began
    assert {end.how for end in ends} == {"UNAVAILABLE"}, tally(ends)
    assert seconds < 1.0 + (STALL_MS / 1000 + 1.0 if fault == "stall" else 1.0)
    rig.until(lambda: rig.status(fault)["restarts"] == 1 and rig.status(fault)["health"] == "ready", 60.0)
    (end,) = drive(rig.grpc, lambda load: load.all([make_request(fault, text_input="x", max_tokens=FAULT_AT // 2)]))
    assert (end.how, end.tokens) == ("length", FAULT_AT // 2)
    left = rig.assert_nothing_left(fault)
    report(f"6 streams: {tally(ends)} after {seconds:.1f} s; the next engine answers; {left}")


def test_the_refusal_after_the_last_restart_is_clear(rig: Rig, report: Report) -> None:
    """Every life ends at its first token. After max_restarts the model says so, at once and until it is reloaded."""

    def one() -> Any:
        (end,) = drive(rig.grpc, lambda load: load.all([make_request("hopeless", text_input="x", max_tokens=4)]))
        return end

    lives = 0
    while rig.status("hopeless")["health"] != "failed":
        assert one().how == "UNAVAILABLE"
        lives += 1
        rig.until(lambda: rig.status("hopeless")["health"] in ("ready", "failed"), 30.0)
    assert lives == 2
    assert "restarted 1 time" in rig.status("hopeless")["reason"]
    began = time.monotonic()
    refusal = one()
    assert refusal.how == "UNAVAILABLE"
    assert "unload and load the model" in refusal.message
    assert time.monotonic() - began < 1.0
    assert rig.flushed("hopeless")["inflight_engine_up", ""] == 0.0
    assert repository(rig, "hopeless", "unload")[0] == 200
    assert repository(rig, "hopeless", "load")[0] == 200
    assert rig.status("hopeless")["health"] == "ready"
    report(f"{lives} lives; then at once: {refusal.message!r}; unload and load bring it back")


def test_an_engine_that_cannot_load_says_why(rig: Rig, report: Report) -> None:
    """One sentence through Triton's repository API; no process is left behind."""
    from tests.harness.repository import write_model

    sentence = "the weights are of another model; build the engine again."
    options = {"fail_load": sentence, "load_ms": 200}
    write_model(rig.repository, "broken", {"engine": "simulated", "engine_options": options})
    engines = set(rig.server.engine_pids())
    status, answer = repository(rig, "broken", "load")
    assert status == 400
    assert sentence in answer
    assert "Traceback" not in answer
    rig.until(lambda: set(rig.server.engine_pids()) == engines, 10.0)
    report(f"load answered {status} with the engine's own sentence; 0 processes left")


def test_an_engine_that_takes_too_long_to_load_is_ended(rig: Rig, report: Report) -> None:
    from tests.harness.repository import write_model

    write_model(
        rig.repository,
        "slow",
        {"engine": "simulated", "engine_options": {"load_ms": 60_000}, "load_timeout_s": 2},
    )
    engines = set(rig.server.engine_pids())
    began = time.monotonic()
    status, answer = repository(rig, "slow", "load")
    assert status == 400
    assert "load_timeout_s" in answer
    assert time.monotonic() - began < 20.0
    rig.until(lambda: set(rig.server.engine_pids()) == engines, 10.0)
    report(f"load_timeout_s 2: refused after {time.monotonic() - began:.1f} s; 0 processes left")
