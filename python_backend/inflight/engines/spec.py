"""What the engine process has to load; written by the backend, read in the engine process."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any


@dataclasses.dataclass(frozen=True, slots=True)
class WorkerSpec:
    """What the engine process has to load. `max_running` 0 means the engine's own limit; `python` is the interpreter
    that runs it, empty for the server's own.
    """

    engine: str
    engine_dir: str
    options: Mapping[str, Any]
    max_running: int
    python: str = ""

    def to_json(self) -> dict[str, Any]:
        """For the spec file in the run folder."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> WorkerSpec:
        """The inverse of `to_json`."""
        return cls(**content)
