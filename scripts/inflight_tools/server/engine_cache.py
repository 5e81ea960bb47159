"""A bound on the engines that `inflight serve` has built: those used longest ago go, never one that is being served."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

LIMIT_BYTES = 40_000_000_000  # as build_engine.cache keeps of finished steps


@contextmanager
def in_use(directory: Path) -> Iterator[None]:
    """While the block runs nobody's `make_room` removes the directory, which counts as used now."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        with contextlib.suppress(OSError):  # somebody else's, which is only read
            os.utime(directory)
        yield
    finally:
        os.close(descriptor)


def make_room(folder: Path, needed: int, limit: int = LIMIT_BYTES) -> list[Path]:
    """Remove engines of `folder`, used longest ago first, until `needed` bytes more stay within `limit`.

    Returns what was removed. What is in use stays, and so does what cannot be removed.
    """
    removed = []
    engines = [path for path in folder.glob("[!.]*") if path.is_dir()]
    sizes = {path: sum(file.stat().st_size for file in path.rglob("*") if file.is_file()) for path in engines}
    for path in sorted(engines, key=lambda path: path.stat().st_mtime):
        if sum(sizes.values()) + needed <= limit:
            break
        if _remove(path):
            removed.append(path)
            del sizes[path]
    return removed


def _remove(directory: Path) -> bool:
    try:
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(directory)
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return True
