"""scripts/load_test.py with the real perf_analyzer against a real server."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from inflight_tools.common.layout import REPOSITORY
from inflight_tools.server.processes import command_line, living_pids
from tests.conftest import MakeServer

pytestmark = pytest.mark.server

SCRIPT = [sys.executable, str(REPOSITORY / "scripts" / "load_test.py")]


def load(url: str, *options: str) -> subprocess.CompletedProcess[str]:
    """Run the script to its end."""
    return subprocess.run([*SCRIPT, "--url", url, *options], capture_output=True, text=True, timeout=200)


def results(folder: Path) -> list[dict[str, Any]]:
    """The levels in results.json."""
    levels: list[dict[str, Any]] = json.loads((folder / "results.json").read_text())["levels"]
    return levels


def test_figures_are_those_of_the_engine(make_server: MakeServer, tmp_path: Path) -> None:
    """The simulated engine's time is known: a step of 20 ms gives every running sequence one token."""
    options = {"step_ms": 20, "prefill_us_per_token": 0, "decode_us_per_sequence": 0}
    url = make_server({"llm": {"engine_options": options}}).grpc_url
    output = tmp_path / "out"
    done = load(
        url,
        "--concurrency",
        "1,4",
        "--requests",
        "8",
        "--max-tokens",
        "16",
        "--prompt-tokens",
        "20",
        "--output",
        str(output),
    )
    assert done.returncode == 0, done.stderr
    assert "concurrency 4" in done.stdout
    one, four = results(output)
    for result in (one, four):
        assert result["requests"] == 8
        assert result["tokens"] == 8 * 16
        assert 15 <= result["prompt_tokens"] <= 25
        assert 19 <= result["itl"]["mean"] <= 40  # never faster than the engine
        assert result["ttft"]["p50"] <= result["ttft"]["p99"] <= result["latency"]["p99"]
    assert one["tokens_per_s"] <= 50
    assert four["tokens_per_s"] > 2 * one["tokens_per_s"]  # in-flight batching
    assert four["usage"]["cpu_cores"] > 0  # the server runs on this machine, so it is watched
    assert "<svg" in (output / "report.html").read_text()
    rows = list(csv.DictReader((output / "results.csv").open()))
    assert [row["load"] for row in rows] == ["concurrency 1", "concurrency 4"]
    assert float(rows[1]["tokens_per_s"]) == four["tokens_per_s"]


@pytest.mark.full
def test_tokens_are_counted_where_a_response_carries_several(make_server: MakeServer, tmp_path: Path) -> None:
    """An engine faster than responses can be sent."""
    url = make_server({"llm": {"engine_options": {"real_time": False}}}).grpc_url
    done = load(url, "--concurrency", "8", "--requests", "16", "--max-tokens", "200", "--output", str(tmp_path))
    assert done.returncode == 0, done.stderr
    (result,) = results(tmp_path)
    assert result["tokens"] == 16 * 200
    assert result["tokens_per_response"] > 1.5


@pytest.mark.full
def test_a_rate_and_a_batched_model(make_server: MakeServer, tmp_path: Path) -> None:
    url = make_server(batched=True).grpc_url
    options = ("--rate", "20", "--arrivals", "constant", "--requests", "20", "--warmup", "0", "--max-tokens", "4")
    done = load(url, *options, "--output", str(tmp_path))
    assert done.returncode == 0, done.stderr
    (result,) = results(tmp_path)
    assert result["requests_per_s"] == pytest.approx(20, rel=0.35)
    assert result["tokens"] == 80


def test_a_refused_request_is_one_sentence(make_server: MakeServer) -> None:
    done = load(make_server().grpc_url, "--concurrency", "1", "--requests", "2", "--parameter", "min_tokens=1000")
    assert done.returncode == 1
    assert done.stderr == "error: the load test failed: min_tokens is 1000, more than max_tokens (64).\n"


def test_ctrl_c_leaves_nothing_running(make_server: MakeServer) -> None:
    url = make_server().grpc_url
    process = subprocess.Popen(
        [*SCRIPT, "--url", url, "--concurrency", "1", "--requests", "500"], stderr=subprocess.PIPE, text=True
    )
    give_up = time.monotonic() + 60
    while not _generators(url):
        assert time.monotonic() < give_up
        time.sleep(0.05)
    process.send_signal(2)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert errors.splitlines()[-1] == "stopped"
    assert not _generators(url)


def _generators(url: str) -> list[int]:
    """perf_analyzers that load this server."""
    lines = ((pid, command_line(pid)) for pid in living_pids())
    return [pid for pid, line in lines if line and line[0].endswith("perf_analyzer") and url in line]
