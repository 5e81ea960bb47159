"""The JSON file that a benchmark leaves behind: what was measured, how, where and when, and every single figure."""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from pathlib import Path
from typing import Any


def write_results(path: Path, what: str, command: str, options: argparse.Namespace, **content: Any) -> None:
    """Write `content` with its circumstances. Paths among the options are left out: they are of this machine only."""
    about = {
        "what": what,
        "command": command,
        "settings": {name: value for name, value in vars(options).items() if not isinstance(value, Path)},
        "machine": {"cpus": os.cpu_count(), "architecture": platform.machine(), "system": platform.system()},
        "finished": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({**about, **content}, indent=1) + "\n", encoding="utf-8")
    print(f"written: {path}")
