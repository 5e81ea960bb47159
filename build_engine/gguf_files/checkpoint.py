"""A GGUF file's checkpoint, made once and found again: beside the finished steps of builds, by the file's hash."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

from build_engine import preflight
from build_engine.cache import DEFAULT_LIMIT_BYTES, default_directory
from build_engine.console import Console
from build_engine.errors import UserMistake
from build_engine.stages import run_stage
from build_engine.work_folder import work_folder
from inflight.manifest import sha256_file

MAGIC = b"GGUF"
REVISION = "1"  # of what is written; raise it when a file's checkpoint changes
GROWTH = 4.5
"""Bytes written for a byte read at most: 4-bit weights become 16 bits."""

UNUSED_S = 3600.0
"""A checkpoint that nobody has asked for in so long may go when room is needed."""


def is_gguf(model: str) -> bool:
    """Whether ``model`` is a file that begins as GGUF files do."""
    try:
        with Path(model).expanduser().open("rb") as file:
            return file.read(4) == MAGIC
    except (OSError, ValueError):
        return False


def checkpoint_of(model: str, console: Console) -> str:
    """``model`` itself, or the directory of the checkpoint that the GGUF file it names was expanded into.

    Raises `UserMistake` for a GGUF file that holds what cannot be read, or where there is no room.
    """
    if not is_gguf(model):
        return model
    path = Path(model).expanduser().absolute()
    if importlib.util.find_spec("gguf") is None:
        raise UserMistake(
            f'reading {path.name} needs the package gguf, which {sys.executable} lacks: pip install "inflight[build]"'
        )
    with console.step(f"hashing {path.name}"):
        digest = sha256_file(path)
    shelf = default_directory() / "gguf"
    entry = shelf / f"{digest[:16]}-{REVISION}"
    target = entry / path.stem
    if (target / "config.json").is_file():
        os.utime(entry)
        console.say(f"{path.name}: its checkpoint was made before ({target})")
        return str(target)
    needed = round(GROWTH * path.stat().st_size)
    shelf.mkdir(parents=True, exist_ok=True)
    make_room(shelf, needed)
    preflight.check_disk(shelf, needed, f"expanding {path.name}")
    scratch = Path(tempfile.mkdtemp(prefix=".making-", dir=shelf))
    try:
        (scratch / path.stem).mkdir()
        spec = {"file": str(path), "output": str(scratch / path.stem)}
        with work_folder() as work:
            title = f"expanding {path.name}"
            run_stage("gguf.expand", spec, console=console, log=work / "gguf.log", title=title)
        shutil.rmtree(entry, ignore_errors=True)
        scratch.chmod(0o755)
        scratch.rename(entry)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return str(target)


def make_room(shelf: Path, needed: int, limit: int = DEFAULT_LIMIT_BYTES) -> None:
    """Remove the checkpoints used longest ago until ``needed`` more bytes keep within ``limit``; what was used within
    the hour stays.
    """
    now = time.time()
    entries = sorted(shelf.iterdir(), key=lambda entry: entry.stat().st_mtime)
    sizes = {entry: sum(file.stat().st_size for file in entry.rglob("*") if file.is_file()) for entry in entries}
    total = sum(sizes.values())
    for entry in entries:
        if total + needed <= limit or now - entry.stat().st_mtime < UNUSED_S:
            return
        shutil.rmtree(entry, ignore_errors=True)
        total -= sizes[entry]
