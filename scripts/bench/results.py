"""The JSON file that a benchmark leaves behind: what was measured, how, where and when, and every single figure."""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from pathlib import Path
from typing import Any

CPUINFO = Path("/proc/cpuinfo")
_TELLING = ("avx2", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16")


def processor(cpuinfo: str) -> dict[str, Any]:
    """The processor's name, and which of the instructions that decide speed it has: a virtual machine may move to
    another between two days, and 8-bit weights are computed in 32 bits where there is no VNNI.
    """
    about = dict(line.partition(":")[::2] for line in cpuinfo.partition("\n\n")[0].splitlines())
    about = {name.strip(): value.strip() for name, value in about.items()}
    if "flags" not in about:
        return {}
    name = f"{about.get('model name')}, family {about.get('cpu family')}, model {about.get('model')}"
    return {"processor": name, "instructions": sorted(set(_TELLING).intersection(about["flags"].split()))}


def processor_key() -> str:
    """The same in one line, by which figures of one kind of machine are kept apart from those of another."""
    about = machine()
    return (
        f"{about['cpus']} × {about.get('processor', about['architecture'])}, {' '.join(about.get('instructions', ()))}"
    )


def machine() -> dict[str, Any]:
    """What a figure depends on of the machine that it was measured on."""
    about = {"cpus": os.cpu_count(), "architecture": platform.machine(), "system": platform.system()}
    return {**about, **processor(CPUINFO.read_text(encoding="utf-8") if CPUINFO.exists() else "")}


def write_results(path: Path, what: str, command: str, options: argparse.Namespace, **content: Any) -> None:
    """Write `content` with its circumstances. Paths among the options are left out: they are of this machine only."""
    about = {
        "what": what,
        "command": command,
        "settings": {name: value for name, value in vars(options).items() if not isinstance(value, Path)},
        "machine": machine(),
        "finished": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({**about, **content}, indent=1) + "\n", encoding="utf-8")
    print(f"written: {path}")
