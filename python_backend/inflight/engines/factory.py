"""Which engine runs an engine directory. Imports an engine only when it is asked for."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path

from inflight.engines.base import Engine
from inflight.engines.prequantized import BOTH, TENSORRT_LLM, VLLM, Method, method_of
from inflight.engines.python import find_packages
from inflight.engines.spec import WorkerSpec
from inflight.errors import LoadError
from inflight.manifest import MANIFEST_NAME, Manifest, ManifestError, read
from inflight.model.files import read_json_object

log = logging.getLogger("inflight.backend")

_ENGINE_OF_TARGET = {"openvino": "openvino", "tensorrt_llm": "tensorrt_llm"}
_VLLM_LACKS = {"int4-awq": "W4A16_AWQ", "w4a8-awq": "W4A8_AWQ"}  # recipes whose ModelOpt format vLLM does not read
_TENSORRT_LLM_LACKS = {"int8-sq": "W8A8_INT8"}  # written in vLLM's format

Packages = Callable[[list[str]], Mapping[str, str]]
"""Of the names given, those that are installed, with their versions."""


def resolve_engine(name: str, engine_dir: Path, packages: Packages = find_packages) -> str:
    """The engine for `name`; `auto` decides by the directory, and for a checkpoint, which two engines can serve, by
    what is installed (in this process's Python, unless `packages` looks elsewhere). Raises `LoadError`.
    """
    if name != "auto":
        return name
    if not (engine_dir / MANIFEST_NAME).is_file():
        if (engine_dir / "rank0.engine").is_file():
            return "tensorrt_llm"  # an engine that trtllm-build made by itself
        if is_checkpoint(engine_dir):
            return _engine_of_checkpoint(None, packages, method_of(engine_dir))
    try:
        manifest = read(engine_dir)
    except ManifestError as error:
        raise LoadError(str(error)) from None
    if manifest.target == "hf_quantized":
        return _engine_of_checkpoint(manifest, packages)
    if manifest.target not in _ENGINE_OF_TARGET:
        raise LoadError(
            f"engine.json names the target {manifest.target!r}, which this version of Inflight cannot run; "
            "build it again."
        )
    return _ENGINE_OF_TARGET[manifest.target]


def is_checkpoint(folder: Path) -> bool:
    """Whether this is a Hugging Face-style checkpoint with weights that can be read safely."""
    return "architectures" in read_json_object(folder, "config.json") and any(folder.glob("*.safetensors"))


def _engine_of_checkpoint(manifest: Manifest | None, packages: Packages, method: Method | None = None) -> str:
    """TensorRT-LLM where it can run a checkpoint, else vLLM; the log says which, and why. `method` is that of weights
    that were quantized elsewhere.
    """
    if method is not None and not method.readers:
        raise LoadError(
            f"the checkpoint is quantized already ({method.name}), which no engine is known to read; name the one "
            "to try in model parameter engine."
        )
    readers = BOTH if method is None else method.readers
    found = packages(["tensorrt_llm", "vllm"])
    recipe = manifest.quantization.recipe if manifest is not None else "none"
    lacks = []
    if "tensorrt_llm" not in found:
        lacks.append("TensorRT-LLM is not installed")
    elif found["tensorrt_llm"].startswith("0."):
        lacks.append(f"TensorRT-LLM {found['tensorrt_llm']} runs compiled engines only")
    elif recipe in _TENSORRT_LLM_LACKS:
        lacks.append(f"TensorRT-LLM is not known to read {_TENSORRT_LLM_LACKS[recipe]} checkpoints")
    elif method is not None and TENSORRT_LLM not in readers:
        lacks.append(f"TensorRT-LLM is not known to read {method.name} checkpoints")
    else:
        log.info("engine auto: tensorrt_llm, because it is installed and runs Hugging Face-style checkpoints")
        return "tensorrt_llm"
    if "vllm" not in found:
        lacks.append("vLLM is not installed")
    elif recipe in _VLLM_LACKS:
        lacks.append(f"vLLM does not read {_VLLM_LACKS[recipe]} checkpoints")
    elif method is not None and VLLM not in readers:
        lacks.append(f"vLLM does not read {method.name} checkpoints")
    else:
        log.info("engine auto: vllm, because %s and vLLM %s is there", lacks[0], found["vllm"])
        return "vllm"
    instead = "build the model with --target openvino" if method is None else "take the checkpoint it was made from"
    raise LoadError(
        f"no engine here runs this Hugging Face-style checkpoint ({', and '.join(lacks)}); install one (pip install "
        "vllm, in the environment that model parameter engine_python names; or serve in TensorRT-LLM's container), or "
        f"{instead}."
    )


def create_engine(spec: WorkerSpec) -> Engine:
    """Load the engine. Raises `LoadError` with one sentence for the operator."""
    folder = Path(spec.engine_dir)
    if spec.engine == "simulated":
        from inflight.engines.simulated.engine import SimulatedEngine

        return SimulatedEngine(folder, spec.options, spec.max_running)
    if spec.engine == "openvino":
        from inflight.engines.openvino.engine import OpenVinoEngine

        return OpenVinoEngine(folder, spec.options, spec.max_running)
    if spec.engine == "tensorrt_llm":
        from inflight.engines.tensorrt_llm.create import create

        return create(folder, spec.options, spec.max_running)
    if spec.engine == "vllm":
        from inflight.engines.vllm.engine import VllmEngine

        return VllmEngine(folder, spec.options, spec.max_running)
    raise LoadError(
        f"the engine {spec.engine!r} is not part of this version of Inflight; use openvino, tensorrt_llm, vllm or "
        "simulated."
    )
