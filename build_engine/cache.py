"""Finished stages, kept by the hash of everything that went into them.

A build that is stopped after a long step, or that fails its verification, starts again from what is done. An entry is
a directory with the stage's files and its result; it appears by one rename, its files are linked into the output where
the file system allows (so that they take no second place), and their hashes are checked before they are used.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from build_engine import __version__
from inflight.manifest import sha256_file

RESULT_NAME = "result.json"
DEFAULT_LIMIT_BYTES = 40_000_000_000
PATH_KEYS = frozenset({"staged", "output", "scratch", "tokenizer"})
"""Entries of a specification that say where, not what; the source's hash stands for what they hold."""

PACKAGES = ("torch", "transformers", "optimum-intel", "openvino", "openvino-tokenizers", "nncf", "nvidia-modelopt")


def default_directory() -> Path:
    """``$INFLIGHT_BUILD_CACHE``, or ``inflight/build`` in the user's cache directory."""
    named = os.environ.get("INFLIGHT_BUILD_CACHE")
    if named:
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "inflight" / "build"


@dataclass(frozen=True, slots=True)
class StageCache:
    """``directory`` holds one subdirectory an entry; None turns the cache off."""

    directory: Path | None
    limit_bytes: int = DEFAULT_LIMIT_BYTES

    def run(
        self, stage: str, spec: Mapping[str, Any], source_sha256: str, output: Path, work: Callable[[], dict[str, Any]]
    ) -> tuple[dict[str, Any], bool]:
        """The stage's result and whether it was found; ``work`` fills ``output`` when it was not.

        Trouble with the cache itself (no space, no permission) never fails a build.
        """
        if self.directory is None:
            return work(), False
        entry = self.directory / self.key(stage, spec, source_sha256)
        found = self._restore(entry, output)
        if found is not None:
            return found, True
        before = {path.name for path in output.iterdir()}
        result = work()
        with contextlib.suppress(OSError):
            self._store(entry, output, before, result)
            self._evict(keep=entry)
        return result, False

    @staticmethod
    def key(stage: str, spec: Mapping[str, Any], source_sha256: str) -> str:
        """The hash of stage, specification, source and the releases of everything that does the work."""
        inputs = {
            "stage": stage,
            "spec": {name: value for name, value in spec.items() if name not in PATH_KEYS},
            "source": source_sha256,
            "builder": __version__,
            "packages": {name: _version(name) for name in PACKAGES},
        }
        return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()[:32]

    def _restore(self, entry: Path, output: Path) -> dict[str, Any] | None:
        try:
            saved = json.loads((entry / RESULT_NAME).read_text(encoding="utf-8"))
            files: dict[str, str] = saved["files"]
            if any(sha256_file(entry / name) != digest for name, digest in files.items()):
                shutil.rmtree(entry, ignore_errors=True)
                return None
            for name in files:
                _link(entry / name, output / name)
            os.utime(entry)
        except (OSError, ValueError, KeyError, TypeError):
            return None
        result: dict[str, Any] = saved["result"]
        return result

    def _store(self, entry: Path, output: Path, before: set[str], result: dict[str, Any]) -> None:
        entry.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=".partial-", dir=entry.parent))
        try:
            names = sorted(path.name for path in output.iterdir() if path.is_file() and path.name not in before)
            for name in names:
                _link(output / name, partial / name)
            saved = {"result": result, "files": {name: sha256_file(partial / name) for name in names}}
            (partial / RESULT_NAME).write_text(json.dumps(saved), encoding="utf-8")
            partial.rename(entry)
        except OSError:
            shutil.rmtree(partial, ignore_errors=True)
            raise

    def _evict(self, keep: Path) -> None:
        """Remove the entries used longest ago until the rest fits the limit."""
        assert self.directory is not None
        others = [path for path in self.directory.iterdir() if path != keep]
        entries = sorted(others, key=lambda path: path.stat().st_mtime)
        sizes = {path: sum(file.stat().st_size for file in path.iterdir()) for path in [*entries, keep]}
        total = sum(sizes.values())
        for path in entries:
            if total <= self.limit_bytes:
                return
            shutil.rmtree(path, ignore_errors=True)
            total -= sizes[path]


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without links
        shutil.copyfile(source, target)


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
