"""What the scripts of this folder say to a person: progress on one line, failures in one sentence."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from types import FrameType


class Failure(Exception):
    """A failure that a user can mend. Its text is one sentence: what is wrong, where, and what to do about it."""


class Progress:
    """One line of progress on standard error.

    A terminal sees the line rewritten in place, at most ten times a second. Anything else (a log, CI) sees a fresh line
    every `every_s` seconds, and only if there is something to say by then.
    """

    def __init__(self, every_s: float = 15.0) -> None:
        """`every_s`: seconds between lines where standard error is not a terminal."""
        self._terminal = sys.stderr.isatty()
        self._gap_s = 0.1 if self._terminal else every_s
        self._last = time.monotonic() - (self._gap_s if self._terminal else 0.0)
        self._width = 0

    def show(self, text: str) -> None:
        """Show `text` unless the line before it is too recent."""
        now = time.monotonic()
        if now - self._last < self._gap_s:
            return
        self._last = now
        if self._terminal:
            text = text[:110]
            sys.stderr.write("\r    " + text.ljust(self._width))
            self._width = len(text)
        else:
            sys.stderr.write(f"    {text}\n")
        sys.stderr.flush()

    def clear(self) -> None:
        """Take the line off the terminal, so that the next output starts on a clean one."""
        if self._terminal and self._width:
            sys.stderr.write("\r" + " " * (self._width + 4) + "\r")
            sys.stderr.flush()
            self._width = 0


# Package that may be missing → what to install for it.
_MEND = dict.fromkeys(("numpy", "tritonclient", "grpc", "google", "gevent", "geventhttpclient"), '"inflight[client]"')
_MEND |= dict.fromkeys(("openvino", "openvino_genai", "tokenizers", "jinja2"), '"inflight[serve]"')
_MEND |= dict.fromkeys(
    ("torch", "transformers", "nncf", "optimum", "safetensors", "huggingface_hub"), '"inflight[build]"'
)
_MEND |= dict.fromkeys(
    ("inflight_gateway", "uvicorn", "uvloop", "httptools", "prometheus_client"), '"inflight[gateway]"'
)
_MEND |= {"rich": "rich", "msgspec": "msgspec"}


def missing_package(error: ModuleNotFoundError) -> str | None:
    """The package that is missing and how to get it; None where it is none that an extra brings: that is a bug."""
    package = (error.name or "").partition(".")[0]
    mend = _MEND.get(package)
    return mend and f"the package {package}, which {sys.executable} lacks: pip install {mend}."


def _terminate(_signal: int, _frame: FrameType | None) -> None:
    raise SystemExit(143)


def run_main(main: Callable[[], int]) -> None:
    """Run a script's `main` and exit with what it returns: 1 with one sentence for a `Failure`, 130 for Ctrl-C.

    SIGTERM unwinds like Ctrl-C does, so that temporary folders and child processes go with it (143).
    """
    signal.signal(signal.SIGTERM, _terminate)
    try:
        status = main()
    except Failure as failure:
        print(f"error: {failure}", file=sys.stderr)
        status = 1
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        status = 130
    except BrokenPipeError:  # the reader of our output has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # so that the last flush does not fail again
        status = 141
    sys.exit(status)
