"""Safetensors files of a byte a value, written without any library: for what reads no more than names and shapes."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from build_engine import hf_config
from build_engine.expected_weights import expected


def write_safetensors(path: Path, shapes: Mapping[str, tuple[int, ...]], fill: Mapping[str, int] | None = None) -> None:
    """A file of 8-bit tensors, each filled with one byte."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    data = b""
    for name, shape in shapes.items():
        size = math.prod(shape)
        header[name] = {"dtype": "U8", "shape": list(shape), "data_offsets": [len(data), len(data) + size]}
        data += bytes([(fill or {}).get(name, 0)]) * size
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def write_weights(directory: Path) -> Path:
    """``model.safetensors`` with every weight that ``config.json`` in ``directory`` asks for."""
    write_safetensors(directory / "model.safetensors", expected(hf_config.load(directory)))
    return directory
