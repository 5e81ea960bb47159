"""Run one heavy step in a child process of its own.

The parent imports no torch: it shows progress, stays responsive to signals, and can end the child at once. The child
(`build_engine.stage_main`) reads its specification from standard input and reports JSON lines over a pipe; whatever
the libraries print goes to a log. A child's memory is its own, so the peak of a step can be measured and is given back
when it ends.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from build_engine.console import Console
from build_engine.errors import AccuracyFailure, StageFailure, UserMistake
from build_engine.interrupt import check

TICK_S = 0.2
END_GRACE_S = 5.0
MAX_LINE_BYTES = 64 * 1024 * 1024

QUIET_ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "DO_NOT_TRACK": "1",
    "TRTLLM_NO_USAGE_STATS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
    "PYTHONFAULTHANDLER": "1",
    "OMP_WAIT_POLICY": "PASSIVE",
}
"""A stage never needs the network: the source was resolved before. OpenMP threads that spin while they wait make a
step many times slower on a machine with other work (measured: a 25 s step took 4 minutes), so they sleep instead."""


def run_stage(
    name: str,
    spec: Mapping[str, Any],
    *,
    console: Console,
    log: Path,
    title: str,
    expected_s: float | None = None,
) -> dict[str, Any]:
    """Run stage ``name`` and return its result, with ``peak_bytes`` and ``seconds`` added.

    Raises `UserMistake` or `StageFailure` with the child's own sentence; a child that dies without one (killed for
    memory, crashed) is named with its signal and its log.
    """
    read_end, write_end = os.pipe()
    started = time.monotonic()
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as log_file, console.step(title, expected_s) as step:
        child = subprocess.Popen(
            [sys.executable, "-m", "build_engine.stage_main", name, str(write_end)],
            stdin=subprocess.PIPE,
            stdout=log_file,
            stderr=log_file,
            pass_fds=(write_end,),
            env={**child_environment(), **QUIET_ENVIRONMENT},
            cwd=log.parent,  # a folder called "triton" where the user stands would pass for torch's triton package
            start_new_session=True,
        )
        os.close(write_end)
        try:
            assert child.stdin is not None
            with contextlib.suppress(BrokenPipeError):
                child.stdin.write(json.dumps(spec).encode())
                child.stdin.close()
            outcome = _follow(read_end, step, console)
            status = child.wait(timeout=END_GRACE_S * 6)
        except subprocess.TimeoutExpired:
            status = -9
        finally:
            os.close(read_end)
            end_process(child)
    if outcome is None:
        raise StageFailure(_died(title, status, log))
    if "error" in outcome:
        kinds = {"user": UserMistake, "accuracy": AccuracyFailure}
        kind = kinds.get(str(outcome.get("kind")), StageFailure)
        hint = f" (log: {log})" if kind is StageFailure else ""
        raise kind(f"{outcome['error']}{hint}")
    result: dict[str, Any] = outcome["result"]
    result["seconds"] = round(time.monotonic() - started, 3)
    return result


def _follow(descriptor: int, step: Any, console: Console) -> dict[str, Any] | None:
    """Pass progress on until the pipe closes; return the line with the result or the error."""
    buffer = b""
    outcome: dict[str, Any] | None = None
    fraction: float | None = None
    note = ""
    while True:
        ready, _, _ = select.select([descriptor], [], [], TICK_S)
        if ready:
            chunk = os.read(descriptor, 1 << 16)
            if not chunk:
                return outcome
            buffer += chunk
            if len(buffer) > MAX_LINE_BYTES:
                raise StageFailure("a build step reported more than it may")
            *lines, buffer = buffer.split(b"\n")
            for line in lines:
                message = json.loads(line)
                if "progress" in message:
                    fraction, note = message["progress"], message.get("note", "")
                elif "warn" in message:
                    console.warn(message["warn"])
                else:
                    outcome = message
        check()
        step.update(fraction, note)


def end_process(child: subprocess.Popen[bytes]) -> None:
    """Make sure that a child that leads its own session, and all that it started, are gone."""
    if child.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, 15)
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(timeout=END_GRACE_S)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, 9)
    child.wait()


def _died(title: str, status: int, log: Path) -> str:
    if status == -9:
        return (
            f"{title}: the process was killed, most likely for lack of memory: "
            f"free some or use a larger machine (log: {log})"
        )
    if status < 0:
        return f"{title}: the process crashed with signal {-status} (log: {log})"
    return f"{title}: the process ended with status {status} and no result (log: {log})"


def child_environment() -> dict[str, str]:
    """The environment of a child that finds `build_engine` and `inflight` where the parent did, installed or not."""
    import inflight.manifest as manifest

    own = Path(__file__).resolve().parents[1]
    shared = Path(str(manifest.__file__)).resolve().parents[1]
    inherited = os.environ.get("PYTHONPATH", "")
    return {**os.environ, "PYTHONPATH": os.pathsep.join(str(part) for part in (own, shared, inherited) if part)}
