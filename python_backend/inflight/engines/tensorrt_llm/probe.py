"""What a directory holds, and what of TensorRT-LLM is installed here: facts to decide by, before anything is loaded.

Found by capability, never by version string: releases before and after the removal of the engine flow carry similar
numbers, and development builds exist.
"""

from __future__ import annotations

import csv
import dataclasses
import enum
import importlib
import json
import logging
import os
import shutil
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

from inflight import manifest
from inflight.errors import LoadError, spoken_lines

log = logging.getLogger("inflight.engine_worker")

SMI_TIMEOUT_S = 20.0
MAX_CONFIG_BYTES = 64 << 20


# SpeculativeDecodingMode as an engine's config.json writes it: bits of an IntFlag
SPECULATIVE_BITS = {
    1: "none",
    2: "draft_tokens_external",
    4: "medusa",
    8: "lookahead_decoding",
    16: "explicit_draft_tokens",
    32: "eagle",
}


class DirectoryKind(enum.Enum):
    """TensorRT-LLM's three kinds of directories, told apart by their config.json as it does itself."""

    ENGINE = "engine"
    CHECKPOINT = "checkpoint"  # TensorRT-LLM's own form, to be compiled
    HUGGING_FACE = "hugging_face"  # for the PyTorch flow, quantized or not


@dataclasses.dataclass(frozen=True, slots=True)
class Gpu:
    """One visible GPU. `free_bytes` is what nobody uses now."""

    name: str
    compute_capability: str
    free_bytes: int


@dataclasses.dataclass(frozen=True, slots=True)
class EngineFacts:
    """What config.json of a compiled engine says. `ranks` are the rank*.engine files that are there, with sizes;
    `windows` (what each layer attends to) and `longest_asked` (the longest prompt that its builder wanted) are of the
    manifest: config.json of an engine does not say the first, and TensorRT-LLM does not hold the second.
    """

    folder: Path
    version: str
    pretrained: dict[str, Any]
    build: dict[str, Any]
    ranks: dict[int, int]
    windows: list[int] | None = None
    longest_asked: int | None = None

    @property
    def world_size(self) -> int:
        """Ranks, and so GPUs, that the engine was built for."""
        mapping = self.pretrained.get("mapping") or {}
        parts = int(mapping.get("tp_size", 1)) * int(mapping.get("pp_size", 1)) * int(mapping.get("cp_size", 1))
        return int(mapping.get("world_size", parts))

    @property
    def plugins(self) -> dict[str, Any]:
        """The plugins' configuration."""
        return self.build.get("plugin_config") or {}

    @property
    def paged_context(self) -> bool:
        """Whether a prompt can go on from what the KV cache holds: chunked context does, and KV reuse."""
        return bool(self.plugins.get("use_paged_context_fmha"))

    @property
    def can_reuse(self) -> bool:
        """Whether KV reuse works: not where the logits of a whole prompt are gathered (fixExecutorConfig of
        trtGptModelInflightBatching.cpp at 00825c4e).
        """
        return self.paged_context and not self.build.get("gather_context_logits")

    @property
    def kv_kind(self) -> str:
        """FP8, INT8, or empty for a KV cache of the model's own precision."""
        return str((self.pretrained.get("quantization") or {}).get("kv_cache_quant_algo") or "")

    @property
    def speculative_mode(self) -> str:
        """The engine's speculative decoding mode, "none" where it has none."""
        value = self.build.get("speculative_decoding_mode", 1)
        if isinstance(value, str):
            return value.lower().removeprefix("speculativedecodingmode.")
        return SPECULATIVE_BITS.get(int(value), "none")

    def limit(self, name: str) -> int:
        """A limit of the build. Raises `LoadError` when config.json lacks it."""
        value = self.build.get(name)
        if not isinstance(value, int):
            raise LoadError(f"config.json of the engine has no {name} in build_config; build the engine again.")
        return value


def read_config(folder: Path) -> dict[str, Any]:
    """config.json. Raises `LoadError`."""
    path = folder / "config.json"
    try:
        if path.stat().st_size > MAX_CONFIG_BYTES:
            raise LoadError("config.json in the engine directory is larger than any configuration; build it again.")
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise LoadError(
            f"config.json in the engine directory cannot be read ({error.strerror}); build it again."
        ) from None
    except ValueError as error:
        raise LoadError(f"config.json in the engine directory is damaged ({error}); build it again.") from None
    if not isinstance(content, dict):
        raise LoadError("config.json in the engine directory is no JSON object; build it again.")
    return content


