"""scripts/gpu_selfcheck.py runs, on the stand-in, and notices what is wrong."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from _layout import ENGINE, REPOSITORY
from tests.doubles.folders import environment, write_engine

SCRIPT = REPOSITORY / "scripts" / "gpu_selfcheck.py"


def selfcheck(tmp_path: Path, *arguments: str, profile: str = "1.2", **double: Any) -> tuple[int, dict[str, Any], str]:
    """(exit status, report, what it printed)."""
    given = environment(tmp_path / "site", profile, **double)
    command = [sys.executable, str(SCRIPT), "--output", str(tmp_path / "out"), *arguments]
    done = subprocess.run(
        command, env={**os.environ, **given}, capture_output=True, text=True, timeout=240, check=False
    )
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    return done.returncode, report, done.stdout + done.stderr


@pytest.mark.server
def test_an_engine_is_served_and_asked(tmp_path: Path) -> None:
    engine = write_engine(tmp_path / "engine", ENGINE)
    status, report, printed = selfcheck(
        tmp_path, "--engine", f"fp8={engine}", "--no-load", "--no-transformers", step_ms=1
    )
    assert status == 0, printed + json.dumps(report, indent=1)
    assert report["facts"]["findings"] == []
    assert report["facts"]["checked"] > 400
    (served,) = report["engines"]
    assert len(served["checks"]) >= 9
    assert all(check["ok"] for check in served["checks"])
    assert served["bench"].startswith("left out")
    assert "## Engine fp8: well" in (tmp_path / "out" / "report.md").read_text()


@pytest.mark.server
@pytest.mark.full
def test_an_engine_that_does_not_load_is_in_the_report(tmp_path: Path) -> None:
    engine = write_engine(tmp_path / "engine", ENGINE)
    status, report, _ = selfcheck(tmp_path, "--engine", f"x={engine}", "--no-load", "--no-facts", oom_at_load=True)
    assert status == 2
    assert "out of memory" in report["engines"][0]["problem"]
