"""Read a TensorRT-LLM checkpoint back, independently of what wrote it.

Written from the description of the format (``docs/building.md``), not from any writer: each rank's file is opened,
every tensor's name and shape is checked against what ``config.json`` promises, packing is undone and scales are
applied. `Shard.__call__` then computes a linear layer of one rank as the engine would, with its activation quantized.
"""

from __future__ import annotations

import fnmatch
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from build_engine.errors import StageFailure

FP8_MAX = 448.0
BESIDE = "trtllm-build.json"  # what the engine is to be told, beside the checkpoint's own files
INT8_MAX = 127.0
FP8_RELATIVE, FP8_STEP = 2.0**-4, 2.0**-10
"""Half of e4m3's distance between neighbours: as a share of the value, and below its smallest normal number."""

CAST = {torch.float32: 2.0**-24, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}
"""What rounding to a type changes at most, as a share of the value."""

FOLDED = 2.0**-7
"""What smoothing changes: it is multiplied into weights of 16 bits, and taken out again."""

NO_STEP = torch.zeros(())


def cast_of(tensor: torch.Tensor) -> float:
    """What storing a tensor in its type may have changed, as a share of each value."""
    return CAST.get(tensor.dtype, 0.0)


@dataclass(frozen=True, slots=True)
class Shard:
    """A linear layer's part on one rank, weights dequantized: ``weight`` [out, in] (or [experts, out, in]).

    An element of an honest ``weight`` is at most ``step`` (which broadcasts to it) and the share ``relative`` of itself
    from the source's.
    """

    weight: torch.Tensor
    bias: torch.Tensor | None = None
    prequant: torch.Tensor | None = None
    activation_scale: torch.Tensor | None = None
    activation_kind: str | None = None
    step: torch.Tensor = NO_STEP
    relative: float = 0.0

    def quantize_input(self, x: torch.Tensor) -> torch.Tensor:
        """``x`` after the layer's smoothing and the rounding of its quantized activation."""
        if self.prequant is not None:
            x = x * self.prequant
        if self.activation_scale is None:
            return x
        scaled = x / self.activation_scale
        if self.activation_kind == "int8":
            return scaled.round().clamp(-128, 127) * self.activation_scale
        return fp8(scaled) * self.activation_scale

    def __call__(self, x: torch.Tensor, *, add_bias: bool = True) -> torch.Tensor:
        result = self.quantize_input(x) @ self.weight.T
        return result + self.bias if add_bias and self.bias is not None else result


def fp8(x: torch.Tensor) -> torch.Tensor:
    """Round to float8 e4m3, saturating."""
    return x.clamp(-FP8_MAX, FP8_MAX).to(torch.float8_e4m3fn).float()


def unpack_int4(packed: torch.Tensor) -> torch.Tensor:
    """int8 [..., out/2, in], two output channels a byte with the even one in the low nibble → [..., out, in]."""
    raw = packed.view(torch.uint8).to(torch.int16)
    low, high = raw & 0xF, raw >> 4
    pair = torch.stack((low, high), dim=-2)  # [..., out/2, 2, in]
    signed = torch.where(pair > 7, pair - 16, pair)
    return signed.reshape(*packed.shape[:-2], packed.shape[-2] * 2, packed.shape[-1]).float()


def round_at_load(weight: torch.Tensor, bits: int) -> tuple[torch.Tensor, torch.Tensor]:
    """What TensorRT-LLM's weight-only quantization makes of plain weights: symmetric, one scale an output channel.

    Returns the weights and the scales.
    """
    top = 2 ** (bits - 1)
    scale = weight.abs().amax(dim=-1, keepdim=True).clamp_min(1e-12) / (top - 1)
    return (weight / scale).round().clamp(-top, top - 1) * scale, scale


