"""What a checkpoint's safetensors files hold, from their headers alone: no tensor is read, no library is needed."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from build_engine.errors import UserMistake

MAX_HEADER_BYTES = 100_000_000
"""What the format's own reader takes at most."""

CHUNK = 1 << 22
WHOLE, INDEX = "model.safetensors", "model.safetensors.index.json"


@dataclass(frozen=True, slots=True)
class Stored:
    """One tensor of a file: ``offset`` and ``size`` in bytes, from the file's beginning."""

    path: Path
    dtype: str
    shape: tuple[int, ...]
    offset: int
    size: int


def loaded_files(directory: Path) -> list[Path]:
    """The files that transformers loads: ``model.safetensors``, else the shards of its index.

    Raises `UserMistake` where there is neither: every other name is passed over by the loader.
    """
    if (directory / WHOLE).is_file():
        return [directory / WHOLE]
    try:
        shards = json.loads((directory / INDEX).read_text(encoding="utf-8"))["weight_map"].values()
        return [directory / name for name in sorted({str(shard) for shard in shards})]
    except FileNotFoundError:
        raise UserMistake(
            f"{directory} has neither {WHOLE} nor {INDEX}, the names that transformers loads: "
            "save it again with save_pretrained"
        ) from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise UserMistake(f"{directory / INDEX} is damaged: fetch the checkpoint again") from None


def read(directory: Path) -> dict[str, Stored]:
    """Every tensor that a loader finds in ``directory``, by name; `UserMistake` for a damaged or cut file."""
    return {name: stored for path in loaded_files(directory) for name, stored in read_file(path).items()}


def read_file(path: Path) -> dict[str, Stored]:
    """The tensors of one file."""
    damaged = UserMistake(f"{path} is damaged or was cut short: fetch it again")
    try:
        total = path.stat().st_size
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > min(MAX_HEADER_BYTES, total - 8):
                raise damaged
            header = json.loads(file.read(length).decode())
        header.pop("__metadata__", None)
        tensors = {}
        for name, entry in header.items():
            start, end = (int(place) for place in entry["data_offsets"])
            shape = tuple(int(size) for size in entry["shape"])
            tensors[name] = Stored(path, str(entry["dtype"]), shape, 8 + length + start, end - start)
    except (OSError, struct.error, ValueError, KeyError, TypeError, AttributeError):
        raise damaged from None
    if max((stored.offset + stored.size for stored in tensors.values()), default=total) > total:
        raise damaged
    return tensors


def same_bytes(one: Stored, other: Stored) -> bool:
    """Whether two tensors are equal to the bit, read in pieces until they differ."""
    if (one.dtype, one.shape, one.size) != (other.dtype, other.shape, other.size):
        return False
    return all(a == b for a, b in zip(_pieces(one), _pieces(other), strict=True))


def _pieces(stored: Stored) -> Iterator[bytes]:
    with stored.path.open("rb") as file:
        file.seek(stored.offset)
        for start in range(0, stored.size, CHUNK):
            yield file.read(min(CHUNK, stored.size - start))
