"""LoRA adapters in TensorRT-LLM's converted form: whole ones, and damaged as a disk or a hand damages them."""

from __future__ import annotations

import os
import random
from pathlib import Path
from typing import Any

import numpy as np

WEIGHTS, CONFIG = "model.lora_weights.npy", "model.lora_config.npy"
RANK, WIDTH, LAYERS = 4, 64, 2


def write_adapter(folder: Path, value: float = 1.0, dtype: str = "float16", width: int = WIDTH) -> Path:
    """As hf_lora_convert.py writes one (05316d33): a batch entry in front, bfloat16 as two bytes without a name."""
    weights = np.full((1, LAYERS, width), value, dtype=np.float32)
    config = np.array([[[0, layer, RANK] for layer in range(LAYERS)]], dtype=np.int32)
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / WEIGHTS, bfloat16(weights) if dtype == "bfloat16" else weights.astype(dtype))
    np.save(folder / CONFIG, config)
    return folder


def bfloat16(values: Any) -> Any:
    """Float32 cut to its upper half."""
    return (values.view(np.uint32) >> 16).astype(np.uint16).view(np.dtype("V2"))


def damage(folder: Path, chance: random.Random) -> str:
    """Damage a whole adapter in one way; what was done. The result may still be an adapter."""
    name = chance.choice((WEIGHTS, CONFIG))
    kind = chance.choice(("bytes", "cut", "values", "array", "file"))
    path = folder / name
    whole = path.read_bytes()
    if kind == "bytes":
        changed = bytearray(whole)
        for _ in range(chance.randint(1, 20)):
            changed[chance.randrange(min(len(changed), chance.choice((12, 128, len(changed)))))] = chance.randrange(256)
        path.write_bytes(changed)
    elif kind == "cut":
        path.write_bytes(whole[: chance.randrange(len(whole))] + b"\0" * chance.choice((0, 0, 7)))
    elif kind == "values":
        config = np.load(folder / CONFIG)
        value = chance.choice((-(2**31), -1, 0, 7, 99, LAYERS, 2**31 - 1))
        config[0, chance.randrange(LAYERS), chance.randrange(3)] = value
        np.save(folder / CONFIG, config)
    elif kind == "array":
        kind = _other_array(path, chance)
    else:
        kind = _other_file(path, chance)
    return f"{kind} of {name}"


def _other_array(path: Path, chance: random.Random) -> str:
    array = np.load(path)
    shape = chance.choice(((), (0,), (3,), (2, 2), (1, 0, 3), (2, 2, 3), (1, 1, 2, 3), (1, LAYERS, 5), (1, 3, WIDTH)))
    made: Any = np.zeros(shape, dtype=array.dtype if array.dtype.kind != "V" else np.float16)
    kind = chance.choice(
        ("shape", "int64", "huge", "complex128", "bool", ">f2", "U4", "M8[s]", "object", "npz", "header")
    )
    if kind == "int64":
        made = (
            array.astype(np.int64) + (1 << 40) if array.dtype.kind in "iu" else np.zeros((1, LAYERS, WIDTH), np.int64)
        )
    elif kind in ("complex128", "bool", ">f2", "U4", "M8[s]"):
        made = np.zeros(array.shape, dtype=kind)
    if kind == "object":
        np.save(path, np.array([[[{"a": 1}]]], dtype=object), allow_pickle=True)
    elif kind == "npz":
        with path.open("wb") as file:
            np.savez(file, array)
    elif kind == "header":
        claim = {"descr": "<f2", "fortran_order": False, "shape": (1, 10 ** chance.randint(6, 17), 3)}
        with path.open("wb") as file:
            np.lib.format.write_array_header_1_0(file, claim)
            file.write(b"\0" * 64)
    else:
        np.save(path, made)
    return kind


def _other_file(path: Path, chance: random.Random) -> str:
    kind = chance.choice(("missing", "empty", "folder", "loop", "pipe", "endless", "dangling", "large", "no folder"))
    path.unlink()
    if kind == "empty":
        path.touch()
    elif kind == "folder":
        path.mkdir()
    elif kind == "loop":
        path.symlink_to(path.name)
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "endless":
        path.symlink_to("/dev/zero")
    elif kind == "dangling":
        path.symlink_to("nowhere")
    elif kind == "large":
        with path.open("wb") as file:
            file.truncate(1 << 42)
    elif kind == "no folder":
        for other in path.parent.iterdir():
            other.unlink()
        path.parent.rmdir()
        path.parent.touch()
    return kind
