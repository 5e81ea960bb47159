"""What quickstart.sh refuses before it does any work: one sentence each, on standard error, with the mend."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

from inflight_tools.common.layout import REPOSITORY
from inflight_tools.server.server import Ports

pytestmark = pytest.mark.fast


def program(folder: Path, name: str, script: str) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(0o755)
    return folder / name


def refused(*arguments: str, environment: Mapping[str, str] | None = None, checkout: Path = REPOSITORY) -> str:
    """Run quickstart.sh, which has to fail at once; returns its sentence."""
    ports = Ports.free()
    done = subprocess.run(
        [checkout / "scripts" / "quickstart.sh", *arguments],
        env={
            **os.environ,
            "INFLIGHT_HTTP_PORT": str(ports.http),
            "INFLIGHT_GRPC_PORT": str(ports.grpc),
            "INFLIGHT_METRICS_PORT": str(ports.metrics),
            **(environment or {}),
        },
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1, done
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    return line.removeprefix("error: ")


@pytest.mark.parametrize("version", ["3.13", "3.9"])
def test_a_python_that_the_server_has_no_stub_for(tmp_path: Path, version: str) -> None:
    python = program(tmp_path, "python", f"echo {version}")
    sentence = refused("--python", str(python))
    assert f"is Python {version} and this server's Python backend runs on 3.10, 3.11 and 3.12" in sentence
    assert sentence.endswith("name one of these with --python.")


def test_a_python_that_is_not_there() -> None:
    assert "there is no program no-such-python" in refused("--python", "no-such-python")


def test_something_that_is_no_python(tmp_path: Path) -> None:
    python = program(tmp_path, "python", "exit 1")
    assert "is not a Python that runs" in refused("--python", str(python))


def test_a_python_without_venv(tmp_path: Path) -> None:
    python = program(tmp_path, "python", 'case "$2" in *ensurepip*) exit 1 ;; *) echo 3.11 ;; esac')
    sentence = refused("--python", str(python))
    assert "has no venv module: install it (Debian, Ubuntu: apt-get install python3.11-venv)" in sentence


def test_too_little_disk(tmp_path: Path) -> None:
    table = "Filesystem 1048576-blocks Used Available Capacity Mounted on\\n/dev/x 100 90 10 90%% /\\n"
    program(tmp_path / "bin", "df", f"printf '{table}'")
    sentence = refused(environment={"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"})
    assert "has 10 MB left and about" in sentence
    assert "free some" in sentence


def test_a_taken_port() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        sentence = refused("--http-port", str(port))
    assert f"port {port} on 127.0.0.1 cannot be used (Address already in use)" in sentence
    assert "--http-port or INFLIGHT_HTTP_PORT" in sentence


@pytest.mark.parametrize("port", ["http", "0", "65536", "-1", "8e3", ""])
def test_what_is_no_port(port: str) -> None:
    assert "is not a port" in refused(f"--grpc-port={port}")


def test_a_folder_that_is_no_checkpoint(tmp_path: Path) -> None:
    assert f"{tmp_path} is not a Hugging Face checkpoint" in refused("--model", str(tmp_path))


@pytest.mark.parametrize("arguments", [("--frobnicate",), ("--frobnicate", "1"), ("--prompt",), ("hello",)])
def test_unknown_options(arguments: tuple[str, ...]) -> None:
    sentence = refused(*arguments)
    assert arguments[0] in sentence
    assert "see --help" in sentence


def test_a_senseless_length() -> None:
    assert "--max-tokens is '0'" in refused("--max-tokens", "0")


def test_help_names_every_option() -> None:
    script = REPOSITORY / "scripts" / "quickstart.sh"
    text = subprocess.run([script, "--help"], capture_output=True, text=True, timeout=30, check=True).stdout
    for option in ("--serve", "--model", "--python", "--http-port", "--grpc-port", "--metrics-port", "--prompt"):
        assert option in text


@pytest.mark.parametrize("name", ["my checkout", "größe", "a&b"])
@pytest.mark.parametrize("locale", ["C", "C.UTF-8"])
def test_a_checkout_that_triton_cannot_start_a_backend_from(tmp_path: Path, name: str, locale: str) -> None:
    checkout = tmp_path / name
    for part in ("quickstart.sh", "lib"):
        target = checkout / "scripts" / part
        target.parent.mkdir(parents=True, exist_ok=True)
        copy = shutil.copytree if part == "lib" else shutil.copy
        copy(REPOSITORY / "scripts" / part, target)
    sentence = refused(environment={"LC_ALL": locale}, checkout=checkout)
    assert sentence.startswith(f"Triton cannot start a Python backend from {checkout}")
    assert "move the checkout" in sentence


def test_the_script_that_installs_vllm_takes_no_option_and_explains_itself(tmp_path: Path) -> None:
    (tmp_path / "scripts").mkdir()
    script = shutil.copy(REPOSITORY / "scripts" / "install_vllm.sh", tmp_path / "scripts")
    environment = {**os.environ, "INFLIGHT_PYTHON": "/bin/false"}
    for option, status, words in (("--help", 0, "Usage: "), ("--nope", 1, "error: --nope is no option")):
        done = subprocess.run(
            [script, option], env=environment, capture_output=True, text=True, timeout=30, check=False
        )
        assert done.returncode == status
        assert (done.stderr if status else done.stdout).startswith(words)
    assert not (tmp_path / ".cache").exists(), "it has begun to install"
