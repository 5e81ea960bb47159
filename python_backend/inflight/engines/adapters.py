"""Where the LoRA adapters of a model lie: one folder each in `lora_dir`. Every engine looks them up here."""

from __future__ import annotations

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
    known = sorted(path.name for path in lora_dir.glob("*") if is_folder(path))[:SHOWN] if lora_dir is not None else []
    raise EngineRefusal(f"is {name!r}; the adapters of this model are {', '.join(known) or 'none'}", "lora_name")
