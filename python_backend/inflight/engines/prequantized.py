"""Checkpoints that somebody has quantized already: which method it was, and which engines are known to read it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inflight.model.files import read_json_object

TENSORRT_LLM, VLLM = "tensorrt_llm", "vllm"
BOTH = (TENSORRT_LLM, VLLM)
BLOCK = [128, 128]

READERS: dict[str, tuple[str, ...]] = {
    "gptq": (VLLM,),
    "awq": (VLLM,),
    "bitsandbytes": (VLLM,),
    "compressed-tensors": (VLLM,),
    "fp8": (VLLM,),
    "fp8 in blocks": BOTH,
    "mxfp4": BOTH,
    "ModelOpt FP8": BOTH,
    "ModelOpt NVFP4": BOTH,
    "ModelOpt W4A16_AWQ": (TENSORRT_LLM,),
    "ModelOpt W4A8_AWQ": (TENSORRT_LLM,),
}
"""Method → the engines whose public sources read it as it is meant: TensorRT-LLM's PyTorch flow, and vLLM."""


@dataclass(frozen=True, slots=True)
class Method:
    """How a checkpoint was quantized, as `READERS` calls it, and what reads that; no reader: not known here."""

    name: str
    readers: tuple[str, ...]


def method_of(folder: Path) -> Method | None:
    """What ``hf_quant_config.json``, else config.json's ``quantization_config`` says; None for plain weights.

    Raises `LoadError` for files that are broken.
    """
    described = read_json_object(folder, "hf_quant_config.json").get("quantization")
    if isinstance(described, Mapping):
        return _named(f"ModelOpt {described.get('quant_algo')}")
    settings = read_json_object(folder, "config.json").get("quantization_config")
    if not isinstance(settings, Mapping) or not settings:
        return None
    return _named(_name(settings))


def _name(settings: Mapping[str, Any]) -> str:
    method = str(settings.get("quant_method", "an unnamed method"))
    if method == "modelopt":
        return f"ModelOpt {settings.get('quant_algo')}"
    return "fp8 in blocks" if method == "fp8" and settings.get("weight_block_size") == BLOCK else method


def _named(name: str) -> Method:
    return Method(name, READERS.get(name, ()))
