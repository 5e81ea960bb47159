"""What ``nvidia-smi`` tells about this machine's GPUs."""

from __future__ import annotations

import shutil
import subprocess

TIMEOUT_S = 20


def compute_capabilities() -> list[str]:
    """Compute capabilities of this machine's GPUs, one each; empty where none is seen."""
    return _query("compute_cap")


def gpu_memories() -> list[int]:
    """Bytes of memory of this machine's GPUs, one each; empty where a figure is no number."""
    found = _query("memory.total")  # "81559 MiB"
    sizes = [text.split()[0] for text in found]
    return [int(size) << 20 for size in sizes] if all(size.isdigit() for size in sizes) else []


def _query(what: str) -> list[str]:
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return []
    command = [tool, f"--query-gpu={what}", "--format=csv,noheader"]
    try:
        done = subprocess.run(
            command, capture_output=True, encoding="utf-8", errors="replace", timeout=TIMEOUT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return []
    return [line.strip() for line in done.stdout.splitlines() if line.strip()] if done.returncode == 0 else []
