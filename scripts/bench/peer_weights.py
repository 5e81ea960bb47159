#!/usr/bin/env python3
"""Writes a checkpoint with integer weights for vLLM's CPU server, so that peers are compared at the same bits.

    python scripts/bench/peer_weights.py CHECKPOINT --bits 8 --output DIR

8 bits: a scale for each output channel, activations quantized token by token as they come (W8A8). 4 bits: symmetric, in
groups of 128, 64 or 32, activations in bfloat16 (W4A16). Both are rounded to nearest, in the compressed-tensors format;
embeddings, norms and the head stay as they are. Answers are worse than those of a calibrated checkpoint, speed is the
same. Exit status: 0 done, 1 an error.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from build_engine import safetensors_header
from build_engine.arguments import Parser
from build_engine.errors import UserMistake
from build_engine.source import TOKENIZER_FILES
from inflight_tools.common import option_types as types
from inflight_tools.common.report import Failure, run_main

GROUPS = (128, 64, 32)
_NIBBLES = 8  # 4-bit values in an int32
_SMALLEST = 1e-8
_EMBEDDINGS = ("embed_tokens", "lm_head")

Array = npt.NDArray[Any]
DTYPES = {"uint16": "BF16", "int8": "I8", "int32": "I32", "int64": "I64", "float32": "F32"}


def bf16(values: npt.NDArray[np.float32]) -> npt.NDArray[np.uint16]:
    """The bits of bfloat16, rounded to nearest."""
    return ((values.view(np.uint32) + 0x8000) >> 16).astype(np.uint16)


def float32(bits: npt.NDArray[np.uint16]) -> npt.NDArray[np.float32]:
    """Of bfloat16's bits."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def channels(weight: npt.NDArray[np.float32]) -> dict[str, Array]:
    """[out, in] as int8, and float32 scales [out, 1]."""
    scale = np.maximum(np.abs(weight).max(axis=1, keepdims=True), _SMALLEST) / np.float32(127)
    return {"weight": np.rint(weight / scale).astype(np.int8), "weight_scale": scale.astype(np.float32)}


def packed(weight: npt.NDArray[np.float32], group: int) -> dict[str, Array]:
    """[out, in] as 4-bit integers, eight in an int32 along the inputs, the first lowest; scales [out, in / group]."""
    rows, columns = weight.shape
    parts = weight.reshape(rows, columns // group, group)
    scale = np.maximum(np.abs(parts).max(axis=2), _SMALLEST) / np.float32(7)
    scale_bits = bf16(scale.astype(np.float32))
    values = np.clip(np.rint(parts / float32(scale_bits)[:, :, None]), -8, 7).astype(np.int8).reshape(rows, columns)
    nibbles = (values + 8).astype(np.uint32).reshape(rows, columns // _NIBBLES, _NIBBLES)
    shifts = np.arange(0, 4 * _NIBBLES, 4, dtype=np.uint32)
    words = np.bitwise_or.reduce(nibbles << shifts, axis=2).astype(np.uint32).view(np.int32)
    return {"weight_packed": words, "weight_scale": scale_bits, "weight_shape": np.array([rows, columns], np.int64)}


def quantization_config(bits: int, group: int | None) -> dict[str, Any]:
    """The entry of config.json that tells vLLM what the weights are."""
    weights: dict[str, Any] = {"num_bits": bits, "type": "int", "symmetric": True, "dynamic": False}
    activations = None
    if group is None:
        weights["strategy"] = "channel"
        activations = {"num_bits": 8, "type": "int", "strategy": "token", "symmetric": True, "dynamic": True}
    else:
        weights |= {"strategy": "group", "group_size": group}
    return {
        "quant_method": "compressed-tensors",
        "format": "int-quantized" if group is None else "pack-quantized",
        "quantization_status": "compressed",
        "kv_cache_scheme": None,
        "ignore": ["lm_head"],
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights, "input_activations": activations}},
    }


def is_linear(name: str, shape: Sequence[int]) -> bool:
    """Whether a tensor is the matrix of a linear layer that is quantized."""
    return len(shape) == 2 and name.endswith(".weight") and not any(part in name for part in _EMBEDDINGS)


def read(checkpoint: Path) -> Iterator[tuple[str, npt.NDArray[np.uint16]]]:
    """Every tensor of a bfloat16 checkpoint as its bits. Raises `Failure`."""
    try:
        tensors = safetensors_header.read(checkpoint)
    except UserMistake as mistake:
        raise Failure(str(mistake)) from None
    for name, tensor in tensors.items():
        if tensor.dtype != "BF16":
            raise Failure(f"{tensor.path.name}: {name} is {tensor.dtype}; only checkpoints in bfloat16 are read.")
        yield name, np.fromfile(tensor.path, np.uint16, tensor.size // 2, offset=tensor.offset).reshape(tensor.shape)


def write(path: Path, tensors: Mapping[str, Array]) -> None:
    """A safetensors file; 16-bit values are bfloat16's bits."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    place = 0
    for name, values in tensors.items():
        header[name] = {
            "dtype": DTYPES[str(values.dtype)],
            "shape": list(values.shape),
            "data_offsets": [place, place + values.nbytes],
        }
        place += values.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for values in tensors.values():
            file.write(np.ascontiguousarray(values).data)


def group_of(widths: Sequence[int]) -> int:
    """The largest group that divides all widths. Raises `Failure`."""
    for group in GROUPS:
        if all(width % group == 0 for width in widths):
            return group
    raise Failure("the matrices have widths that no group of 128, 64 or 32 divides.")


def quantized(checkpoint: Path, bits: int) -> tuple[dict[str, Array], int | None]:
    """Every tensor of the new checkpoint, and the size of the groups. Raises `Failure`."""
    group = None
    if bits == 4:
        group = group_of([tensor.shape[1] for name, tensor in read(checkpoint) if is_linear(name, tensor.shape)])
    found: dict[str, Array] = {}
    for name, tensor in read(checkpoint):
        if is_linear(name, tensor.shape):
            weight = float32(tensor)
            parts = channels(weight) if group is None else packed(weight, group)
            found.update({name.removesuffix("weight") + part: values for part, values in parts.items()})
        else:
            found[name] = tensor
    return found, group


def main(arguments: Sequence[str] | None = None) -> int:
    """Write one checkpoint and print where it is."""
    parser = Parser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("checkpoint", type=Path, help="a Hugging Face checkpoint in bfloat16")
    parser.add_argument("--bits", type=int, choices=(4, 8), required=True)
    parser.add_argument("--output", type=types.output_folder, required=True, metavar="DIR", help="folder to make")
    options = parser.parse_args(arguments)
    if options.output.exists():
        raise Failure(f"--output: {options.output} is there already.")
    try:
        config = json.loads((options.checkpoint / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise Failure(f"{options.checkpoint} is no checkpoint: its config.json cannot be read ({error}).") from None
    tensors, group = quantized(options.checkpoint, options.bits)
    options.output.mkdir(parents=True)
    for file in (*TOKENIZER_FILES, "generation_config.json"):
        if (options.checkpoint / file).is_file():
            shutil.copyfile(options.checkpoint / file, options.output / file)
    write(options.output / safetensors_header.WHOLE, tensors)
    config["quantization_config"] = quantization_config(options.bits, group)
    (options.output / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    print(options.output)
    return 0


if __name__ == "__main__":
    run_main(main)
