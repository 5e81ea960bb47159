"""LoRA adapters for tensorrt_llm.LLM: folders in Hugging Face's form, checked before its worker reads them.

Whatever that worker trips over in an adapter ends the worker and with it everybody's requests, because it catches
nothing but RequestError (tensorrt_llm.executor.worker). And without a `lora_config` at load it has no adapters at all:
it answers with the bare model, and says nothing (base_worker beside it).
"""

from __future__ import annotations

import dataclasses
import json
import logging
import struct
from pathlib import Path

from inflight.engines.base import EngineRefusal
from inflight.engines.tensorrt_llm.options import TensorRtLlmOptions

log = logging.getLogger("inflight.engine_worker")

# Of a decoder's linear layers: TensorRT-LLM's names by Hugging Face's.
MODULES = {
    "q_proj": "attn_q",
    "k_proj": "attn_k",
    "v_proj": "attn_v",
    "qkv_proj": "attn_qkv",
    "o_proj": "attn_dense",
    "gate_proj": "mlp_h_to_4h",
    "down_proj": "mlp_4h_to_h",
    "up_proj": "mlp_gate",
    "gate_up_proj": "mlp_gate_up",
}
TOGETHER = frozenset({"attn_q", "attn_k", "attn_v"})  # TensorRT-LLM fills in those that an adapter lacks
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
MOST_HEADER_BYTES = 64 << 20
MOST_CONFIG_BYTES = 1 << 20


@dataclasses.dataclass(frozen=True, slots=True)
class AdapterShape:
    """What an adapter changes, or what a model was loaded for: rank, and TensorRT-LLM's names of the modules."""

    rank: int
    modules: frozenset[str]


def limits_of(lora_dir: Path, options: TensorRtLlmOptions) -> AdapterShape:
    """What the adapters that lie in `lora_dir` need: their modules, and the largest rank of them and of
    `lora_cache_max_adapter_size`. A damaged one counts for nothing; without any it is queries, keys and values.
    """
    rank, modules = options.lora_cache_max_adapter_size, frozenset[str]()
    folders = sorted(path for path in lora_dir.glob("*") if path.is_dir()) if lora_dir.is_dir() else []
    for folder in folders:
        try:
            adapter = read_adapter(folder)
        except ValueError:
            continue
        rank, modules = max(rank, adapter.rank), modules | adapter.modules
    if not modules:
        modules = TOGETHER
        log.warning(
            "lora_dir holds no adapter that can be read, and LLM has to know at load which modules adapters change: "
            "those that come later may change q_proj, k_proj and v_proj alone"
        )
    return AdapterShape(rank, modules | TOGETHER if modules & TOGETHER else modules)


def check_adapter(folder: Path, name: str, limits: AdapterShape) -> None:
    """Raises `EngineRefusal` for an adapter that the worker could not load."""
    try:
        adapter = read_adapter(folder)
    except ValueError as error:
        raise EngineRefusal(f"names the adapter {name!r}, which {error}; mend its folder", "lora_name") from None
    if adapter.rank > limits.rank:
        raise EngineRefusal(
            f"names the adapter {name!r} of rank {adapter.rank}, and the model was loaded for {limits.rank} at most "
            "(lora_cache_max_adapter_size)",
            "lora_name",
        )
    if not adapter.modules <= limits.modules:
        more = ", ".join(sorted(adapter.modules - limits.modules))
        raise EngineRefusal(
            f"names the adapter {name!r}, which changes modules ({more}) that no adapter changed when the model was "
            "loaded; load the model again",
            "lora_name",
        )


def read_adapter(folder: Path) -> AdapterShape:
    """Read what says the adapter's shape; no weights. Raises `ValueError` with the end of a sentence."""
    try:
        rank = _rank(_read(folder / CONFIG, MOST_CONFIG_BYTES))
        tensors = _header(folder / WEIGHTS)
    except OSError as error:
        raise ValueError(f"cannot be read ({error.strerror}: {Path(error.filename or '').name})") from None
    modules, sides = set(), dict[str, set[str]]()
    for key, shape in tensors.items():
        path, _, side = key.removesuffix(".weight").rpartition(".")
        module = path.rpartition(".")[2]
        if side not in ("lora_A", "lora_B") or module not in MODULES:
            raise ValueError(f"changes {key!r}, which TensorRT-LLM has no adapters for")
        if len(shape) != 2 or shape[0 if side == "lora_A" else 1] != rank:
            raise ValueError(f"is damaged: {key!r} has the shape {shape} and the rank is {rank}")
        modules.add(MODULES[module])
        sides.setdefault(path, set()).add(side)
    if not sides or any(len(found) != 2 for found in sides.values()):
        raise ValueError("is damaged: a module has only one of its two matrices")
    return AdapterShape(rank, frozenset(modules))


def _rank(text: bytes) -> int:
    try:
        values = json.loads(text)
    except (ValueError, RecursionError):
        raise ValueError(f"is damaged: {CONFIG} is no JSON") from None
    rank = values.get("r") if isinstance(values, dict) else None
    if type(rank) is not int or rank < 1:
        raise ValueError(f"is damaged: {CONFIG} has no rank r")
    if values.get("use_dora"):
        raise ValueError("is a DoRA, which this flow has not")
    if values.get("modules_to_save"):
        raise ValueError("brings whole layers (modules_to_save), which cannot be exchanged between requests")
    return rank


def _header(path: Path) -> dict[str, list[int]]:
    """{tensor: shape} of a safetensors file that is as long as it says."""
    with path.open("rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else MOST_HEADER_BYTES + 1
        if length > MOST_HEADER_BYTES:
            raise ValueError(f"is damaged: {WEIGHTS} is no safetensors file")
        text = file.read(length)
    try:
        found = json.loads(text)
        found.pop("__metadata__", None)
        shapes = {str(name): [int(size) for size in entry["shape"]] for name, entry in found.items()}
        ends = max((int(entry["data_offsets"][1]) for entry in found.values()), default=0)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError, OverflowError):
        raise ValueError(f"is damaged: {WEIGHTS} is no safetensors file") from None
    if 8 + length + ends != path.stat().st_size:
        raise ValueError(f"is damaged: {WEIGHTS} is not as long as it says")
    return shapes


def _read(path: Path, most: int) -> bytes:
    with path.open("rb") as file:
        return file.read(most)
