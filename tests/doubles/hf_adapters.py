"""LoRA adapters in Hugging Face's form, without meaning: a header and zeros."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any


def write_hf_adapter(
    folder: Path, modules: tuple[str, ...] = ("q_proj", "v_proj"), rank: int = 8, **config: Any
) -> Path:
    """An adapter of one layer with 64 features."""
    shapes = {
        f"base_model.model.model.layers.0.self_attn.{module}.lora_{side}.weight": [rank, 64]
        if side == "A"
        else [64, rank]
        for module in modules
        for side in "AB"
    }
    folder.mkdir(parents=True, exist_ok=True)
    values = {"peft_type": "LORA", "r": rank, "lora_alpha": 16, "target_modules": list(modules), **config}
    (folder / "adapter_config.json").write_text(json.dumps(values), encoding="utf-8")
    write_tensors(folder / "adapter_model.safetensors", shapes)
    return folder


def write_tensors(path: Path, shapes: dict[str, list[int]]) -> None:
    """A safetensors file of zeros, float32."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    begin = 0
    for name, shape in shapes.items():
        end = begin + 4 * shape[0] * shape[1]
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [begin, end]}
        begin = end
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(begin))
