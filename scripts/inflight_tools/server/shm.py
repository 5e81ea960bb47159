"""Removes shared memory that a server left behind when it was killed.

Each model instance of a Python-based backend talks to its stub through a region in /dev/shm, which stays when the
server ends hard. A region that no living process has open or mapped belongs to nobody.
"""

from __future__ import annotations

import os
from pathlib import Path

from inflight_tools.server.processes import holds_any, living_pids

FOLDER = Path("/dev/shm")
PATTERN = "triton_inflight_backend_shm_region_*"


def regions() -> list[Path]:
    """The regions of this backend that exist and that we may remove: all for root, else our own."""
    user = os.geteuid()
    found = []
    for path in FOLDER.glob(PATTERN):
        try:
            if user in (0, path.stat().st_uid):
                found.append(path)
        except FileNotFoundError:
            continue
    return sorted(found)


def sweep() -> list[Path]:
    """Remove the regions that nobody uses; returns them.

    Do not call it where /dev/shm is shared with another PID namespace (a container started with `--ipc=host`): the
    processes there are invisible, and their regions would look abandoned.
    """
    unused = {str(path) for path in regions()}
    if unused:
        for pid in living_pids():
            unused -= holds_any(pid, unused)
    removed = []
    for name in sorted(unused):
        try:
            os.unlink(name)
        except FileNotFoundError:
            continue
        removed.append(Path(name))
    return removed
