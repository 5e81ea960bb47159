"""Stage ``tensorrt.hf_int8``: SmoothQuant, and a checkpoint of 8-bit integers in the compressed-tensors format.

ModelOpt's own form of INT8 is one that vLLM does not read. Here weights have a scale an output channel and activations
one a token, found as they come; what SmoothQuant moves from activations to weights is folded into the norm before them.
Runs in a child process.
"""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import torch

from build_engine import devices
from build_engine.loading import load_model
from build_engine.smoothing import LEAST, Method, input_ranges, smooth
from build_engine.tensorrt.quantize import Report, calibration_windows, versions

INT8_MAX = 127

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
    model = load_model(Path(spec["staged"]))
    device = devices.choose(spec.get("device", "cpu"), devices.tensor_bytes(model), report.warn)
    windows = devices.moved(calibration_windows(spec), device)
    model.to(device)
    with torch.no_grad():
        method = Method(spec["alpha"])
        ranges = input_ranges(model, windows, method, lambda share: report(0.9 * share, "calibrating"))
        ranges = devices.moved(ranges, "cpu")
        model.to("cpu")
        smooth(model, ranges, method)
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
