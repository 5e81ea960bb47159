"""Says that this stub's shared memory is in use, to programs that cannot see this process.

Triton makes a region in /dev/shm for each stub, and a server that is killed leaves it there for somebody to sweep.
Where /dev/shm is shared between PID namespaces (containers with the host's IPC), whoever sweeps sees no process that
has the region open, and would take it from a living server. So each stub holds a lock on a file beside its region.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
from pathlib import Path

log = logging.getLogger("inflight")

FOLDER = Path("/dev/shm")
REGION_PREFIX = "triton_inflight_backend_shm_region_"
MARK_PREFIX = "inflight_in_use_"
MAKING_PREFIX = f".{MARK_PREFIX}"  # of marks that are not locked yet, which takes no time


def mark_of(region: Path) -> Path:
    """The file whose lock the user of `region` holds."""
    return region.with_name(f"{MARK_PREFIX}{region.name.removeprefix(REGION_PREFIX)}")


class InUse:
    """Holds the locks of this process's regions until `close`, or until the process ends in any way."""

    def __init__(self, regions: list[Path] | None = None) -> None:
        """Mark `regions`, or all that this process has mapped. A region that cannot be marked is only logged."""
        self._marks: list[tuple[Path, int]] = []
        for region in mapped_regions() if regions is None else regions:
            try:
                self._marks.append(_mark(region))
            except OSError as error:
                log.warning("the shared memory of this model cannot be marked as in use (%s)", error.strerror)

    def close(self) -> None:
        """Take the marks away."""
        for path, lock in self._marks:
            with contextlib.suppress(OSError):
                path.unlink()
            os.close(lock)
        self._marks.clear()


def mapped_regions() -> list[Path]:
    """The regions that this process has mapped."""
    found = {}
    with open("/proc/self/maps", encoding="utf-8", errors="replace") as maps:
        for line in maps:
            path = Path(line.rstrip("\n").partition("/")[2])
            if path.name.startswith(REGION_PREFIX):
                found[path.name] = FOLDER / path.name
    return list(found.values())


def is_in_use(mark: Path) -> bool | None:
    """Whether the user of a marked region lives; None where there is no such mark, or none that may be looked at."""
    try:
        lock = os.open(mark, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(lock)
    return False


def _mark(region: Path) -> tuple[Path, int]:
    path = mark_of(region)
    making = path.with_name(f".{path.name}.{os.getpid()}")
    lock = os.open(making, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        making.rename(path)  # seen only once it is locked
    except OSError:
        making.unlink(missing_ok=True)
        os.close(lock)
        raise
    return path, lock
