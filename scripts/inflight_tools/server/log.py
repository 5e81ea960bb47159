"""Reads tritonserver's log: the one sentence in it that a person needs, and the lines as they come."""

from __future__ import annotations

import os
import re
import sys
import threading
from pathlib import Path
from types import TracebackType
from typing import TextIO

# What a failed start ends with, one or more of these, each followed by the stub's call stack:
#   load failed for model 'llm': version 1 is at UNAVAILABLE state: Internal: Error: the reason\n\nAt:\n  file(1): f\n;
_LOAD_FAILED = re.compile(
    r"load failed for model '(?P<model>[^']+)': version \S+ is at UNAVAILABLE state: (?P<reason>.*?)"
    r"(?=\n\s*\n?At:|\n;|;\s*\n|\Z)",
    re.DOTALL,
)
_STATUS = re.compile(
    r"^(?:Internal|Invalid argument|Unavailable|Not found|Unknown|Unsupported|Already exists)(?:: | - )"
)
_EXCEPTION = re.compile(r"^(?:\w+\.)*(?:TritonModelException|TritonError|c_python_backend_utils\.\w+): ")
_ERROR_LINE = re.compile(r'^E\d{4} \S+ +\d+ \S+\] "?(?P<text>.*?)"?$', re.MULTILINE)
MAX_COPIED_BYTES = 64 << 20
_HARMLESS = ("CudaDriverHelper has not been initialized",)


def failure_reason(log: str) -> str:
    """Why a server ended before it was ready: one sentence out of its `log`."""
    fatal = log.rpartition("\nerror: ")[2] if "\nerror: " in log else ""
    failed = {match["model"]: _plain(match["reason"]) for match in _LOAD_FAILED.finditer(fatal or log)}
    if failed:
        return "; ".join(f"model {model!r}: {reason}" for model, reason in failed.items())
    complaints = [
        match["text"] for match in _ERROR_LINE.finditer(log) if not any(part in match["text"] for part in _HARMLESS)
    ]
    if fatal and "failed to load all models" not in fatal:
        return _plain(fatal.removeprefix("creating server: "))
    if complaints:
        return _plain(complaints[-1])
    lines = [line.strip() for line in log.splitlines() if line.strip() and not line.startswith(("+-", "|"))]
    return lines[-1] if lines else "it printed nothing"


def _plain(text: str) -> str:
    """`text` on one line, without the status and exception names that Triton puts before it."""
    text = " ".join(text.split()).strip(" ;")
    for pattern in (_STATUS, _STATUS, _EXCEPTION):
        text = pattern.sub("", text)
    return text.rstrip(".")


class Follower:
    """Copies what is appended to a log file to `output`, from a thread of its own, while the context is open.

    The file is emptied once it has `most_bytes`: whoever keeps the output has it, and a container's disk is bounded.
    """

    def __init__(self, log: Path, output: TextIO = sys.stderr, most_bytes: int = MAX_COPIED_BYTES) -> None:
        """Nothing is read before the context is entered."""
        self._log = log
        self._output = output
        self._most_bytes = most_bytes
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, name="log-follower", daemon=True)

    def _run(self) -> None:
        with self._log.open(encoding="utf-8", errors="replace") as log:
            while True:
                ending = self._end.wait(0.1)  # asked before the last read, so that nothing written by then is lost
                text = log.read()
                if text:
                    self._output.write(text)
                    self._output.flush()
                if ending:
                    return
                if not text and log.tell() >= self._most_bytes:  # all of it has been copied
                    os.truncate(self._log, 0)  # its writers append
                    log.seek(0)

    def __enter__(self) -> Follower:
        """Begin with what is in the file already."""
        self._log.parent.mkdir(parents=True, exist_ok=True)
        self._log.touch()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Copy the rest and end."""
        self._end.set()
        self._thread.join(timeout=5)
