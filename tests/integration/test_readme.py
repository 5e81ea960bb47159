"""What the README and docs/requests.md show a reader is run here as it is written, against a server on other ports."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from inflight_tools.common.layout import REPOSITORY
from inflight_tools.server.server import Server
from tests.harness.pages import ASKS_A_SERVER, commands, fenced

pytestmark = pytest.mark.server


def run(text: str, server: Server, *program: str) -> str:
    """What a program given as text prints, with the documents' ports replaced by the server's."""
    for documented, real in (("localhost:8000", server.http_url), ("localhost:8001", server.grpc_url)):
        text = text.replace(documented, real)
    port = {"INFLIGHT_HTTP_PORT": server.http_url, "INFLIGHT_GRPC_PORT": server.grpc_url}
    environment = {**os.environ, **{name: url.rpartition(":")[2] for name, url in port.items()}}
    done = subprocess.run(
        [*program, text], cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("command", [command for command in commands("README.md") if ASKS_A_SERVER.match(command)])
def test_a_question_of_the_readme_is_answered(command: str, server: Server) -> None:
    if "scripts/stream.py" in command:
        command += f" --url {server.grpc_url}"
    answer = run(command, server, "bash", "-c")
    assert "error" not in answer
    if "generate_stream" in command:
        assert answer.count("data: {") > 3  # it streams
        assert '"finish_reason":"stop"' in answer or '"finish_reason":"length"' in answer
    elif "generate" in command:
        assert '"text_output":" Paris' in answer
    else:
        assert len(answer.split()) > 3


def test_the_python_client_of_the_documents_streams(server: Server) -> None:
    (program,) = fenced("docs/requests.md", "python")
    answer = run(program, server, sys.executable, "-c")
    assert len(answer.split()) > 8
