"""An output directory that appears whole or not at all.

The build writes into a hidden directory beside the output (same file system, so a rename is atomic). The builder holds
a lock on it; a directory of that kind whose lock is free belongs to a build that was killed and is swept by the next.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import shutil
import tempfile
import time
from pathlib import Path
from types import TracebackType

from build_engine.console import Console
from build_engine.errors import UserMistake
from inflight import manifest

LOCK_NAME = ".lock"
MAKING_S = 60.0  # a directory without a lock for so long is nobody's any more
_RENAME_EXCHANGE = 2
_AT_FDCWD = -100


class OutputDirectory:
    """Context manager: ``path`` is the hidden directory to fill, `commit` makes it the output.

    Leaving the block without `commit` removes everything. Raises `UserMistake` when the output exists and ``force``
    is not set, when another build is writing it, or when the place cannot be written.
    """

    def __init__(self, output: Path, *, force: bool = False) -> None:
        self.output = Path(os.path.abspath(output))
        self.force = force
        self._prefix = f".{self.output.name}.building-"
        self._committed = False

    def __enter__(self) -> OutputDirectory:
        if not self.output.name:
            raise UserMistake(f"--output {self.output} cannot be an engine directory")
        check_free(self.output, force=self.force)
        try:
            self.output.parent.mkdir(parents=True, exist_ok=True)
            sweep(self.output)
            self._make()
        except OSError as error:
            raise UserMistake(f"--output {self.output} cannot be written ({error.strerror})") from None
        self.path = self.root / "engine"
        self.scratch = self.root / "scratch"
        return self

    def _make(self) -> None:
        """The hidden directory, whole and locked before it has the name that `sweep` looks for; or nothing at all."""
        self.root = Path(tempfile.mkdtemp(prefix=_making(self.output), dir=self.output.parent))
        self._lock = -1
        try:
            self._lock = os.open(self.root / LOCK_NAME, os.O_CREAT | os.O_RDWR, 0o600)
            fcntl.flock(self._lock, fcntl.LOCK_EX)
            (self.root / "engine").mkdir()
            (self.root / "scratch").mkdir()
            self.root = self.root.rename(self.root.with_name(self._prefix + self.root.name.rpartition("-")[2]))
        except OSError:
            shutil.rmtree(self.root, ignore_errors=True)
            if self._lock >= 0:
                os.close(self._lock)
            raise

    def commit(self) -> None:
        """Make the filled directory the output; with ``force`` an old one is exchanged atomically and then removed."""
        _open_permissions(self.path)
        _sync_tree(self.path)
        if self.output.exists():
            check_free(self.output, force=self.force)
            _exchange(self.path, self.output)
        else:
            self.path.rename(self.output)
        _sync_directory(self.output.parent)
        self._committed = True

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        shutil.rmtree(self.root, ignore_errors=True)
        os.close(self._lock)


def check_free(output: Path, *, force: bool) -> None:
    """Refuse an output that exists (unless forced) or that is no engine directory (even when forced)."""
    if not os.path.lexists(output):
        return
    if not force:
        raise UserMistake(f"{output} exists already: choose another --output or replace it with --force")
    replaceable = output.is_dir() and not output.is_symlink()
    if not replaceable or (any(output.iterdir()) and not (output / "engine.json").is_file()):
        raise UserMistake(f"{output} is not an engine directory, so --force does not replace it: remove it yourself")


def warn_served(output: Path, console: Console) -> None:
    """Say before any work that a server holds what will be replaced. Its files stay until it lets go of them."""
    if manifest.is_served(output):
        console.warn(
            f"a running server serves {output}: it goes on with the engine that it has loaded, and refuses requests "
            "when that one has to start again; unload and load the model, or restart the server, once this is built"
        )


def sweep(output: Path) -> list[Path]:
    """Remove what killed builds of this output left behind; `UserMistake` when one is still running."""
    removed = []
    for leftover in [*_leftovers(output, f".{output.name}.building-"), *_unfinished(output)]:
        try:
            lock = os.open(leftover / LOCK_NAME, os.O_RDWR)
        except OSError:
            lock = -1
        try:
            if lock >= 0:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserMistake(f"another build is writing {output} at this moment: wait for it or stop it") from None
        finally:
            if lock >= 0:
                os.close(lock)
        shutil.rmtree(leftover, ignore_errors=True)
        removed.append(leftover)
    return removed


def _making(output: Path) -> str:
    """How the name of a directory begins that has no lock yet."""
    return f".{output.name}.making-"


def _leftovers(output: Path, prefix: str) -> list[Path]:
    return sorted(path for path in output.parent.iterdir() if path.name.startswith(prefix))


def _unfinished(output: Path) -> list[Path]:
    """Those of builds that were killed in the moment between making a directory and locking it."""
    now = time.time()
    found = []
    for path in _leftovers(output, _making(output)):
        with contextlib.suppress(OSError):  # it has its other name by now
            if now - path.stat().st_mtime > MAKING_S:
                found.append(path)
    return found


def _exchange(new: Path, old: Path) -> None:
    """Swap two directories in one step (renameat2); two renames on file systems that lack it."""
    libc = ctypes.CDLL(None, use_errno=True)
    rename = getattr(libc, "renameat2", None)
    if rename is not None:
        if rename(_AT_FDCWD, os.fsencode(new), _AT_FDCWD, os.fsencode(old), _RENAME_EXCHANGE) == 0:
            return
        code = ctypes.get_errno()
        if code not in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):
            raise OSError(code, os.strerror(code), str(old))
    old.rename(new.with_name("replaced"))
    new.rename(old)


def _open_permissions(directory: Path) -> None:
    """Give every file the permissions of an ordinary one: some libraries write theirs for the owner only."""
    mask = os.umask(0)
    os.umask(mask)
    for path in directory.rglob("*"):
        if path.is_file():
            path.chmod(0o666 & ~mask)


def _sync_tree(directory: Path) -> None:
    for path in directory.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
    _sync_directory(directory)


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
