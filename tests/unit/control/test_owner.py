"""Which models are a server's own: two servers of one user listen in the same folder."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator

import pytest

from inflight.control import __main__ as command
from inflight.control.owner import ServerAt

pytestmark = pytest.mark.fast

SERVER = """
import socket, subprocess, sys
listening = socket.create_server(("127.0.0.1", 0))
stub = subprocess.Popen([sys.argv[1], "-c", "input()"], stdin=sys.stdin)
print(listening.getsockname()[1], stub.pid, flush=True)
stub.wait()
"""


@contextlib.contextmanager
def a_server(name: str = "/opt/tritonserver/bin/tritonserver") -> Iterator[tuple[int, int]]:
    """(its port, the process id of a stub below it)."""
    command, pipe = [name, "-c", SERVER, sys.executable], subprocess.PIPE
    with subprocess.Popen(command, executable=sys.executable, stdin=pipe, stdout=pipe, text=True) as process:
        assert process.stdout is not None
        port, stub = process.stdout.readline().split()
        yield int(port), int(stub)
        assert process.stdin is not None
        process.stdin.close()  # both end


def test_a_model_belongs_to_the_server_that_listens_on_the_port() -> None:
    with a_server() as (port, stub), a_server() as (other_port, other_stub):
        ours = ServerAt("127.0.0.1", port)
        assert (ours(stub), ours(other_stub)) == (True, False)
        theirs = ServerAt("localhost", other_port)
        assert (theirs(stub), theirs(other_stub)) == (False, True)


def test_where_it_cannot_be_known_everybodys_do() -> None:
    with a_server() as (port, stub):
        assert ServerAt("triton.example", port)(stub), "another machine's"
    assert ServerAt("127.0.0.1", port)(stub), "nobody listens there any more"
    with a_server("docker-proxy") as (port, _):
        assert ServerAt("127.0.0.1", port)(stub), "it passes connections on"


def test_the_command_asks_for_the_models_of_its_triton_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[object] = []

    class Watch:
        def __init__(self, *_: object, is_ours: object = None, **__: object) -> None:
            made.append(is_ours)
            raise KeyboardInterrupt

    monkeypatch.setattr(command, "Watch", Watch)
    with a_server() as (port, stub), a_server() as (_, other_stub):
        with pytest.raises(KeyboardInterrupt):
            command.main(["health", "--port", "0", "--triton", f"127.0.0.1:{port}"])
        (is_ours,) = made
        assert callable(is_ours), "every model of this user was taken for this server's"
        assert (is_ours(stub), is_ours(other_stub)) == (True, False)
