"""What can go wrong, in one form for all dialects; each renders it in its own."""

from __future__ import annotations

import enum
import random


class Kind(enum.Enum):
    """Why a request ends without an answer: HTTP status, OpenAI's type and code."""

    def __init__(self, status: int, type_: str, code: str | None) -> None:
        self.status = status
        self.type = type_
        self.code = code

    INVALID = (400, "invalid_request_error", None)
    UNSUPPORTED = (400, "invalid_request_error", "unsupported_parameter")
    TOO_LONG = (400, "invalid_request_error", "context_length_exceeded")
    NO_KEY = (401, "invalid_request_error", "invalid_api_key")
    NO_MODEL = (404, "invalid_request_error", "model_not_found")
    NO_ROUTE = (404, "invalid_request_error", "not_found")
    METHOD = (405, "invalid_request_error", "method_not_allowed")
    SLOW_BODY = (408, "invalid_request_error", "request_timeout")
    TOO_LARGE = (413, "invalid_request_error", "request_too_large")
    ENCODING = (415, "invalid_request_error", "unsupported_encoding")
    BUSY = (429, "rate_limit_exceeded", "requests")
    CANCELLED = (499, "server_error", "cancelled")
    INTERNAL = (500, "server_error", "internal_error")
    OVERLOADED = (503, "server_error", "overloaded")
    RESTARTING = (503, "server_error", "restarting")
    DRAINING = (503, "server_error", "draining")
    DOWN = (503, "server_error", "unavailable")
    DEADLINE = (504, "server_error", "timeout")


# Seconds after which a client may try again at the earliest, where trying again makes sense.
_RETRY_AFTER = {Kind.BUSY: 1, Kind.OVERLOADED: 1, Kind.RESTARTING: 3, Kind.DRAINING: 5, Kind.DOWN: 3}


def retry_after(kind: Kind) -> int | None:
    """Seconds after which a client may try again; None: that makes no sense. Not the same for all: whoever was refused
    together does not come back together.
    """
    least = _RETRY_AFTER.get(kind)
    return None if least is None else least + random.randrange(least + 1)


class GatewayError(Exception):
    """A request ends here. `param` is the field at fault, under the name of the client's dialect."""

    def __init__(self, kind: Kind, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.kind = kind
        self.message = message
        self.param = param


def invalid(param: str, problem: str) -> GatewayError:
    """The value of `param` is wrong; `problem` completes the sentence "<param> …"."""
    return GatewayError(Kind.INVALID, f"{param} {problem}", param)


def unsupported(param: str, problem: str = "is not supported; leave it out") -> GatewayError:
    """`param` would change the answer, and cannot be honoured."""
    return GatewayError(Kind.UNSUPPORTED, f"{param} {problem}", param)
