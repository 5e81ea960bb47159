"""What a person has in hand for `inflight serve WHAT`: told apart by what lies there, never by its name alone."""

from __future__ import annotations

import enum
import json
import re
from dataclasses import dataclass
from pathlib import Path

from inflight.errors import did_you_mean
from inflight_tools.common.report import Failure

CONFIG = "config.pbtxt"
MANIFEST_NAME = "engine.json"  # as inflight.manifest says, which needs msgspec; serve.py --check runs without packages
KINDS = (
    f"a model repository (folders with {CONFIG}), an engine directory ({MANIFEST_NAME}), a Hugging Face checkpoint "
    "(config.json), a GGUF file, or a name on the hub (org/name)"
)
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*\Z")


class Kind(enum.Enum):
    """What can be served."""

    REPOSITORY = enum.auto()
    ENGINE = enum.auto()
    CHECKPOINT = enum.auto()
    HUB = enum.auto()


@dataclass(frozen=True, slots=True)
class What:
    """`place` is the folder, or for the hub the name; `model`: the one that was named inside a repository."""

    kind: Kind
    place: str
    model: str | None = None


def recognise(given: str) -> What:
    """Say what `given` is. Raises `Failure` with one sentence for what is nothing of the kind."""
    path = Path(given).expanduser()
    if path.is_file() and _is_gguf(path):
        return What(Kind.CHECKPOINT, str(path))
    if path.is_file():
        raise Failure(f"{given} is a file: name a folder, {KINDS}.")
    if not path.is_dir():
        return _not_here(given, path)
    if (path / CONFIG).is_file():
        return What(Kind.REPOSITORY, str(path.resolve().parent), path.resolve().name)
    if (path / MANIFEST_NAME).is_file() or (path / "rank0.engine").is_file():
        return What(Kind.ENGINE, str(path))
    if _is_checkpoint(path):
        return What(Kind.CHECKPOINT, str(path))
    if any((folder / CONFIG).is_file() or _has_versions(folder) for folder in path.iterdir() if folder.is_dir()):
        return What(Kind.REPOSITORY, str(path))
    raise Failure(f"{given} holds nothing that can be served: name {KINDS}.")


def _is_checkpoint(path: Path) -> bool:
    try:
        config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(config, dict)


def _is_gguf(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(4) == b"GGUF"
    except OSError:
        return False


def _has_versions(folder: Path) -> bool:
    return any(inner.name.isdecimal() and inner.is_dir() for inner in folder.iterdir())


def _not_here(given: str, path: Path) -> What:
    """A name on the hub, unless it looks like a path or lies beside something of nearly that name: then it is a
    misspelt path.
    """
    near = ""
    if path.parent.is_dir():
        near = did_you_mean(path.name, sorted(entry.name for entry in path.parent.iterdir() if entry.is_dir()))
    if _HUB_NAME.match(given) and not near:
        return What(Kind.HUB, given)
    raise Failure(f"there is no folder {given}{near}: name {KINDS}.")
