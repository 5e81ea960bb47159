"""Writes a safetensors file tensor by tensor, so that memory is that of one piece, whatever the file's size."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

WIDTHS = {"F32": 4, "F16": 2, "BF16": 2}
SHARD_BYTES = 4_000_000_000

Shape = tuple[int, ...]
Pieces = Callable[[str], Iterator[memoryview]]
"""The bytes of a tensor, by its name, in as many pieces as one likes."""


def write_weights(
    folder: Path, shapes: Mapping[str, Shape], dtype: str, pieces: Pieces, limit: int = SHARD_BYTES
) -> Iterator[str]:
    """Write ``model.safetensors``, or shards of at most ``limit`` bytes and their index; yields each name once written.

    ``dtype`` is one of `WIDTHS`.
    """
    parts = list(_parts(shapes, WIDTHS[dtype], limit))
    names = [f"model-{number:05}-of-{len(parts):05}.safetensors" for number in range(1, len(parts) + 1)]
    names = names if len(parts) > 1 else ["model.safetensors"]
    for name, part in zip(names, parts, strict=True):
        write_file(folder / name, part, dtype, pieces)
        yield name
    if len(parts) > 1:
        total = sum(WIDTHS[dtype] * math.prod(shape) for shape in shapes.values())
        places = {tensor: name for name, part in zip(names, parts, strict=True) for tensor in part}
        index = json.dumps({"metadata": {"total_size": total}, "weight_map": places}, indent=2)
        (folder / "model.safetensors.index.json").write_text(index + "\n", encoding="utf-8")


def write_file(path: Path, shapes: Mapping[str, Shape], dtype: str, pieces: Pieces) -> None:
    """One file: the length of a header, the header, and the tensors one after the other."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    place = 0
    for name, shape in shapes.items():
        size = WIDTHS[dtype] * math.prod(shape)
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [place, place + size]}
        place += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name in shapes:
            for piece in pieces(name):
                file.write(piece)
        if file.tell() != 8 + len(text) + place:
            raise ValueError(f"{path.name} has other bytes than its header says")


def _parts(shapes: Mapping[str, Shape], width: int, limit: int) -> Iterable[dict[str, Shape]]:
    found: list[dict[str, Shape]] = [{}]
    used = 0
    for name, shape in shapes.items():
        size = width * math.prod(shape)
        if found[-1] and used + size > limit:
            found.append({})
            used = 0
        found[-1][name] = shape
        used += size
    return found
