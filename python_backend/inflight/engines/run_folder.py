"""Folders of processes that the backend starts: private, and removed by whoever finds that their owner is gone.

The owner holds a lock on its folder for as long as it lives. Process ids do not tell the living from the dead: another
container that shares the temporary folder sees other ids.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
import time
from pathlib import Path

RUN_PREFIX = "inflight-run-"  # of folders in the system's temporary one; then the owner's process id
_MAKING = ".inflight-making-"  # of those that their owner has not locked yet, which takes no time
_MAKING_S = 3600.0


class RunFolder:
    """A new folder of mode 0700 in the system's temporary one, locked by this process until `close`."""

    def __init__(self) -> None:
        """Raises OSError."""
        hidden = Path(tempfile.mkdtemp(prefix=f"{_MAKING}{os.getpid()}-"))
        self._lock = -1
        try:
            self._lock = _open(hidden)
            with contextlib.suppress(OSError):  # a file system without locks: then nobody else gets one either
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self.path = hidden.with_name(f"{RUN_PREFIX}{os.getpid()}-{hidden.name.rpartition('-')[2]}")
            hidden.rename(self.path)
        except OSError:
            shutil.rmtree(hidden, ignore_errors=True)
            if self._lock >= 0:
                os.close(self._lock)
            raise

    def close(self) -> None:
        """Remove it; once is enough."""
        shutil.rmtree(self.path, ignore_errors=True)
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def __enter__(self) -> Path:
        """Its path."""
        return self.path

    def __exit__(self, *_: object) -> None:
        """Remove it."""
        self.close()


def sweep_run_folders() -> None:
    """Remove the folders of this user whose owners were killed before they could."""
    temporary = Path(tempfile.gettempdir())
    for folder in temporary.glob(f"{RUN_PREFIX}*"):
        owner = folder.name[len(RUN_PREFIX) :].split("-")[0]
        if owner.isdigit() and not Path("/proc", owner).exists() and _is_ours(folder):
            _remove_unless_locked(folder)
    for folder in temporary.glob(f"{_MAKING}*"):
        if _is_ours(folder, _MAKING_S):
            _remove_unless_locked(folder)


def _is_ours(folder: Path, older_than_s: float = 0.0) -> bool:
    try:
        status = folder.lstat()
    except OSError:
        return False
    return status.st_uid == os.getuid() and time.time() - status.st_mtime >= older_than_s


def _remove_unless_locked(folder: Path) -> None:
    try:
        lock = _open(folder)
    except OSError:  # gone, or a link that somebody has put there
        return
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(folder, ignore_errors=True)
    except OSError:  # its owner lives
        pass
    finally:
        os.close(lock)


def _open(folder: Path) -> int:
    return os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
