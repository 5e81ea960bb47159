"""Stage ``tensorrt.hf_int8``: SmoothQuant, and a checkpoint of 8-bit integers in the compressed-tensors format.

ModelOpt's own form of INT8 is one that vLLM does not read. Here weights have a scale an output channel and activations
one a token, found as they come; what SmoothQuant moves from activations to weights (Xiao et al., "SmoothQuant", ICML
2023, equation 4) is folded into the norm before them, so that nothing is left to do at run time. Runs in a child
process.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from build_engine.tensorrt.quantize import Report, calibration_windows, load_source, versions

INT8_MAX = 127
LEAST = 1e-5  # of a range: a channel that is always 0 keeps its weights
SMOOTHED = (
    ("input_layernorm", ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")),
    ("post_attention_layernorm", ("mlp.gate_proj", "mlp.up_proj")),
)
"""Norms and the linear layers behind them, in all of `hf_target.INT8_MODEL_TYPES`."""

QUANTIZATION_CONFIG: dict[str, Any] = {
    "quant_method": "compressed-tensors",
    "format": "int-quantized",
    "quantization_status": "compressed",
    "kv_cache_scheme": None,
    "ignore": ["lm_head"],
    "config_groups": {
        "group_0": {
            "targets": ["Linear"],
            "weights": {"num_bits": 8, "type": "int", "strategy": "channel", "symmetric": True, "dynamic": False},
            "input_activations": {
                "num_bits": 8,
                "type": "int",
                "strategy": "token",
                "symmetric": True,
                "dynamic": True,
            },
        }
    },
}


def run(spec: dict[str, Any], report: Report) -> dict[str, Any]:
    """Write ``config.json`` and safetensors into ``spec["output"]``."""
    warnings.simplefilter("ignore")
    from huggingface_hub import save_torch_state_dict

    report(None, "loading")
    model = load_source(Path(spec["staged"]))
    windows = calibration_windows(spec)
    with torch.no_grad():
        ranges = input_ranges(model, windows, lambda share: report(0.9 * share, "calibrating"))
        smooth(model, ranges, spec["alpha"])
        state = quantized_state(model)
    report(None, "writing the checkpoint")
    output = Path(spec["output"])
    save_torch_state_dict(state, output)
    model.config.save_pretrained(output)
    path = output / "config.json"
    config = {**json.loads(path.read_text(encoding="utf-8")), "quantization_config": QUANTIZATION_CONFIG}
    path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    report(1.0)
    return {"calibration_tokens": sum(window.numel() for window in windows), "packages": versions()}


def input_ranges(model: Any, windows: list[Any], tick: Callable[[float], None]) -> dict[str, torch.Tensor]:
    """Largest magnitude of every input channel of the layers behind a norm, by the norm's name."""
    ranges: dict[str, torch.Tensor] = {}

    def watch(name: str) -> Callable[..., None]:
        def seen(_module: Any, _inputs: Any, output: torch.Tensor) -> None:
            top = output.detach().abs().float().flatten(0, -2).amax(0)
            ranges[name] = torch.maximum(ranges[name], top) if name in ranges else top

        return seen

    names = tuple(norm for norm, _ in SMOOTHED)
    hooks = [
        module.register_forward_hook(watch(name)) for name, module in model.named_modules() if name.endswith(names)
    ]
    for number, window in enumerate(windows, 1):
        model(window, use_cache=False, logits_to_keep=1)
        tick(number / len(windows))
    for hook in hooks:
        hook.remove()
    return ranges


def smooth(model: Any, ranges: dict[str, torch.Tensor], alpha: float) -> None:
    """Divide each norm's output channels by max|x|^α / max|w|^(1−α), and multiply the weights behind it by that."""
    for layer_name, layer in model.named_modules():
        for norm_name, linear_names in SMOOTHED:
            top = ranges.get(f"{layer_name}.{norm_name}")
            if top is None:
                continue
            linears = [layer.get_submodule(name) for name in linear_names]
            widest = torch.stack([linear.weight.abs().float().amax(0) for linear in linears]).amax(0)
            scale = top.clamp_min(LEAST) ** alpha / widest.clamp_min(LEAST) ** (1 - alpha)
            norm = layer.get_submodule(norm_name)
            before = norm.weight.detach().float().clone()
            norm.weight.data = (before / scale).to(norm.weight.dtype)
            after = norm.weight.float()
            scale = torch.where(after == 0, scale, before / after)  # what the norm's 16 bits have made of it
            for linear in linears:
                linear.weight.data = linear.weight.float() * scale  # kept wide: it is rounded once, below


def quantized_state(model: Any) -> dict[str, torch.Tensor]:
    """Every tensor of the checkpoint: linear layers but the head as int8 with a scale for each output channel."""
    state: dict[str, torch.Tensor] = {}
    linears = {name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)} - {"lm_head"}
    for name, tensor in model.state_dict().items():
        module, _, kind = name.rpartition(".")
        if kind == "weight" and module in linears:
            state[name], state[f"{module}.weight_scale"] = quantize_rows(tensor.float())
        elif name != "lm_head.weight" or not model.config.tie_word_embeddings:
            state[name] = tensor.contiguous()
    return state


def quantize_rows(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """[out, in] as int8 and float32 scales [out, 1]."""
    scale = weight.abs().amax(1, keepdim=True).clamp_min(LEAST / INT8_MAX) / INT8_MAX
    return (weight / scale).round().clamp(-INT8_MAX, INT8_MAX).to(torch.int8), scale