class Checkpoint:
    """All ranks of one checkpoint. Raises `StageFailure`, naming rank and tensor, for anything that does not fit."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        try:
            self.config: dict[str, Any] = json.loads((directory / "config.json").read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise StageFailure(f"{directory / 'config.json'} cannot be read ({error})") from None
        self.windows = self._windows()
        mapping = self.config["mapping"]
        self.tensor, self.pipeline = int(mapping["tp_size"]), int(mapping["pp_size"])
        self.quantization: Mapping[str, Any] = self.config.get("quantization") or {}
        self.algo: str | None = self.quantization.get("quant_algo")
        self.excluded = list(self.quantization.get("exclude_modules") or ())
        self.ranks = [self._load(rank) for rank in range(self.tensor * self.pipeline)]
        self.used: list[set[str]] = [set() for _ in self.ranks]

    def _windows(self) -> list[int] | None:
        """The attention window of each layer, in tokens: what this builder left beside the configuration, or what the
        configuration of another says.
        """
        path, name = self.directory / BESIDE, "max_attention_window"
        try:
            beside = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
            found = beside.get(name) or (self.config.get("runtime_defaults") or {}).get(name)
        except (OSError, ValueError, AttributeError) as error:
            raise StageFailure(f"{path.name} cannot be read ({error})") from None
        return list(found) if found else None

    def _load(self, rank: int) -> dict[str, torch.Tensor]:
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        path = self.directory / f"rank{rank}.safetensors"
        try:
            loaded: dict[str, torch.Tensor] = load_file(path)
        except (OSError, SafetensorError) as error:
            raise StageFailure(f"{path.name} cannot be read ({str(error).splitlines()[0]})") from None
        return loaded

    def take(self, rank: int, name: str, shape: tuple[int, ...]) -> torch.Tensor:
        """One tensor, whose shape must be ``shape``."""
        found = self.ranks[rank].get(name)
        if found is None:
            raise StageFailure(f"rank{rank}.safetensors lacks {name}")
        if tuple(found.shape) != shape:
            raise StageFailure(f"{name} of rank {rank} has shape {tuple(found.shape)} instead of {shape}")
        self.used[rank].add(name)
        return found

    def has(self, rank: int, name: str) -> bool:
        return name in self.ranks[rank]

    def finish(self) -> None:
        """Every tensor must have been used: one more is as wrong as one less."""
        for rank, tensors in enumerate(self.ranks):
            extra = sorted(set(tensors) - self.used[rank])
            if extra:
                raise StageFailure(f"rank{rank}.safetensors has a tensor that no layer uses: {extra[0]}")

    def is_quantized(self, module: str) -> bool:
        return self.algo is not None and not any(fnmatch.fnmatch(module, pattern) for pattern in self.excluded)

    def linear(
        self, rank: int, module: str, out_features: int, in_features: int, *, bias: bool = False, experts: int = 0
    ) -> Shard:
        """The linear layer ``module`` of ``rank`` with its local sizes; stacked over ``experts`` where there are."""
        stack = (experts,) if experts else ()
        shape = (*stack, out_features, in_features)
        vector = self.take(rank, f"{module}.bias", (out_features,)).float() if bias else None
        if not self.is_quantized(module):
            stored = self.take(rank, f"{module}.weight", shape)
            return Shard(stored.float(), vector, relative=cast_of(stored))
        algo = str(self.algo)
        if algo in ("W8A16", "W4A16"):
            stored, bits = self.take(rank, f"{module}.weight", shape), 8 if algo == "W8A16" else 4
            rounded, scale = round_at_load(stored.float(), bits)
            return Shard(rounded, vector, step=scale / 2, relative=cast_of(stored))
        if algo == "FP8":
            return self._fp8(rank, module, shape, vector)
        if algo == "W8A8_SQ_PER_CHANNEL":
            weight = self._typed(rank, f"{module}.weight", shape, torch.int8).float()
            scale = self.positive(rank, f"{module}.weights_scaling_factor", (out_features,))
            return Shard(
                weight * scale[:, None],
                vector,
                self.positive(rank, f"{module}.prequant_scaling_factor", (in_features,)),
                self.positive(rank, f"{module}.activation_scaling_factor", (1,)),
                "int8",
                step=scale[:, None] / 2,
                relative=FOLDED,
            )
        if algo in ("W4A16_AWQ", "W4A8_AWQ"):
            return self._awq(rank, module, shape, vector, algo)
        raise StageFailure(f"quant_algo {algo} is not one that can be read back")

    def _fp8(self, rank: int, module: str, shape: tuple[int, ...], bias: torch.Tensor | None) -> Shard:
        weight = self._typed(rank, f"{module}.weight", shape, torch.float8_e4m3fn).float()
        if len(shape) == 3:
            scale = self.positive(rank, f"{module}.weights_scaling_factor", (shape[0], 1))[:, :, None]
        else:
            scale = self.positive(rank, f"{module}.weights_scaling_factor", (1,))
        activation = self.positive(rank, f"{module}.activation_scaling_factor", (1,))
        relative = FP8_RELATIVE + CAST[torch.bfloat16]
        return Shard(weight * scale, bias, None, activation, "fp8", step=scale * FP8_STEP, relative=relative)

    def _awq(self, rank: int, module: str, shape: tuple[int, ...], bias: torch.Tensor | None, algo: str) -> Shard:
        group = int(self.quantization["group_size"])
        *stack, out_features, in_features = shape
        packed = self._typed(rank, f"{module}.weight", (*stack, out_features // 2, in_features), torch.int8)
        grouped = (*stack, out_features, in_features // group)
        scale = self.positive(rank, f"{module}.weights_scaling_factor", grouped)
        wide = scale.repeat_interleave(group, dim=-1)
        weight = unpack_int4(packed) * wide
        prequant = self.positive(rank, f"{module}.prequant_scaling_factor", (in_features,))
        if algo == "W4A16_AWQ":
            return Shard(weight, bias, prequant, step=wide / 2, relative=FOLDED)
        second = self.positive(rank, f"{module}.weights_scaling_factor_2", (1,))
        activation = self.positive(rank, f"{module}.activation_scaling_factor", (1,))
        twice = fp8(weight / second) * second
        relative = FOLDED + 2 * FP8_RELATIVE
        return Shard(twice, bias, prequant, activation, "fp8", step=wide / 2 + second * FP8_STEP, relative=relative)

    def _typed(self, rank: int, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        found = self.take(rank, name, shape)
        if found.dtype == torch.int8 and dtype == torch.float8_e4m3fn:
            return found.view(dtype)
        if found.dtype == torch.uint8 and dtype == torch.int8:
            return found.view(dtype)
        if found.dtype != dtype:
            raise StageFailure(f"{name} of rank {rank} is {found.dtype} instead of {dtype}")
        return found

    def positive(self, rank: int, name: str, shape: tuple[int, ...]) -> torch.Tensor:
        """One tensor of scales, which must all be positive numbers."""
        found = self.take(rank, name, shape).float()
        if not bool(torch.isfinite(found).all()) or not bool((found > 0).all()):
            raise StageFailure(f"{name} of rank {rank} has scales that are not positive numbers")
        return found
