"""The one kind of exception that a client ever sees, and the helpers that word it.

A message is one sentence that says what is wrong and how to mend it. It never holds a traceback, a path or the name of
a shared-memory region: clients read it.
"""

from __future__ import annotations

import difflib
import enum
from collections.abc import Iterable


class ErrorCode(enum.Enum):
    """Triton's error codes, as far as Inflight answers with them (docs/requests.md)."""

    INVALID_ARG = "invalid_arg"
    UNSUPPORTED = "unsupported"
    UNAVAILABLE = "unavailable"
    CANCELLED = "cancelled"
    INTERNAL = "internal"


class RequestError(Exception):
    """A request ends here, with `code` and a sentence for the client.

    `parameter` names the input at fault, where there is one.
    """

    def __init__(self, code: ErrorCode, message: str, parameter: str | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.parameter = parameter


class LoadError(Exception):
    """The model cannot be loaded; the message is the sentence that an operator reads in Triton's log."""


def invalid(parameter: str, problem: str) -> RequestError:
    """INVALID_ARG: the value of `parameter` is wrong; `problem` completes the sentence "<parameter> …"."""
    return RequestError(ErrorCode.INVALID_ARG, f"{parameter} {problem}", parameter)


def unsupported(parameter: str, problem: str) -> RequestError:
    """UNSUPPORTED: this engine lacks what `parameter` asks for."""
    return RequestError(ErrorCode.UNSUPPORTED, f"{parameter} {problem}", parameter)


def unavailable(message: str) -> RequestError:
    """UNAVAILABLE: nothing is wrong with the request; the message says what to do."""
    return RequestError(ErrorCode.UNAVAILABLE, message)


def cancelled(message: str = "the request was cancelled by its client") -> RequestError:
    """CANCELLED: the client left."""
    return RequestError(ErrorCode.CANCELLED, message)


def internal(request_id: str) -> RequestError:
    """INTERNAL: our own bug. The log has the traceback under the same id; the client gets nothing but the id."""
    return RequestError(ErrorCode.INTERNAL, f"internal error while handling request {request_id}; see the server's log")


def did_you_mean(name: str, known: Iterable[str], cutoff: float = 0.6) -> str:
    """`" (did you mean max_tokens?)"`, or an empty string when nothing is near. At a `cutoff` of 1 only equals are."""
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=cutoff)
    return f" (did you mean {near[0]}?)" if near else ""


def quoted(value: object, most: int = 100) -> str:
    """A value as an error shows it, in `most` characters."""
    text = repr(value)
    return text if len(text) <= most else f"{text[: most - 1]}…"


def spoken_lines(message: object) -> list[str]:
    """The lines of another library's message that say something; where none does, the name of its type."""
    lines = [line.strip() for line in str(message).splitlines() if line.strip()]
    return lines or [type(message).__name__]


def first_line(message: object, limit: int = 300) -> str:
    """What an error says, where its first line says it."""
    return spoken_lines(message)[0][:limit]


def last_line(message: object, limit: int = 300) -> str:
    """What an error says, where a trace of places stands before it."""
    return spoken_lines(message)[-1][:limit]


def unforeseen(error: BaseException) -> str:
    """What is left to say of an exception that nobody thought of; its traceback belongs into the log."""
    if isinstance(error, ImportError):
        return f"a package that it needs is missing or broken ({first_line(error)}); install requirements/serve.txt."
    said = f"{type(error).__name__}: {first_line(error)}" if str(error).strip() else type(error).__name__
    return f"an error came up that nobody has foreseen ({said}); the log above has its traceback."


def sendable(text: str) -> str:
    """`text` as it may be handed to Triton, which ends the process over half of a surrogate pair.

    Bytes of a path that Python has escaped (PEP 383) come out as the characters they are.
    """
    try:
        return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    except UnicodeEncodeError:
        return text.encode("utf-8", "replace").decode("utf-8")
