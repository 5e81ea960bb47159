"""What the README and docs/requests.md show a reader is run here as it is written, on ports of its own: the server is
started as the README says, asked as it says, and stopped with Ctrl-C.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator

import pytest

from inflight_tools.common.layout import REPOSITORY
from inflight_tools.server.server import Ports
from tests.conftest import READY_TIMEOUT_S, require_installation
from tests.harness.pages import ASKS_A_SERVER, SERVES, commands, fenced

pytestmark = pytest.mark.server


def is_ready(ports: Ports) -> bool:
    """Triton's model, and the gateway beside it."""
    return answers(f"{ports.http}/v2/models/llm/ready") and answers(f"{ports.gateway}/ready")


def answers(place: str) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{place}", timeout=2) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ports]:
    """The server that the README's command starts; it has to end well."""
    require_installation()
    if not (REPOSITORY / SERVES.split()[0]).exists():
        pytest.fail(
            f"there is no {SERVES.split()[0]}: run scripts/test.sh, or scripts/quickstart.sh once", pytrace=False
        )
    ports = Ports.free()
    given = {"INFLIGHT_HTTP_PORT": ports.http, "INFLIGHT_GRPC_PORT": ports.grpc, "INFLIGHT_METRICS_PORT": ports.metrics}
    given |= {"INFLIGHT_HEALTH_PORT": ports.health, "INFLIGHT_GATEWAY_PORT": ports.gateway}
    log = tmp_path_factory.mktemp("readme") / "serve.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            SERVES.split(),
            cwd=REPOSITORY,
            env={**os.environ, **{name: str(port) for name, port in given.items()}},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # a process group of its own, as a terminal gives to a command
        )
    try:
        deadline = time.monotonic() + READY_TIMEOUT_S
        while not is_ready(ports):
            assert process.poll() is None, log.read_text("utf-8")
            assert time.monotonic() < deadline, log.read_text("utf-8")
            time.sleep(0.1)
        yield ports
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(60) == 0, log.read_text("utf-8")
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(10)


def run(text: str, ports: Ports, *program: str) -> str:
    """What a program given as text prints, with the documents' ports replaced by the server's."""
    for documented, real in ((8000, ports.http), (8001, ports.grpc), (8080, ports.gateway)):
        text = text.replace(f"localhost:{documented}", f"localhost:{real}")
    done = subprocess.run([*program, text], cwd=REPOSITORY, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("command", [command for command in commands("README.md") if ASKS_A_SERVER.match(command)])
def test_a_question_of_the_readme_is_answered(command: str, served: Ports) -> None:
    if " chat " in command:  # the one that names no port
        command += f" --url localhost:{served.grpc}"
    answer = run(command, served, "bash", "-c")
    assert "error" not in answer
    if "generate_stream" in command:
        assert answer.count("data: {") > 3  # it streams
        assert '"finish_reason":"stop"' in answer or '"finish_reason":"length"' in answer
    elif "generate" in command:
        assert '"text_output":" Paris' in answer
    else:
        assert len(answer.split()) > 3


@pytest.mark.parametrize("page", ["README.md", "docs/gateway.md"])
def test_openais_client_of_the_page_is_answered(page: str, served: Ports) -> None:
    program = next(program for program in fenced(page, "python") if "from openai import" in program)
    assert "messages=" in program
    # Sampled, a small model rambles, or ends after a word.
    program = program.replace("messages=", "max_tokens=24, temperature=0, messages=")
    assert len(run(program, served, sys.executable, "-c").split()) > 2


def test_the_python_client_of_the_documents_streams(served: Ports) -> None:
    (program,) = fenced("docs/requests.md", "python")
    answer = run(program, served, sys.executable, "-c")
    assert len(answer.split()) > 8
