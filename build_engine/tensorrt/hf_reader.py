"""Run a quantized Hugging Face-style checkpoint: weights dequantized here, activations rounded by hooks.

The formats are those of ModelOpt's unified checkpoints: float8 weights with one scale, 4-bit integers with two output
channels a byte and a scale a group, and NVFP4 (e2m1 values, two along the input a byte, an e4m3 scale for every
sixteen and one scale for all); and that of `hf_int8`: 8-bit integers with a scale an output channel, activations with
one a token. The KV cache is not rounded in this comparison.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from build_engine.errors import StageFailure
from build_engine.tensorrt.reader import FP8_MAX, fp8, unpack_int4

E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
E2M1_MAX = 6.0
BLOCK = 16
INT8 = "W8A8_INT8"
SCALES = ("weight_scale", "weight_scale_2", "input_scale", "pre_quant_scale")


class HfCandidate:
    """``logits`` of a whole window of tokens."""

    def __init__(self, directory: Path) -> None:
        from transformers import AutoConfig, AutoModelForCausalLM

        self.algo, self.group = algorithm(directory)
        tensors = load_all(directory)
        config = AutoConfig.from_pretrained(directory, trust_remote_code=False)
        if hasattr(config, "quantization_config"):
            del config.quantization_config
        self.model = AutoModelForCausalLM.from_config(config).float().eval()
        scaled = {name.rsplit(".", 1)[0] for name in tensors if name.endswith(".weight_scale")}
        state: dict[str, torch.Tensor] = {}
        for name, tensor in tensors.items():
            module, _, kind = name.rpartition(".")
            if kind in SCALES or kind in ("k_scale", "v_scale"):
                continue
            quantized = kind == "weight" and module in scaled
            state[name] = self._dequantize(module, tensors) if quantized else tensor.float()
        missing, unexpected = self.model.load_state_dict(state, strict=False)
        tied = {"lm_head.weight"} if config.tie_word_embeddings else set()
        if set(missing) - tied or unexpected:
            raise StageFailure(f"the checkpoint lacks or has too much of {sorted({*missing, *unexpected} - tied)[0]}")
        for module in sorted(scaled):
            self._hook(module, tensors)

    def _dequantize(self, module: str, tensors: dict[str, torch.Tensor]) -> torch.Tensor:
        weight, scale = tensors[f"{module}.weight"], tensors[f"{module}.weight_scale"].float()
        if self.algo in ("FP8", INT8):
            return weight.float() * scale
        if self.algo == "NVFP4":
            second = tensors[f"{module}.weight_scale_2"].float()
            return unpack_e2m1(weight) * (scale * second).repeat_interleave(BLOCK, dim=-1)
        if self.algo in ("W4A16_AWQ", "W4A8_AWQ"):
            plain = unpack_int4(weight) * scale.repeat_interleave(self.group, dim=-1)
            if self.algo == "W4A16_AWQ":
                return plain
            second = tensors[f"{module}.weight_scale_2"].float()
            return fp8(plain / second) * second
        raise StageFailure(f"quant_algo {self.algo} is not one that can be read back")

    def _hook(self, module: str, tensors: dict[str, torch.Tensor]) -> None:
        smooth, scale = tensors.get(f"{module}.pre_quant_scale"), tensors.get(f"{module}.input_scale")

        def before(_: Any, arguments: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
            x = arguments[0] if smooth is None else arguments[0] * smooth.float().to(arguments[0].device)
            if self.algo == INT8:
                x = round_tokens(x)
            if scale is not None:
                near = scale.to(x.device)
                x = round_e2m1(x, near.float()) if self.algo == "NVFP4" else fp8(x / near) * near
            return (x, *arguments[1:])

        self.model.get_submodule(module).register_forward_pre_hook(before)

    def logits(self, ids: torch.Tensor, last: int = 0) -> torch.Tensor:
        """Logits [n, vocabulary] of the tokens ``ids`` [n], or of the ``last`` ones only."""
        result: torch.Tensor = self.model(ids[None], use_cache=False, logits_to_keep=last).logits[0]
        return result


def algorithm(directory: Path) -> tuple[str, int]:
    """(what quantized the checkpoint, size of its groups or 0); "none" for one that is not. Raises `StageFailure`."""
    described = directory / "hf_quant_config.json"
    if described.is_file():
        quantization = json.loads(described.read_text(encoding="utf-8"))["quantization"]
        return str(quantization["quant_algo"]), int(quantization.get("group_size") or 0)
    settings = json.loads((directory / "config.json").read_text(encoding="utf-8")).get("quantization_config")
    if settings is None:
        return "none", 0
    if settings.get("format") != "int-quantized":
        raise StageFailure(f"{settings.get('quant_method')} ({settings.get('format')}) cannot be read back")
    return INT8, 0


def round_tokens(x: torch.Tensor) -> torch.Tensor:
    """Round to 8-bit integers with a scale for each token (the last axis)."""
    scale = x.abs().amax(dim=-1, keepdim=True).clamp_min(1e-10) / 127
    return (x / scale).round() * scale


def load_all(directory: Path) -> dict[str, torch.Tensor]:
    """Every tensor of every shard. Raises `StageFailure` for a damaged one."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    found: dict[str, torch.Tensor] = {}
    for path in sorted(directory.glob("*.safetensors")):
        try:
            found.update(load_file(path))
        except (OSError, SafetensorError) as error:
            raise StageFailure(f"{path.name} cannot be read ({str(error).splitlines()[0]})") from None
    return found


def unpack_e2m1(packed: torch.Tensor) -> torch.Tensor:
    """uint8 [out, in/2], the even input in the low nibble, a sign bit above three of magnitude → [out, in]."""
    nibbles = torch.stack((packed & 0xF, packed >> 4), dim=-1).reshape(*packed.shape[:-1], -1)
    values = torch.tensor(E2M1)[(nibbles & 0x7).long()]
    return torch.where(nibbles > 7, -values, values)


def round_e2m1(x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Round blocks of sixteen along the last axis to e2m1 with an e4m3 scale each, under the global ``scale``."""
    blocks = x.reshape(*x.shape[:-1], -1, BLOCK)
    top = blocks.abs().amax(dim=-1, keepdim=True)
    step = fp8((top / E2M1_MAX / scale).clamp(max=FP8_MAX)) * scale
    scaled = torch.where(step > 0, blocks / step.clamp_min(1e-30), torch.zeros_like(blocks)).clamp(-E2M1_MAX, E2M1_MAX)
    grid = torch.tensor(E2M1)
    middles = (grid[1:] + grid[:-1]) / 2
    rounded = grid[torch.bucketize(scaled.abs().contiguous(), middles)] * scaled.sign()
    return (rounded * step).reshape(x.shape)
