"""Ratios that do not depend on the machine, with generous bounds: a regression of the design is noticed here.

The figures themselves are measured by the scripts, by hand, on a quiet machine (docs/benchmarks).
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from inflight_tools.common.layout import REPOSITORY

pytestmark = [pytest.mark.server, pytest.mark.alone]


def results(script: str, output: Path, *options: str) -> dict[str, Any]:
    """What a benchmark writes."""
    command = [sys.executable, str(REPOSITORY / "scripts" / script), *options, "--output", str(output)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    content: dict[str, Any] = json.loads(output.read_text(encoding="utf-8"))
    return content


@pytest.mark.full
def test_merging_delivers_several_times_what_one_response_per_token_does(tmp_path: Path) -> None:
    """The goal is ten times. The script itself fails when a text is not the one that the engine's tokens make."""
    options = ("--streams", "256", "--repeats", "1", "--waves", "2", "--tokens", "1000")
    turns = results("bench/delivery.py", tmp_path / "delivery.json", *options)["turns"]
    merged, alone = turns
    assert (merged["arm"], alone["arm"]) == ("merged", "one per token")
    assert alone["tokens_per_response"] < 1.1
    assert merged["tokens_per_s"] > 4 * alone["tokens_per_s"]


@pytest.mark.full
def test_most_of_the_engine_reaches_the_client(tmp_path: Path) -> None:
    """The goal is 0.97 of the bare engine's tokens/s."""
    options = ("--concurrency", "8", "--repeats", "1", "--quiet", "1", "--max-tokens", "48")
    (row,) = results("bench/overhead.py", tmp_path / "overhead.json", *options)["comparison"]
    assert row["ratio"] > 0.6


@pytest.mark.full
def test_the_guard_measures_six_ratios_and_fails_beyond_a_bound(tmp_path: Path) -> None:
    """Of a real server, whatever else runs here: bounds of its own, and then one that nothing can keep."""
    bounds = tmp_path / "guard.json"
    command = [sys.executable, str(REPOSITORY / "scripts" / "bench" / "guard.py"), "--bounds", str(bounds)]
    command += ["--repeats", "1", "--quiet", "1", "--patience", "0"]
    learnt = subprocess.run([*command, "--learn"], capture_output=True, text=True, timeout=600)
    assert learnt.returncode == 0, learnt.stderr
    content = json.loads(bounds.read_text(encoding="utf-8"))
    (ratios,) = content["processors"].values()
    assert len(ratios) == 6
    assert all(each["runs"][0] > 0 for each in ratios.values())
    (served,) = (each for name, each in ratios.items() if "over the bare engine" in name)
    served["runs"] = [1000.0]
    bounds.write_text(json.dumps(content), encoding="utf-8")
    done = subprocess.run([*command, "--only", "served"], capture_output=True, text=True, timeout=300)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "| REGRESSION |" in done.stdout
