"""Where calibration and verification compute: on a GPU that torch can use and that has the room, else on the CPU.

`asked` is --device: "cpu", "cuda" (a GPU or nothing) or "auto". Imports torch only where something is computed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from build_engine.console import format_bytes
from build_engine.errors import UserMistake
from build_engine.inspection.machine import compute_capabilities

CHOICES = ("auto", "cpu", "cuda")
MARGIN_BYTES = 2_000_000_000
"""For activations and what the CUDA libraries take, beside the weights."""


def for_stage(asked: str) -> str:
    """What a stage is told: "cpu" where this machine shows no GPU. `UserMistake` when one was insisted on."""
    if asked != "cpu" and not compute_capabilities():
        if asked == "cuda":
            raise UserMistake("--device cuda needs an NVIDIA GPU, and this machine shows none: leave it out")
        return "cpu"
    return asked


def in_spec(asked: str) -> dict[str, str]:
    """What a stage's specification says of it. Nothing for the CPU: what was cached before this option stays found."""
    device = for_stage(asked)
    return {} if device == "cpu" else {"device": device}


def choose(asked: str, weight_bytes: int, warn: Callable[[str], None]) -> str:
    """The torch device for ``weight_bytes`` of weights. `UserMistake` for "cuda" where it cannot be."""
    if asked == "cpu":
        return "cpu"
    import torch

    needed = weight_bytes + MARGIN_BYTES
    if not torch.cuda.is_available():
        problem = f"torch {torch.__version__} cannot use the GPU"
    elif (free := torch.cuda.mem_get_info()[0]) < needed:
        problem = f"{format_bytes(needed)} of its memory are needed and {format_bytes(free)} are free"
    else:
        return "cuda"
    if asked == "cuda":
        raise UserMistake(f"--device cuda: {problem}")
    warn(f"this is computed on the CPU, although there is a GPU: {problem}")
    return "cpu"


def moved(value: Any, device: str) -> Any:
    """The same tree of lists, tuples, dictionaries and dataclasses with its tensors and modules on ``device``."""
    import torch

    if isinstance(value, (torch.Tensor, torch.nn.Module)):
        return value.to(device)
    if isinstance(value, (list, tuple)):
        return type(value)(moved(part, device) for part in value)
    if isinstance(value, dict):
        return {name: moved(part, device) for name, part in value.items()}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        parts = {field.name: moved(getattr(value, field.name), device) for field in dataclasses.fields(value)}
        return dataclasses.replace(value, **parts)
    return value


def move_attributes(thing: Any, device: str) -> None:
    """`moved` for everything that an object holds."""
    for name, value in vars(thing).items():
        setattr(thing, name, moved(value, device))


def tensor_bytes(value: Any) -> int:
    """Bytes of all tensors in such a tree."""
    import torch

    if isinstance(value, torch.nn.Module):
        return sum(tensor_bytes(part) for part in (*value.parameters(), *value.buffers()))
    if isinstance(value, torch.Tensor):
        return int(value.numel() * value.element_size())
    if isinstance(value, (list, tuple)):
        return sum(tensor_bytes(part) for part in value)
    if isinstance(value, dict):
        return sum(tensor_bytes(part) for part in value.values())
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return sum(tensor_bytes(getattr(value, field.name)) for field in dataclasses.fields(value))
    return 0
