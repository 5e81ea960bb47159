"""The table of GPUs (``gpus.json``, with sources), or one GPU of the user's own figures."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from build_engine.errors import UserMistake
from build_engine.quantization import Recipe

TABLE = Path(__file__).with_name("gpus.json")


@dataclass(frozen=True, slots=True)
class Gpu:
    """``rates`` are dense TFLOP/s (TOP/s for int8) by arithmetic; None where the GPU lacks it. ``link`` is bytes/s to
    other GPUs, both directions together; None where nobody said.
    """

    name: str
    memory_bytes: float
    bandwidth: float
    rates: dict[str, float | None]
    capability: str | None
    source: str
    link: float | None = None

    def arithmetic(self, recipe: Recipe) -> str:
        """The arithmetic its matrix products run in: weights of fewer bits than activations are unpacked first."""
        if recipe.name == "int8-sq":
            return "int8"
        if recipe.name in ("fp8", "w4a8-awq"):
            return "fp8"
        return "fp4" if recipe.name == "nvfp4" else "bf16"

    def flops(self, recipe: Recipe) -> float | None:
        """Operations per second for ``recipe``; None when this GPU has no such arithmetic."""
        rate = self.rates.get(self.arithmetic(recipe))
        return None if rate is None else rate * 1e12


@cache
def gpu_table() -> dict[str, Gpu]:
    raw: dict[str, Any] = json.loads(TABLE.read_text(encoding="utf-8"))
    return {
        name: Gpu(
            name=name,
            memory_bytes=entry["memory_bytes"],
            bandwidth=entry["bandwidth_gbs"] * 1e9,
            rates={kind: entry[kind] for kind in ("bf16", "int8", "fp8", "fp4")},
            capability=entry["capability"],
            source=f"{entry['source']}; memory: {entry['memory_source']}",
            link=entry["link_gbs"] * 1e9,
        )
        for name, entry in raw["gpus"].items()
    }


def gpu_named(name: str) -> Gpu:
    """Find a GPU by name, whatever the case; `UserMistake` lists the table otherwise."""
    for known, gpu in gpu_table().items():
        if known.lower() == name.lower():
            return gpu
    raise UserMistake(
        f"--gpu {name} is not in the table ({', '.join(gpu_table())}): name one of these, "
        "or give --gpu-memory, --gpu-bandwidth and --gpu-tflops"
    )


def own_gpu(memory_gb: float, bandwidth_gbs: float, tflops: float) -> Gpu:
    """A GPU of the user's figures; ``tflops`` is taken for every arithmetic."""
    rates: dict[str, float | None] = dict.fromkeys(("bf16", "int8", "fp8", "fp4"), tflops)
    return Gpu("own figures", memory_gb * 1e9, bandwidth_gbs * 1e9, rates, None, "given on the command line")
