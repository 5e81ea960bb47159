"""Can this machine compile a checkpoint that was made elsewhere? Answered without TensorRT-LLM, torch or GPU time."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import inflight.manifest as manifest
from build_engine.console import format_bytes
from build_engine.errors import UserMistake
from build_engine.inspection.machine import compute_capabilities, gpu_memories
from build_engine.preflight import DISK_MARGIN, existing_parent
from build_engine.tensorrt import gpu_kinds
from build_engine.tensorrt.compile import PROGRAM

FOLDER, FLAGS = "checkpoint", "trtllm-build.json"
ROOM = 1.1
"""A rank's GPU holds its weights and a little more, before any KV cache."""


def obstacles(directory: Path, described: manifest.Manifest) -> Iterator[str]:
    """What keeps this machine from compiling and serving it, each as a sentence with what to do."""
    folder = directory / FOLDER
    ranks = described.parallelism.tensor * described.parallelism.pipeline
    yield from _contents(folder, ranks)
    here = compute_capabilities()
    if not here:
        yield "it is a checkpoint to be compiled where it is served, and this machine shows no NVIDIA GPU"
    try:
        gpu_kinds.check_gpus(described.quantization.recipe, described.quantization.kv_cache, None, here)
    except UserMistake as mistake:
        yield str(mistake)
    sizes = [path.stat().st_size for path in folder.glob("rank*.safetensors")]
    needed, smallest = int(max(sizes, default=0) * ROOM), min(gpu_memories(), default=None)
    if smallest is not None and smallest < needed:
        yield (
            f"a rank's weights need {format_bytes(needed)} of GPU memory and this machine's smallest GPU has "
            f"{format_bytes(smallest)}: make the checkpoint with a smaller recipe or more --tensor-parallel"
        )
    place = existing_parent(directory.absolute().parent)
    free = shutil.disk_usage(place).free
    if free < sum(sizes) + DISK_MARGIN:
        yield (
            f"the engine takes about {format_bytes(sum(sizes))} of disk and {format_bytes(free)} are free in {place}: "
            "free some, or compile into --output on another disk"
        )
    if shutil.which(PROGRAM) is None:
        yield f"{PROGRAM} is not on PATH: compile it in the image of TensorRT-LLM (up to 1.2) that will serve it"


def _contents(folder: Path, ranks: int) -> Iterator[str]:
    """Whether the flags and the split of ranks are there and fit the manifest."""
    try:
        flags = json.loads((folder / FLAGS).read_text(encoding="utf-8"))["flags"]
        world = int(json.loads((folder / "config.json").read_text(encoding="utf-8"))["mapping"]["world_size"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        yield f"{folder} lacks what the compiler has to be told ({error}): make the checkpoint again"
        return
    if not isinstance(flags, dict) or not flags:
        yield f"{folder / FLAGS} has no flags for the compiler: make the checkpoint again"
    if world != ranks:
        yield f"{folder / 'config.json'} is for {world} ranks and engine.json for {ranks}: make the checkpoint again"
