"""Runs the real perf_analyzer (Triton's load generator) with gRPC streaming, one level of load at a time."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from inflight_tools.common.layout import CACHE
from inflight_tools.common.report import Failure
from inflight_tools.load.profile_export import BrokenExport, Request, read_export
from inflight_tools.server.children import start_child

PROGRAM = CACHE / "bin" / "perf_analyzer"
_ATTEMPTS = 4
_POLL_S = 0.1
_VERSION_S = 10.0

Inputs = Mapping[str, Sequence[str | int | float | bool]]


@dataclass(frozen=True, slots=True)
class Load:
    """How requests are sent: a fixed number in flight, or a rate per second with Poisson or constant arrivals."""

    concurrency: int | None = None
    rate: float | None = None
    arrivals: str = "poisson"

    def __str__(self) -> str:
        """As the tables show it."""
        if self.concurrency is not None:
            return f"concurrency {self.concurrency}"
        return f"{self.rate:g} requests/s ({self.arrivals})"

    def options(self) -> list[str]:
        """perf_analyzer's options for it."""
        if self.concurrency is not None:
            return ["--concurrency-range", str(self.concurrency)]
        return ["--request-rate-range", f"{self.rate:g}", "--request-distribution", self.arrivals]


def find_perf_analyzer(program: Path | None = None) -> Path:
    """The program to run: `program` if given, else the one in .cache, else the one on PATH. Raises `Failure`."""
    if program is not None:
        if not os.access(program, os.X_OK):
            raise Failure(f"{program} is not a program: name perf_analyzer with --perf-analyzer.")
        return program
    if PROGRAM.exists():
        return PROGRAM
    on_path = shutil.which("perf_analyzer")
    if on_path is None:
        raise Failure(
            "there is no perf_analyzer here: fetch it with `.venv/bin/python scripts/fetch_triton.py --perf-analyzer` "
            "in a checkout of Inflight, or put one on PATH (NVIDIA's SDK image has it)."
        )
    return Path(on_path)


def version_of(program: Path) -> str:
    """What the program calls itself, such as `Perf Analyzer Version 2.51.0`; empty where it does not say."""
    try:
        done = subprocess.run(
            [str(program), "--version"],
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            stdin=subprocess.DEVNULL,
            timeout=_VERSION_S,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    first = (done.stdout.strip() or done.stderr.strip()).partition("\n")[0]  # 2.51 says it on standard error
    return first.partition(" (")[0][:80]


def measure(
    program: Path,
    url: str,
    model: str,
    load: Load,
    inputs: Sequence[Inputs],
    timeout_s: float,
    tick: Callable[[float], None] = lambda _seconds: None,
    keep: Sequence[str] = (),
) -> list[Request]:
    """Send every element of `inputs` once, in order, and give the requests by the time they were sent.

    Raises `Failure` when a request fails, when it takes more than `timeout_s` seconds, or when nothing can be measured.
    `tick` is called with the seconds so far, about ten times a second. `keep` names outputs that every request asks for
    and that the caller wants to see.
    """
    with tempfile.TemporaryDirectory(prefix="inflight-load-") as folder:
        data, export = Path(folder) / "inputs.json", Path(folder) / "export.json"
        data.write_text(json.dumps({"data": [_tensors(each) for each in inputs]}), encoding="utf-8")
        command = [
            str(program),
            *("-m", model, "-u", url, "-i", "grpc", "--async", "--streaming"),
            *("--input-data", str(data), *load.options()),
            # One window over exactly these requests, whatever its spread: the spread is for us to report.
            *("--measurement-mode", "count_windows", "--request-count", str(len(inputs))),
            *("--stability-percentage", "999", "--profile-export-file", str(export)),
        ]
        for _ in range(_ATTEMPTS):
            export.unlink(missing_ok=True)
            _run(command, Path(folder), timeout_s, tick)
            # It writes what its memory holds for outputs that were not sent. If that happens to be a float that is not
            # a number, its JSON writer gives up, and the file stays empty or ends in the middle; where the memory lies
            # is new in each run.
            with contextlib.suppress(BrokenExport, FileNotFoundError):
                return read_export(export, keep)
    raise Failure(f"perf_analyzer wrote no whole profile export in {_ATTEMPTS} runs: run the load test again.")


def _tensors(inputs: Inputs) -> dict[str, object]:
    return {name: {"content": list(values), "shape": [len(values)]} for name, values in inputs.items()}


def _run(command: list[str], folder: Path, timeout_s: float, tick: Callable[[float], None]) -> None:
    log = folder / "log"
    # One arena: fewer places in memory that may hold what is not a number (see above).
    environment = {**os.environ, "MALLOC_ARENA_MAX": "1"}
    with log.open("wb") as output:
        process = start_child(
            lambda bind: subprocess.Popen(
                command,
                cwd=folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # it answers Ctrl-C by finishing its requests; we end it at once
                preexec_fn=bind,
            )
        )
    begin = time.monotonic()
    try:
        while process.poll() is None:
            elapsed = time.monotonic() - begin
            if elapsed > timeout_s:
                raise Failure(
                    f"perf_analyzer was not done after {timeout_s:g} s: allow more with --timeout, or ask for fewer "
                    "--requests."
                )
            tick(elapsed)
            time.sleep(_POLL_S)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(timeout=10)
    if process.returncode:
        raise Failure(_reason(log.read_text(encoding="utf-8", errors="replace"), process.returncode))


def _reason(log: str, status: int) -> str:
    """One sentence for what perf_analyzer printed before it failed."""
    lines = [line.strip() for line in log.splitlines()]
    for line in lines:
        for begin in ("Thread [0] had error:", "error:", "Error:"):
            if line.startswith(begin):
                return f"the load test failed: {line.removeprefix(begin).strip().rstrip('.')}."
    if status < 0:
        return f"perf_analyzer was killed by {signal.Signals(-status).name}: run the load test again."
    last = next((line for line in reversed(lines) if line), "it printed nothing")
    return f"perf_analyzer failed with status {status}: {last}."
