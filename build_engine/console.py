"""What a command says while it works: bars on a terminal, plain lines in a pipe, JSON lines with ``--json``.

Everything here goes to standard error; a command's result goes to standard output.
"""

from __future__ import annotations

import importlib.util
import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol, TextIO


class Step(Protocol):
    """One running step; ``fraction`` is 0…1, or None while it is not known."""

    def update(self, fraction: float | None, note: str = "") -> None: ...


class Console:
    """Plain lines: one when a step starts, one every ``every_s`` seconds while it runs, one when it ends."""

    every_s = 15.0

    def __init__(self, stream: TextIO | None = None) -> None:
        self.stream = stream or sys.stderr

    def say(self, message: str) -> None:
        print(message, file=self.stream, flush=True)

    def warn(self, message: str) -> None:
        self.say(f"warning: {message}")

    @contextmanager
    def step(self, title: str, expected_s: float | None = None) -> Iterator[Step]:
        """Show ``title`` while the block runs; without fractions the bar follows the expected time."""
        expectation = f" (about {format_seconds(expected_s)})" if expected_s else ""
        self.say(f"{title} …{expectation}")
        started = time.monotonic()
        yield _PlainStep(self, title, started)
        self.say(f"{title}: {format_seconds(time.monotonic() - started)}")


class _PlainStep:
    def __init__(self, console: Console, title: str, started: float) -> None:
        self.console, self.title, self.started = console, title, started
        self.said = started

    def update(self, fraction: float | None, note: str = "") -> None:
        now = time.monotonic()
        if now - self.said < self.console.every_s:
            return
        self.said = now
        elapsed = now - self.started
        percent = f" {100 * fraction:.0f} %" if fraction is not None else ""
        left = f", {format_seconds(elapsed / fraction - elapsed)} left" if fraction and fraction > 0.02 else ""
        self.console.say(f"{self.title}{percent} after {format_seconds(elapsed)}{left}")


class JsonConsole(Console):
    """One JSON object a line: event (say, warn, start, progress, end), title, fraction, seconds."""

    every_s = 1.0

    def _emit(self, **fields: object) -> None:
        print(json.dumps({"time": round(time.time(), 3), **fields}), file=self.stream, flush=True)

    def say(self, message: str) -> None:
        self._emit(event="say", message=message)

    def warn(self, message: str) -> None:
        self._emit(event="warn", message=message)

    @contextmanager
    def step(self, title: str, expected_s: float | None = None) -> Iterator[Step]:
        self._emit(event="start", title=title, expected_s=expected_s)
        started = time.monotonic()
        yield _JsonStep(self, title, started)
        self._emit(event="end", title=title, seconds=round(time.monotonic() - started, 3))


class _JsonStep:
    def __init__(self, console: JsonConsole, title: str, started: float) -> None:
        self.console, self.title, self.started = console, title, started
        self.said = 0.0

    def update(self, fraction: float | None, note: str = "") -> None:
        now = time.monotonic()
        if now - self.said >= self.console.every_s:
            self.said = now
            seconds = round(now - self.started, 3)
            self.console._emit(event="progress", title=self.title, fraction=fraction, note=note, seconds=seconds)


class RichConsole(Console):
    """A bar for the running step on a terminal."""

    def say(self, message: str) -> None:
        from rich.console import Console as Terminal

        Terminal(file=self.stream, highlight=False, markup=False, soft_wrap=True).print(message)

    @contextmanager
    def step(self, title: str, expected_s: float | None = None) -> Iterator[Step]:
        from rich.console import Console as Terminal
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

        terminal = Terminal(file=self.stream, highlight=False)
        columns = (
            TextColumn("{task.description:<28}", markup=False),
            BarColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(elapsed_when_finished=True),
            TextColumn("{task.fields[note]}", markup=False),
        )
        started = time.monotonic()
        with Progress(*columns, console=terminal, transient=True) as progress:
            task = progress.add_task(title, total=1.0 if expected_s else None, note="")
            yield _RichStep(progress, task, started, expected_s)
        self.say(f"{title}: {format_seconds(time.monotonic() - started)}")


class _RichStep:
    def __init__(self, progress: object, task: int, started: float, expected_s: float | None) -> None:
        self.progress, self.task, self.started, self.expected_s = progress, task, started, expected_s

    def update(self, fraction: float | None, note: str = "") -> None:
        from rich.progress import Progress, TaskID

        assert isinstance(self.progress, Progress)
        if fraction is None and self.expected_s:
            fraction = min(0.98, (time.monotonic() - self.started) / self.expected_s)
        if fraction is not None:
            self.progress.update(TaskID(self.task), completed=fraction, total=1.0, note=note)
        else:
            self.progress.update(TaskID(self.task), note=note)


def make_console(*, as_json: bool, stream: TextIO | None = None) -> Console:
    stream = stream or sys.stderr
    if as_json:
        return JsonConsole(stream)
    with_bars = stream.isatty() and importlib.util.find_spec("rich") is not None  # planning needs no extra
    return RichConsole(stream) if with_bars else Console(stream)


def format_seconds(seconds: float | None) -> str:
    """``12.3 s``, ``4 min 05 s``, ``2 h 10 min``."""
    if seconds is None:
        return "?"
    if seconds < 100:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 100:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def format_bytes(count: float) -> str:
    """``135 MB``, ``1.62 GB`` (decimal units, three digits)."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if abs(count) < 1000 or unit == "TB":
            return f"{count:.3g} {unit}" if unit != "B" else f"{count:.0f} B"
        count /= 1000
    raise AssertionError
