"""Stage ``gguf.expand``: a GGUF file into a checkpoint, tensor by tensor. Needs the package gguf, and no torch."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from build_engine.errors import UserMistake
from build_engine.gguf_files.metadata import FREQUENCIES, architecture_of, config_of, name_of
from build_engine.gguf_files.tokenizer import end_ids, write_tokenizer
from build_engine.safetensors_writer import write_weights

TYPES = {"F32": ("F32", "float32"), "F16": ("F16", "float16")}
"""Of files whose matrices all have one of these; every other file becomes bfloat16, whose rounding (2^-9 of a weight)
is far below that of the bits that its matrices had."""

ROWS = 1 << 22  # values that are expanded at a time


class Report(Protocol):
    def __call__(self, fraction: float | None, note: str = "") -> None: ...


def run(spec: Mapping[str, Any], report: Report) -> dict[str, Any]:
    """Write the checkpoint of ``spec["file"]`` into the folder ``spec["output"]``; returns its type and parameters."""
    path, folder = Path(spec["file"]), Path(spec["output"])
    reader = read(path)
    metadata = {name: field.contents() for name, field in reader.fields.items()}
    architecture = architecture_of(metadata, path.name)
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    frequencies = tensors.pop(FREQUENCIES, None)
    divided = None if frequencies is None else [float(value) for value in frequencies.data.reshape(-1)]
    config = config_of(metadata, list(tensors), divided, path.name)
    named = {name_of(name, architecture): tensor for name, tensor in tensors.items()}
    if None in named:
        stranger = next(name for name in tensors if name_of(name, architecture) is None)
        raise UserMistake(f"{path.name} holds {stranger}, which no {architecture} model has: it is not read")
    stored = {tensor.tensor_type.name for tensor in tensors.values() if len(tensor.shape) > 1}
    short, long = TYPES[next(iter(stored))] if len(stored) == 1 and stored <= set(TYPES) else ("BF16", "bfloat16")
    report(0.02, "tokenizer")
    write_tokenizer(metadata, folder, path.name, config["max_position_embeddings"])
    ends = end_ids(metadata)
    _write_json(folder / "config.json", {**config, **ends, "torch_dtype": long})
    _write_json(folder / "generation_config.json", ends)
    shapes = {str(name): tuple(int(size) for size in reversed(tensor.shape)) for name, tensor in named.items()}
    total, done = sum(math.prod(shape) for shape in shapes.values()), 0

    def pieces(name: str) -> Iterator[memoryview]:
        nonlocal done
        for values in expanded(named[name], name, architecture, config):
            done += values.size
            report(0.1 + 0.9 * done / total, "expanding")
            yield memoryview(as_stored(values, short)).cast("B")

    for _ in write_weights(folder, shapes, short, pieces):
        pass
    return {"dtype": long, "parameters": total}


def read(path: Path) -> Any:
    """The file's reader; `UserMistake` for what is no whole GGUF file."""
    from gguf import GGUFReader

    try:
        return GGUFReader(str(path))
    except (OSError, ValueError, IndexError, KeyError, OverflowError, TypeError) as error:
        raise UserMistake(f"{path.name} is no whole GGUF file ({str(error)[:100]}): fetch it again") from None


def expanded(tensor: Any, name: str, architecture: str, config: Mapping[str, Any]) -> Iterator[Any]:
    """A tensor's values as transformers keeps them, in 32 bits, in groups of rows.

    Llama's rotated queries and keys have their pairs beside each other in GGUF, and halves apart in transformers;
    Gemma's norms have 1 added.
    """
    import numpy as np
    from gguf import dequantize

    shape = tuple(int(size) for size in reversed(tensor.shape))
    if architecture == "llama" and name.endswith(("q_proj.weight", "k_proj.weight")):
        heads = config["num_attention_heads" if "q_proj" in name else "num_key_value_heads"]
        values = dequantize(tensor.data, tensor.tensor_type).reshape(shape)
        yield values.reshape(heads, shape[0] // heads // 2, 2, *shape[1:]).swapaxes(1, 2).reshape(shape)
        return
    if len(shape) == 1:
        values = dequantize(tensor.data, tensor.tensor_type).reshape(shape)
        yield values - np.float32(1) if architecture == "gemma3" and "norm" in name else values
        return
    step = max(1, ROWS // shape[1])
    for start in range(0, shape[0], step):
        yield dequantize(tensor.data[start : start + step], tensor.tensor_type)


def as_stored(values: Any, kind: str) -> Any:
    """32-bit values as the bits of ``kind``; bfloat16 is rounded to the nearest, halves to the even one."""
    import numpy as np

    single = np.ascontiguousarray(values, dtype=np.float32)
    if kind == "F32":
        return single
    if kind == "F16":
        return single.astype(np.float16)
    bits = single.view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
