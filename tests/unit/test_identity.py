"""Who a request is: what is taken of a client's id and of a trace header, and that neither writes log lines."""

from __future__ import annotations

import pytest

from inflight.identity import MAX_ID, Identity, Trace, parse_traceparent, plain_id

pytestmark = pytest.mark.fast

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


@pytest.mark.parametrize(
    ("text", "sampled"),
    [
        (f"00-{TRACE}-{PARENT}-01", True),
        (f"00-{TRACE}-{PARENT}-00", False),
        (f"00-{TRACE}-{PARENT}-03", True),
        (f"cc-{TRACE}-{PARENT}-01-what-comes-later", True),
    ],
)
def test_a_trace_is_read(text: str, sampled: bool) -> None:
    assert parse_traceparent(text) == Trace(TRACE, PARENT, sampled)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "0",
        None,
        7,
        f"ff-{TRACE}-{PARENT}-01",
        f"00-{'0' * 32}-{PARENT}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE.upper()}-{PARENT}-01",
        f"00-{TRACE}-{PARENT}-01\n",
        f"00-{TRACE}-{PARENT}",
        f"cc-{TRACE}-{PARENT}-01-{'x' * 300}",
    ],
)
def test_what_is_no_trace_is_ignored(text: object) -> None:
    assert parse_traceparent(text) is None


@pytest.mark.parametrize(
    ("sent", "kept"),
    [
        ("abc-1", "abc-1"),
        ("a\nERROR the server is on fire", "a?ERROR the server is on fire"),
        ("\x1b[31mred", "?[31mred"),
        ("größe", "größe"),
        ("x" * 1000, "x" * MAX_ID),
        (b"bytes", ""),
        (None, ""),
    ],
)
def test_an_id_is_one_line(sent: object, kept: str) -> None:
    assert plain_id(sent) == kept


def test_a_log_line_shows_both() -> None:
    assert str(Identity("abc")) == "abc"
    assert str(Identity("abc", Trace(TRACE, PARENT, False))) == f"abc (trace {TRACE})"
