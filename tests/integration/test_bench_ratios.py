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


def test_most_of_the_engine_reaches_the_client(tmp_path: Path) -> None:
    """The goal is 0.97 of the bare engine's tokens/s."""
    options = ("--concurrency", "8", "--repeats", "1", "--quiet", "1", "--max-tokens", "48")
    (row,) = results("bench/overhead.py", tmp_path / "overhead.json", *options)["comparison"]
    assert row["ratio"] > 0.6
