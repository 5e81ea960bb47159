"""Checks before any work: disk and memory. Architecture and output are checked where they are resolved."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from pathlib import Path

from build_engine.architectures import HF_QUANTIZED, OPENVINO, TENSORRT_LLM
from build_engine.console import format_bytes
from build_engine.errors import UserMistake

DISK_MARGIN = 200_000_000
MEMORY_BASE = 1_500_000_000
"""What torch, transformers and nncf take before any weight is loaded, in bytes (measured: 0.9 GB, with margin)."""


PACKAGES = {
    OPENVINO: ("torch", "transformers", "optimum", "nncf", "openvino"),
    TENSORRT_LLM: ("torch", "transformers", "modelopt", "safetensors"),
    HF_QUANTIZED: ("torch", "transformers", "modelopt", "safetensors"),
}
"""What a build of each target imports, as far as it tells whether the extra is installed."""


def check_packages(target: str) -> None:
    """Refuse where what builds ``target`` is not installed."""
    missing = [package for package in PACKAGES[target] if importlib.util.find_spec(package) is None]
    if missing:
        raise UserMistake(
            f"building for {target} needs packages that {sys.executable} lacks ({', '.join(missing)}): "
            'pip install "inflight[build]"'
        )


def existing_parent(path: Path) -> Path:
    path = path.absolute()
    while not path.exists():
        path = path.parent
    return path


def check_disk(output: Path, needed: int, what: str) -> None:
    """Refuse when the file system of ``output`` has less than ``needed`` bytes and a margin free."""
    place = existing_parent(output)
    free = shutil.disk_usage(place).free
    if free < needed + DISK_MARGIN:
        raise UserMistake(
            f"{what} needs {format_bytes(needed + DISK_MARGIN)} of disk under {place} and {format_bytes(free)} "
            "are free: free some or choose another --output"
        )


def check_memory(needed: int, what: str, available: int | None = None) -> None:
    """Refuse when fewer than ``needed`` bytes are available to this process (cgroup limit included)."""
    available = available_memory() if available is None else available
    if available < needed:
        raise UserMistake(
            f"{what} needs {format_bytes(needed)} of memory and {format_bytes(available)} are available: "
            "free some or use a larger machine"
        )


def available_memory() -> int:
    """Bytes that can still be allocated: the smaller of the kernel's MemAvailable and the cgroup's rest."""
    available = _meminfo("MemAvailable") or os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text(encoding="utf-8").strip()
        if limit != "max":
            used = int(Path("/sys/fs/cgroup/memory.current").read_text(encoding="utf-8"))
            inactive = next(
                (
                    int(line.split()[1])
                    for line in Path("/sys/fs/cgroup/memory.stat").read_text(encoding="utf-8").splitlines()
                    if line.startswith("inactive_file ")
                ),
                0,
            )
            available = min(available, int(limit) - used + inactive)
    except (OSError, ValueError):
        pass
    return max(0, available)


def _meminfo(key: str) -> int | None:
    try:
        for line in Path("/proc/meminfo").read_text(encoding="utf-8").splitlines():
            if line.startswith(f"{key}:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError):
        pass
    return None
