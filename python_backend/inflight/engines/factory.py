"""Which engine runs an engine directory. Imports an engine only when it is asked for."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from inflight.engines.base import Engine
from inflight.errors import LoadError
from inflight.manifest import MANIFEST_NAME, ManifestError, read

_ENGINE_OF_TARGET = {
    "openvino": "openvino",
    "tensorrt_llm": "tensorrt_llm",
    "tensorrt_llm_checkpoint": "tensorrt_llm",
}


@dataclasses.dataclass(frozen=True, slots=True)
class WorkerSpec:
    """What the engine process has to load. `max_running` 0 means the engine's own limit."""

    engine: str
    engine_dir: str
    options: Mapping[str, Any]
    max_running: int

    def to_json(self) -> dict[str, Any]:
        """For the spec file in the run folder."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> WorkerSpec:
        """The inverse of `to_json`."""
        return cls(**content)


def resolve_engine(name: str, engine_dir: Path) -> str:
    """The engine for `name`; `auto` decides by the directory's manifest. Raises `LoadError`."""
    if name != "auto":
        return name
    if not (engine_dir / MANIFEST_NAME).is_file() and (engine_dir / "rank0.engine").is_file():
        return "tensorrt_llm"  # an engine that trtllm-build made by itself
    try:
        target = read(engine_dir).target
    except ManifestError as error:
        raise LoadError(str(error)) from None
    if target not in _ENGINE_OF_TARGET:
        raise LoadError(
            f"engine.json names the target {target!r}, which this version of Inflight cannot run; build it again."
        )
    return _ENGINE_OF_TARGET[target]


def create_engine(spec: WorkerSpec) -> Engine:
    """Load the engine. Raises `LoadError` with one sentence for the operator."""
    folder = Path(spec.engine_dir)
    if spec.engine == "simulated":
        from inflight.engines.simulated import SimulatedEngine

        return SimulatedEngine(folder, spec.options, spec.max_running)
    if spec.engine == "openvino":
        from inflight.engines.openvino import OpenVinoEngine

        return OpenVinoEngine(folder, spec.options, spec.max_running)
    if spec.engine == "tensorrt_llm":
        from inflight.engines.tensorrt_llm import create

        return create(folder, spec.options, spec.max_running)
    raise LoadError(
        f"the engine {spec.engine!r} is not part of this version of Inflight; use openvino, tensorrt_llm or simulated."
    )
