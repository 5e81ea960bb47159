"""What a server on this machine uses while it is under load: CPU, memory, and the GPU where there is one."""

from __future__ import annotations

import os
import shutil
import subprocess
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_LISTEN = "0A"  # state in /proc/net/tcp
_INTERVAL_S = 0.1
_GPU_INTERVAL_S = 1.0  # asking for it starts a program
_GPU_QUERY = ("--query-gpu=utilization.gpu,memory.used", "--format=csv,noheader,nounits")


@dataclass(frozen=True, slots=True)
class Sample:
    """At one time (nanoseconds since the epoch): CPU seconds so far, resident bytes; of all GPUs, percent and bytes."""

    at: int
    cpu_s: float
    memory: int
    gpu_percent: float | None = None
    gpu_memory: int | None = None


@dataclass(frozen=True, slots=True)
class Usage:
    """Over an interval: CPU cores used on average, most memory in bytes, and CPU seconds per 1,000 tokens."""

    cpu_cores: float
    cpu_s_per_1000_tokens: float
    memory: int
    gpu_percent: float | None
    gpu_memory: int | None

    def to_json(self) -> dict[str, Any]:
        """All fields."""
        return asdict(self)


class Sampler:
    """Samples a process and all that descends from it, from a thread of its own, while the context is open."""

    def __init__(self, pid: int) -> None:
        """`pid`: of tritonserver. Its processes are those that run when the context is entered."""
        self._pids = [pid, *descendants(pid)]
        self._nvidia_smi = shutil.which("nvidia-smi")
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, name="resource-sampler", daemon=True)
        self.samples: list[Sample] = []

    def __enter__(self) -> Sampler:
        """Begin."""
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End, with a last sample."""
        self._end.set()
        self._thread.join(timeout=10)

    def _run(self) -> None:
        gpu: tuple[float | None, int | None] = (None, None)
        asked = float("-inf")
        while True:
            ending = self._end.wait(_INTERVAL_S) if self.samples else False
            if time.monotonic() - asked >= _GPU_INTERVAL_S:
                asked = time.monotonic()
                gpu = self._gpu()
            cpu, memory = 0.0, 0
            for pid in self._pids:
                of_cpu, of_memory = _of_process(pid)
                cpu, memory = cpu + of_cpu, memory + of_memory
            self.samples.append(Sample(time.time_ns(), cpu, memory, *gpu))
            if ending:
                return

    def _gpu(self) -> tuple[float | None, int | None]:
        if self._nvidia_smi is None:
            return None, None
        try:
            answer = subprocess.run(
                [self._nvidia_smi, *_GPU_QUERY],
                capture_output=True,
                encoding="utf-8",
                errors="replace",
                timeout=5,
                check=True,
            )
            rows = [[float(value) for value in line.split(",")] for line in answer.stdout.splitlines() if line.strip()]
        except (OSError, subprocess.SubprocessError, ValueError):
            return None, None
        if not rows:
            return None, None
        return sum(row[0] for row in rows) / len(rows), int(sum(row[1] for row in rows) * 2**20)


def usage(samples: Sequence[Sample], start: int, end: int, tokens: float) -> Usage | None:
    """What was used from `start` to `end` (ns since the epoch), when so many tokens came; None with too few samples."""
    inside = [sample for sample in samples if start <= sample.at <= end]
    if len(inside) < 2 or inside[-1].at == inside[0].at:
        return None
    seconds = (inside[-1].at - inside[0].at) / 1e9
    cpu = inside[-1].cpu_s - inside[0].cpu_s
    tokens_then = tokens * seconds * 1e9 / (end - start)
    percents = [sample.gpu_percent for sample in inside if sample.gpu_percent is not None]
    memories = [sample.gpu_memory for sample in inside if sample.gpu_memory is not None]
    return Usage(
        cpu_cores=cpu / seconds,
        cpu_s_per_1000_tokens=1000 * cpu / tokens_then if tokens_then else 0.0,
        memory=max(sample.memory for sample in inside),
        gpu_percent=sum(percents) / len(percents) if percents else None,
        gpu_memory=max(memories) if memories else None,
    )


def processor() -> str:
    """The kind of CPU of this machine, as Linux names it; empty where it does not."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(("model name", "Model"))), "")


def listener(url: str) -> int | None:
    """The process that listens at host:port, if it runs on this machine and may be looked at."""
    host, _, port = url.rpartition(":")
    if host.strip("[]") not in ("localhost", "127.0.0.1", "::1", "0.0.0.0") or not port.isdigit():
        return None
    inodes = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        try:
            lines = Path(table).read_text(encoding="utf-8").splitlines()[1:]
        except OSError:
            continue
        for line in lines:
            fields = line.split()
            if fields[3] == _LISTEN and int(fields[1].rpartition(":")[2], 16) == int(port):
                inodes.add(f"socket:[{fields[9]}]")
    for entry in os.scandir("/proc"):
        if entry.name.isdigit() and inodes & _open_files(int(entry.name)):
            return int(entry.name)
    return None


def descendants(pid: int) -> list[int]:
    """Every process that comes from `pid`."""
    children: dict[int, list[int]] = {}
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            fields = _stat(int(entry.name))
            if fields:
                children.setdefault(int(fields[1]), []).append(int(entry.name))
    found, queue = [], [pid]
    while queue:
        below = children.get(queue.pop(), [])
        found += below
        queue += below
    return found


def _open_files(pid: int) -> set[str]:
    found = set()
    try:
        for descriptor in os.scandir(f"/proc/{pid}/fd"):
            try:
                found.add(os.readlink(descriptor.path))
            except OSError:
                continue
    except OSError:
        pass
    return found


def _stat(pid: int) -> list[str]:
    """Fields of /proc/PID/stat from the third (state) on; empty when the process is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        return []


def _of_process(pid: int) -> tuple[float, int]:
    """(CPU seconds, resident bytes) of a process; zeros when it is gone."""
    fields = _stat(pid)
    if not fields:
        return 0.0, 0
    return (int(fields[11]) + int(fields[12])) / _TICKS_PER_S, int(fields[21]) * _PAGE_BYTES
