"""Adapters in Hugging Face's form in the worker: what LoraManager reads and trips over (lora_manager.py, stored copies
1059464385 and 57480881358). Nothing there is worded for a client.
"""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

from trtllm_double.llm_types import LoraConfig, LoRARequest

MODULES = {  # get_default_trtllm_modules_to_hf_modules, the ones of a dense decoder
    "attn_q": "q_proj",
    "attn_k": "k_proj",
    "attn_v": "v_proj",
    "attn_dense": "o_proj",
    "mlp_h_to_4h": "gate_proj",
    "mlp_4h_to_h": "down_proj",
    "mlp_gate": "up_proj",
}


def load_adapter(request: LoRARequest, config: LoraConfig) -> None:
    """Raises of all kinds."""
    folder = Path(request.lora_path)
    if len(config.lora_dir) != 1:
        assert len(config.lora_target_modules) >= 1, "Expecting at least one lora target module"
    about = json.loads((folder / "adapter_config.json").read_text())
    rank = about["r"]
    assert rank <= config.max_lora_rank, f"rank {rank} is above max_lora_rank {config.max_lora_rank}"
    tensors = header(folder / "adapter_model.safetensors")
    known = {MODULES[name]: name for name in config.lora_target_modules}
    for name, entry in tensors.items():
        module = name.split(".")[-3]
        if module not in known:
            raise KeyError(module)
        inner = entry["shape"][0] if ".lora_A." in name else entry["shape"][1]
        assert inner == rank, f"{name}: rank {inner}"


def header(path: Path) -> dict[str, Any]:
    """Of a safetensors file."""
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    found: dict[str, Any] = json.loads(data[8 : 8 + length])
    found.pop("__metadata__", None)
    assert max(entry["data_offsets"][1] for entry in found.values()) == len(data) - 8 - length
    return found
