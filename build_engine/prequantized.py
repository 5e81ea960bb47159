"""Checkpoints that are quantized already: recognised by their own words, and never quantized twice."""

from __future__ import annotations

import json
from dataclasses import dataclass

from build_engine.errors import UserMistake
from build_engine.source import Source

METHODS = {
    "gptq": "GPTQ",
    "awq": "AWQ",
    "compressed-tensors": "compressed-tensors",
    "bitsandbytes": "bitsandbytes",
    "fp8": "block FP8",
    "mxfp4": "MXFP4",
    "modelopt": "ModelOpt",
}
ENGINES = {
    "GPTQ": "vLLM",
    "AWQ": "vLLM",
    "compressed-tensors": "vLLM",
    "bitsandbytes": "vLLM",
    "FP8": "vLLM",
    "block FP8": "vLLM or TensorRT-LLM",
    "MXFP4": "vLLM or TensorRT-LLM",
    "ModelOpt": "vLLM or TensorRT-LLM",
}
"""Method → the engines that read it (inflight/engines/prequantized.py says it in full; a test compares the two)."""

MODELOPT_RECIPES = {"FP8": "fp8", "NVFP4": "nvfp4", "W4A16_AWQ": "int4-awq", "W4A8_AWQ": "w4a8-awq"}


@dataclass(frozen=True, slots=True)
class Prequantized:
    """``method`` as people call it; for ModelOpt's checkpoints also the recipe and the KV cache they carry."""

    method: str
    recipe: str | None = None
    kv_cache: str = "none"


def detect(origin: Source) -> Prequantized | None:
    """What the checkpoint says about itself: ``hf_quant_config.json`` or ``quantization_config``; None for plain."""
    path = origin.directory / "hf_quant_config.json"
    if path.is_file():
        try:
            described = json.loads(path.read_text(encoding="utf-8"))["quantization"]
        except (OSError, ValueError, KeyError):
            raise UserMistake(f"{path} is damaged: fetch the checkpoint again") from None
        kv = "fp8" if described.get("kv_cache_quant_algo") == "FP8" else "none"
        return Prequantized("ModelOpt", MODELOPT_RECIPES.get(str(described.get("quant_algo"))), kv)
    settings = origin.config.prequantized
    if settings is None:
        return None
    method = str(settings.get("quant_method", "unknown"))
    if method == "fp8" and not settings.get("weight_block_size"):
        return Prequantized("FP8")
    recipe = MODELOPT_RECIPES.get(str(settings.get("quant_algo"))) if method == "modelopt" else None
    return Prequantized(METHODS.get(method, method), recipe)


def refuse(origin: Source, target: str) -> None:
    """Raise `UserMistake` for a quantized checkpoint that ``target`` cannot carry through."""
    found = detect(origin)
    if found is not None:
        raise UserMistake(
            f"{origin.name} is quantized already ({found.method}) and {target} cannot carry that through: "
            f"{served_by(found)}give the checkpoint it was made from"
        )


def served_by(found: Prequantized) -> str:
    """The beginning of an advice: which engine takes such a checkpoint as it comes; empty where none is known to."""
    engines = ENGINES.get(found.method)
    return f"serve it as it comes with {engines} (inflight serve DIR), or " if engines else ""
