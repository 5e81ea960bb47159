"""Runs one part of a self-check in a process of its own, so that its trouble ends nothing else."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from inflight.engines.python import UNTOLD
from inflight_tools.common.layout import SCRIPTS


def child_environment() -> dict[str, str]:
    """Of a child that runs a module of this package with this Python."""
    paths = [str(SCRIPTS), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, **UNTOLD, "PYTHONPATH": os.pathsep.join(paths)}


def run(command: Sequence[str], limit_s: float, environment: Mapping[str, str] | None = None) -> str:
    """Why the command failed, the last line of its standard error; empty when it did not."""
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=limit_s,
            check=False,
            env=environment,
        )
    except subprocess.TimeoutExpired:
        return f"took longer than {limit_s:g} s"
    lines = done.stderr.strip().splitlines()
    return (lines[-1] if lines else f"exit status {done.returncode}") if done.returncode else ""


def result_of(
    command: Sequence[str], target: Path, limit_s: float, environment: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """The JSON object that the command leaves in `target`, or a `problem`: the one in there, else why it failed."""
    target.unlink(missing_ok=True)
    problem = run(command, limit_s, environment)
    if not target.is_file():
        return {"problem": problem or "nothing was written"}
    try:
        found: dict[str, Any] = json.loads(target.read_text(encoding="utf-8"))
    except ValueError as error:
        return {"problem": f"{target.name} cannot be read: {error}"}
    return {"problem": problem} if problem and "problem" not in found else found
