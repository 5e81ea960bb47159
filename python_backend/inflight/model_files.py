"""The JSON files that a checkpoint brings into an engine directory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from inflight.errors import LoadError


def read_json_object(folder: Path, name: str) -> dict[str, Any]:
    """The object in `folder`/`name`; empty when there is no such file. Raises `LoadError` when it is broken."""
    try:
        content = json.loads((folder / name).read_text("utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise LoadError(f"{name} of the engine directory is not JSON ({error}); build the engine again.") from None
    if not isinstance(content, dict):
        raise LoadError(f"{name} of the engine directory is not an object; build the engine again.")
    return content
