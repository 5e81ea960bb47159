"""Where the LoRA adapters of a model lie: one folder each in `lora_dir`. Every engine looks them up here."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from inflight.engines.base import EngineRefusal
from inflight.model.files import is_folder

SHOWN = 10  # adapters that an error names


def adapter_folder(lora_dir: Path | None, name: str) -> Path:
    """The folder of the adapter `name`. Raises `EngineRefusal` where there is none; no name leads out of `lora_dir`."""
    if lora_dir is not None and name and "/" not in name and not name.startswith("."):
        try:
            if (lora_dir / name).is_dir():
                return lora_dir / name
        except (OSError, ValueError):  # longer than a file name may be, or none at all
            pass
    names = sorted(_adapters(lora_dir)) if lora_dir is not None else []
    known = [each for each in names[: 2 * SHOWN] if lora_dir is not None and is_folder(lora_dir / each)][:SHOWN]
    shown = ", ".join(known) or "none"
    more = f" and {len(names) - SHOWN:,} more" if len(names) > 2 * SHOWN else ""
    raise EngineRefusal(f"is {name!r}; the adapters of this model are {shown}{more}", "lora_name")


def _adapters(lora_dir: Path) -> Iterator[str]:
    """Names of folders. By the folder's own entries: there may be thousands, and the engine waits meanwhile."""
    try:
        with os.scandir(lora_dir) as entries:
            for entry in entries:
                with contextlib.suppress(OSError):
                    if entry.is_dir() and not entry.name.startswith("."):
                        yield entry.name
    except OSError:
        return