def directory_kind(config: dict[str, Any]) -> DirectoryKind:
    """By the keys that TensorRT-LLM itself goes by."""
    if isinstance(config.get("pretrained_config"), dict) and isinstance(config.get("build_config"), dict):
        return DirectoryKind.ENGINE
    if "architecture" in config and "dtype" in config:
        return DirectoryKind.CHECKPOINT
    return DirectoryKind.HUGGING_FACE


def engine_facts(folder: Path, config: dict[str, Any]) -> EngineFacts:
    """Facts of a compiled engine's directory."""
    ranks = {}
    for path in folder.glob("rank*.engine"):
        number = path.name[len("rank") : -len(".engine")]
        if number.isdigit():
            ranks[int(number)] = path.stat().st_size
    try:
        limits = manifest.read(folder).limits
    except manifest.ManifestError:  # none, or what is wrong with it is said elsewhere
        limits = manifest.Limits(max_seq_len=0)
    return EngineFacts(
        folder,
        str(config.get("version", "")),
        config["pretrained_config"],
        config["build_config"],
        ranks,
        limits.max_attention_window,
        limits.max_input_len,
    )


def installed_version(package: str) -> str:
    """The version of a package, empty when it is not installed. Does not import it (that alone takes seconds)."""
    for name in (package, package.replace("_", "-")):
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return ""


def visible_gpus() -> list[Gpu] | None:
    """The GPUs that this process may use, by nvidia-smi; None when that cannot be asked.

    CUDA is not touched: the driver's tool answers without a context, and before MPI is up.
    """
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    query = [program, "--query-gpu=index,uuid,name,compute_cap,memory.free", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(
            query, capture_output=True, encoding="utf-8", errors="replace", timeout=SMI_TIMEOUT_S, check=True
        ).stdout
        rows = [[cell.strip() for cell in row] for row in csv.reader(answer.splitlines()) if row]
        found = {(row[0], row[1]): Gpu(row[2], row[3], int(row[4]) << 20) for row in rows}
    except (OSError, subprocess.SubprocessError, ValueError, IndexError) as error:
        log.warning("nvidia-smi does not say what GPUs there are (%s); the checks against them are left out", error)
        return None
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is None:
        return list(found.values())
    words = [word.strip() for word in chosen.split(",") if word.strip()]
    return [gpu for word in words for (index, uuid), gpu in found.items() if word == index or uuid.startswith(word)]


@dataclasses.dataclass(frozen=True, slots=True)
class Installed:
    """The imported package and its ways in. `executor` is the bindings' module where it runs engines, else None;
    `llm` is the PyTorch flow's class, else None.
    """

    version: str
    executor: Any
    llm: Any


def import_installed() -> Installed:
    """Import TensorRT-LLM and see what it can do. Raises `LoadError` with what to install."""
    try:
        package = importlib.import_module("tensorrt_llm")  # first: it loads the libraries that the bindings need
    except ModuleNotFoundError as error:
        if error.name != "tensorrt_llm":
            raise LoadError(f"TensorRT-LLM is not complete ({error}); use the container that it comes in.") from None
        raise LoadError(
            "TensorRT-LLM is not installed in this Python environment; serve in the container "
            "tritonserver:26.07-trtllm-python-py3 (TensorRT-LLM 1.2.1), see docs/gpu.md."
        ) from None
    except (ImportError, OSError, RuntimeError) as error:
        raise LoadError(
            f"TensorRT-LLM cannot be imported ({first_line(error)}); use the container it comes in."
        ) from None
    bindings: Any = None
    try:
        bindings = importlib.import_module("tensorrt_llm.bindings.executor")
    except ImportError:
        log.info("tensorrt_llm has no bindings.executor")
    runs_engines = bindings is not None and hasattr(bindings, "Executor") and hasattr(bindings, "ExecutorConfig")
    llm = getattr(package, "LLM", None)
    is_torch = llm is not None and any(base.__name__ == "_TorchLLM" for base in llm.__mro__)
    return Installed(
        str(getattr(package, "__version__", "")), bindings if runs_engines else None, llm if is_torch else None
    )


def first_line(error: BaseException, limit: int = 300) -> str:
    """What an error of TensorRT-LLM says, without its prefixes, source positions and stack."""
    text = spoken_lines(error)[0]
    for prefix in ("[TensorRT-LLM][ERROR]", "[TensorRT-LLM]", "Assertion failed:"):
        text = text.removeprefix(prefix).strip()
    return text.partition(" (/")[0][:limit].rstrip(".")
