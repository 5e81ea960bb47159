"""Who is told of every request that has ended, as the server's environment asks: the access log, and spans."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

from inflight.errors import LoadError, quoted
from inflight.serving import access_log, tracing
from inflight.serving.access_log import AccessLog
from inflight.serving.ended import Ended
from inflight.serving.otlp import Otlp
from inflight.serving.tracing import Tracing

_WORDS = {"": False, "0": False, "false": False, "off": False, "1": True, "true": True, "on": True}


def is_on(name: str, environment: Mapping[str, str]) -> bool:
    """Whether a variable of the environment switches something on. Raises `LoadError` for what is neither."""
    text = environment.get(name, "").strip()
    if text.lower() not in _WORDS:
        raise LoadError(f"the environment variable {name} must be 1 or 0, but is {quoted(text)}.")
    return _WORDS[text.lower()]


class Listener(Protocol):
    """Hears of every end. Must not block."""

    def __call__(self, ended: Ended) -> None:
        """One request has ended."""

    def state(self) -> dict[str, int]:
        """For operators."""

    def stop(self, timeout_s: float) -> None:
        """Nothing more ends."""


def listeners(model: str, environment: Mapping[str, str]) -> tuple[Listener, ...]:
    """Nobody, unless the environment asks for it. Raises `LoadError`."""
    wanted: list[Callable[[], Listener]] = []
    if is_on(access_log.ON, environment):
        wanted.append(lambda: AccessLog(model))
    if is_on(tracing.ON, environment):
        wanted.append(lambda: Tracing(model, Otlp()))
    return tuple(make() for make in wanted)
