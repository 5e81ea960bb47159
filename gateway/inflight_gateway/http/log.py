"""The gateway's log: a line for each request, and what else there is to say, as text or as one JSON object a line."""

from __future__ import annotations

import json
import logging
import sys
import time
from typing import Any


class Line(dict[str, Any]):
    """What there is to say of one request; as text, the values that there are."""

    def __str__(self) -> str:
        """`name=value`, with blanks between."""
        return " ".join(f"{name}={value}" for name, value in self.items() if value not in ("", None))


class _Json(logging.Formatter):
    """A request's values lie beside the time, so that nobody has to take a message apart."""

    converter = time.gmtime  # type: ignore[assignment]
    default_time_format = "%Y-%m-%dT%H:%M:%S"
    default_msec_format = "%s.%03dZ"

    def format(self, record: logging.LogRecord) -> str:
        """One line."""
        said: dict[str, Any] = {"time": self.formatTime(record), "level": record.levelname, "logger": record.name}
        said |= record.msg if isinstance(record.msg, Line) else {"message": record.getMessage()}
        if record.exc_info:
            said["traceback"] = self.formatException(record.exc_info)
        return json.dumps(said)


def begin(as_json: bool) -> None:
    """Write to standard error from now on."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Json() if as_json else logging.Formatter("%(asctime)s %(name)s %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
