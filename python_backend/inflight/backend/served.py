"""The engine directory that a model has loaded: held while it is served, and known again whenever an engine starts.

The tokenizer, the template and the defaults are read once, when the model is loaded; an engine process reads its files
each time it is started. Between the two the directory may be built again.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import weakref
from pathlib import Path

from inflight import manifest
from inflight.errors import sendable

log = logging.getLogger("inflight.backend")

REPLACED = (
    "the engine directory holds another engine than the one that was loaded (it was built again); unload and load "
    "the model, or restart the server"
)
_OF_A_MODEL = frozenset({".json", ".jinja", ".model", ".txt", ".safetensors", ".bin", ".xml", ".engine", ".gguf"})


class ServedEngine:
    """One engine directory, from the moment that the model begins to read it until `close`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        held = manifest.hold(folder)
        self.close = weakref.finalize(self, os.close, held) if held is not None else lambda: None  # not served any more
        self._identity = _identity(folder)

    def change(self) -> str:
        """Why no engine may be started from the directory any more; empty where it is what was loaded, or where that
        cannot be read (then the engine that starts says so).
        """
        try:
            return REPLACED if _identity(self._folder) != self._identity else ""
        except OSError as error:
            log.warning("%s cannot be compared with what was loaded: %s", self._folder, error.strerror)
            return ""


def _identity(folder: Path) -> str:
    """What the directory holds: by the manifest, which has every file's hash; without one by the files' sizes and
    times. Raises `OSError` where the folder cannot be read.
    """
    try:
        return manifest.identity(manifest.read(folder))
    except manifest.ManifestError:
        pass
    found = hashlib.sha256()
    with os.scandir(folder) as entries:
        for entry in sorted(entries, key=lambda entry: os.fsencode(entry.name)):
            if Path(entry.name).suffix not in _OF_A_MODEL:
                continue
            with contextlib.suppress(OSError):  # a link to nowhere: as if it were not there
                stat = entry.stat()
                found.update(b"%b\0%d\0%d\0" % (os.fsencode(entry.name), stat.st_size, stat.st_mtime_ns))
    return found.hexdigest()


def built_from(folder: Path) -> tuple[str, str]:
    """(source, quantization recipe) of an engine directory; empty where no manifest says it."""
    try:
        found = manifest.read(folder)
    except manifest.ManifestError:  # the engine says what is wrong with it, if it needs one
        return "", ""
    return sendable(found.source.name), sendable(found.quantization.recipe)
