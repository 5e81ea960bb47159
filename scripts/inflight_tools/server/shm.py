"""Removes shared memory that a server left behind when it was killed.

Each model instance of a Python-based backend talks to its stub through a region in /dev/shm, which stays when the
server ends hard. A region belongs to nobody when its stub, which marks it by a lock (inflight/triton/region.py), lives
no more, and no process that is visible here has it open or mapped.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from pathlib import Path

from inflight.triton import region as in_use
from inflight_tools.server.processes import holds_any, living_pids

FOLDER = in_use.FOLDER
PATTERN = f"{in_use.REGION_PREFIX}*"
UNMARKED_S = 60.0  # an unmarked region older than this has no stub that is about to mark it


def regions() -> list[Path]:
    """The regions of this backend that exist and that we may remove: all for root, else our own."""
    return _own(FOLDER.glob(PATTERN))


def sweep() -> list[Path]:
    """Remove the regions that nobody uses; returns them.

    Safe where /dev/shm is shared with another PID namespace (a container started with `--ipc=host`): the lock is seen
    across. A region without a mark is left alone for a minute, in which a stub that is starting marks its own.
    """
    unused = {str(path): in_use.is_in_use(in_use.mark_of(path)) for path in regions()}
    unused = {name: used for name, used in unused.items() if used is False or (used is None and _is_old(Path(name)))}
    if unused:
        for pid in living_pids():
            for name in holds_any(pid, set(unused)):
                del unused[name]
    removed = [Path(name) for name in sorted(unused) if _remove(Path(name))]
    for mark in _own(FOLDER.glob(f"{in_use.MARK_PREFIX}*")):
        if in_use.is_in_use(mark) is False and not mark.with_name(_region_name(mark)).exists():
            _remove(mark)
    for making in _own(FOLDER.glob(f"{in_use.MAKING_PREFIX}*")):
        if _is_old(making):
            _remove(making)
    return removed


def _region_name(mark: Path) -> str:
    return in_use.REGION_PREFIX + mark.name.removeprefix(in_use.MARK_PREFIX)


def _own(paths: Iterable[Path]) -> list[Path]:
    user = os.geteuid()
    found = []
    for path in paths:
        try:
            if user in (0, path.lstat().st_uid):
                found.append(path)
        except FileNotFoundError:
            continue
    return sorted(found)


def _is_old(path: Path) -> bool:
    try:
        return time.time() - path.lstat().st_mtime > UNMARKED_S
    except OSError:
        return False


def _remove(path: Path) -> bool:
    try:
        path.unlink()
    except FileNotFoundError:
        return False
    return True
