"""Who a request is, wherever the server speaks of it: its client's id, and the trace that it belongs to. Pure."""

from __future__ import annotations

import dataclasses
import re

MAX_ID = 128  # characters of a client's id that are kept
_TRACEPARENT = re.compile(r"(?!ff)[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(?:-.*)?")
_SAMPLED = 0x01


@dataclasses.dataclass(frozen=True, slots=True)
class Trace:
    """W3C trace context: 32 and 16 hexadecimal digits, and whether whoever began the trace wants it recorded."""

    trace_id: str
    parent_id: str
    sampled: bool


@dataclasses.dataclass(frozen=True, slots=True)
class Identity:
    """As text it is what log lines show: one line, whatever the client sent."""

    id: str
    trace: Trace | None = None

    def __str__(self) -> str:
        return self.id if self.trace is None else f"{self.id} (trace {self.trace.trace_id})"


def parse_traceparent(text: object) -> Trace | None:
    """The trace of a `traceparent` header; None for anything else, which the standard wants ignored."""
    found = _TRACEPARENT.fullmatch(text) if isinstance(text, str) and len(text) <= 256 else None
    if found is None:
        return None
    trace_id, parent_id, flags = found.groups()
    if not trace_id.strip("0") or not parent_id.strip("0"):
        return None
    return Trace(trace_id, parent_id, bool(int(flags, 16) & _SAMPLED))


def plain_id(text: object) -> str:
    """A client's id in one line of at most `MAX_ID` characters, so that nobody writes log lines in our name; empty for
    what is no text.
    """
    if not isinstance(text, str):
        return ""
    text = text[:MAX_ID]
    return text if text.isprintable() else "".join(each if each.isprintable() else "?" for each in text)
