"""Invariant 6: no input makes the stub crash, harms another request, or is answered with an internal error."""

from __future__ import annotations

import asyncio
import time

import pytest

from inflight_tools.fuzz.inputs import Fuzzer
from maintain.fuzz_requests import Attack, summarize
from tests.reliability.conftest import OpenRig, Report
from tests.reliability.load import drive, make_request, pace, patience
from tests.reliability.rig import Rig

pytestmark = pytest.mark.server

CONTEXT = 1024  # all of which an input may ask for
SEQUENCES = 48  # 16 inputs are under way, and ask for up to three each


@pytest.fixture(scope="module")
def rig(open_rig: OpenRig) -> Rig:
    """As fast as the machine can, with a short context, so that an input costs milliseconds."""
    options = {"real_time": False, "max_seq_len": CONTEXT}
    return open_rig({"llm": {"engine_options": options, "metrics_interval_ms": 100}})


def canary(rig: Rig) -> str:
    (end,) = drive(rig.grpc, lambda load: load.all([make_request(text_input="The canary sings", max_tokens=16)]))
    assert (end.how, end.tokens) == ("length", 16)
    return str(end.text)


@pytest.mark.parametrize(
    ("inputs", "seed"), [(3000, 1), pytest.param(20_000, 2, marks=[pytest.mark.full, pytest.mark.timeout(900)])]
)
def test_no_input_does_harm(rig: Rig, report: Report, inputs: int, seed: int) -> None:
    before, stub, engine = canary(rig), rig.stub_pid(), rig.engine_pid()
    limit_s = patience(CONTEXT, pace(rig.grpc, SEQUENCES))
    counted = sum(value for (name, _), value in rig.flushed().items() if name == "inflight_requests_total")
    began = time.monotonic()
    attack = Attack(Fuzzer(seed), rig.grpc, rig.http, limit_s)
    outcomes = asyncio.run(attack.run(range(inputs)))
    seconds = time.monotonic() - began
    samples = rig.flushed()
    reached = sum(value for (name, _), value in samples.items() if name == "inflight_requests_total") - counted
    summary = summarize(outcomes, reached, seconds)
    for line in summary.lines():
        report(line)
    assert not summary.bad
    assert summary.share >= 0.8
    assert samples["inflight_requests_total", "internal"] == 0.0
    assert summary.by_outcome["answer"] > inputs / 5, "too few inputs get as far as the engine"
    assert (rig.stub_pid(), rig.engine_pid()) == (stub, engine)
    assert rig.status()["restarts"] == 0
    assert canary(rig) == before
    report(f"stub {stub} and engine {engine} are the same; {rig.assert_nothing_left()}; the canary is the same")
