"""Builds one engine for a self-check, as a user would."""

from __future__ import annotations

import os
import sys
import time

from inflight_tools.common.layout import BACKEND_SOURCE, REPOSITORY
from inflight_tools.selfcheck.kind import Setup
from inflight_tools.selfcheck.report import EngineReport
from inflight_tools.selfcheck.run import run

BUILD_S = 5400


def build(setup: Setup, target: str, recipe: str) -> EngineReport:
    """Build with build_engine, in this Python."""
    directory = setup.output / f"engine-{recipe}"
    report = EngineReport(recipe, str(directory))
    command = [sys.executable, "-m", "build_engine", "build", str(setup.model.resolve()), "--target", target]
    command += ["--quantization", recipe, "--output", str(directory), "--force"]
    path = os.pathsep.join([str(REPOSITORY), str(BACKEND_SOURCE), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    began = time.monotonic()
    problem = run(command, BUILD_S, {**os.environ, "PYTHONPATH": path})
    report.built_s = time.monotonic() - began
    report.problem = f"build: {problem}" if problem else ""
    return report
