"""Which GPUs TensorRT-LLM compiles a recipe for: some are too old for it, and some are too new."""

from __future__ import annotations

from collections.abc import Sequence

from build_engine.errors import UserMistake
from build_engine.planning.gpus import Gpu
from build_engine.tensorrt.recipes import RECIPES

FP8_FROM = (8, 9)
"""TensorRT-LLM's support matrix: FP8 arithmetic, and INT4 weights with FP8 activations."""

INTEGERS_END, INTEGERS_AGAIN = (10, 0), (12, 0)
"""``builder.build`` raises for INT8 and INT4 weights, SmoothQuant and an INT8 KV cache on compute capability 10.x
("not supported on SM>=100"), and not on 12.0 (tensorrt_llm/builder.py, release 1.2).
"""

MIN_CAPABILITY = dict.fromkeys(("FP8", "W4A8_AWQ"), FP8_FROM)
MAX_CAPABILITY = dict.fromkeys(("W8A16", "W4A16", "W4A16_AWQ", "W4A8_AWQ", "W8A8_SQ_PER_CHANNEL", "INT8"), INTEGERS_END)
"""An algorithm of weights or of the KV cache, and the first capability that has it no more, up to `INTEGERS_AGAIN`."""

TOO_NEW = "10.x (B200, GB200, B300) has no INT8 and INT4 kernels in TensorRT-LLM: take --quantization fp8 or none"


def check_gpu(recipe: str, kv_cache: str, capability: str, gpu: str = "this machine's GPU") -> None:
    """Refuse what cannot be compiled for ``capability`` ("10.0"); raises `UserMistake` with what to take instead."""
    version = parse(capability)
    who = f"{gpu} (compute capability {capability})"
    asked = ((RECIPES[recipe].algo, f"--quantization {recipe}"), (kv_cache.upper(), f"--kv-cache {kv_cache}"))
    for algorithm, flag in asked:
        if algorithm is None or version is None:
            continue
        least, end = MIN_CAPABILITY.get(algorithm), MAX_CAPABILITY.get(algorithm)
        if least is not None and version < least:
            raise UserMistake(f"{who} is too old for {flag}, which needs 8.9 (L4, RTX 40, Hopper): take int8 or none")
        if end is not None and end <= version < INTEGERS_AGAIN:
            also = ", with --kv-cache fp8 or none" if kv_cache == "int8" else ""
            raise UserMistake(f"{who} is too new for {flag}: compute capability {TOO_NEW}{also}")


def check_gpus(recipe: str, kv_cache: str, named: Gpu | None, visible: Sequence[str]) -> None:
    """`check_gpu` for the GPU that was named, else for every one that this machine shows."""
    if named is not None:
        if named.capability is not None:
            check_gpu(recipe, kv_cache, named.capability, named.name)
        return
    for capability in visible:
        check_gpu(recipe, kv_cache, capability)


def parse(capability: str) -> tuple[int, int] | None:
    """The version "10.0" as (10, 0); None for what is no version, as a driver may answer for a GPU it does not know."""
    major, _, minor = capability.partition(".")
    return (int(major), int(minor)) if major.isdigit() and minor.isdigit() else None
