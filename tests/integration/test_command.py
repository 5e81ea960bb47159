"""The command `inflight` as a new user types it: from a checkout, and installed by pip without one."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import openai
import pytest

from build_engine.verification.verify import as_text
from inflight import manifest
from inflight_tools.common import fetch_gemma
from inflight_tools.common.layout import BACKENDS, CACHE, ENGINE, MODEL_REPOSITORY, MODELS, REPOSITORY
from inflight_tools.server.find import Triton
from inflight_tools.server.processes import marked_pids
from inflight_tools.server.server import Ports, Server, ServerConfig
from tests.conftest import READY_TIMEOUT_S, require_installation
from tests.harness.grpc_client import GrpcClient
from tests.harness.repository import write_model

pytestmark = pytest.mark.server

PATH = os.pathsep.join(str(REPOSITORY / part) for part in ("scripts", "python_backend", "."))
CLI = (sys.executable, "-m", "inflight_tools.cli")
PACKAGES = Path(sys.prefix) / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"


class Served:
    """One `inflight serve`, on free ports."""

    def __init__(self, tmp_path: Path, command: Sequence[str | Path], *what: str | Path, **environment: str) -> None:
        self.ports = Ports.free()
        self.ready = tmp_path / "ready.json"
        self.output, self.errors = tmp_path / "output", tmp_path / "errors"
        numbers = dataclasses.asdict(self.ports)
        ports = [word for name, number in numbers.items() for word in (f"--{name}-port", str(number))]
        with self.output.open("wb") as output, self.errors.open("wb") as errors:
            self.process = subprocess.Popen(
                [
                    *command,
                    "serve",
                    *what,
                    *ports,
                    "--drain-notice",
                    "0",
                    "--ready-file",
                    self.ready,
                    "--log",
                    tmp_path / "log",
                ],
                env={**os.environ, "PYTHONPATH": PATH, **environment},
                stdout=output,
                stderr=errors,
                start_new_session=True,
            )

    def wait(self, until: Callable[[], bool], timeout_s: float) -> None:
        give_up = time.monotonic() + timeout_s
        while not until():
            assert self.process.poll() is None, self.errors.read_text()
            assert time.monotonic() < give_up, self.errors.read_text()
            time.sleep(0.05)

    def wait_ready(self, timeout_s: float = READY_TIMEOUT_S) -> str:
        """What it printed by the time it was ready."""
        self.wait(self.ready.exists, timeout_s)
        return self.output.read_text()

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(90)


Serve = Callable[..., Served]


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    require_installation()
    made: list[Served] = []

    def make(*arguments: str | Path, command: Sequence[str | Path] = CLI, **environment: str) -> Served:
        folder = tmp_path / f"serve{len(made)}"
        folder.mkdir()
        environment.setdefault("INFLIGHT_SERVE_CACHE", str(tmp_path / "cache"))
        made.append(Served(folder, command, *arguments, **environment))
        return made[-1]

    yield make
    for each in made:
        if each.process.poll() is None:
            each.process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                each.process.wait(60)
            each.process.kill()


def run(command: Sequence[str | Path], *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Any command of it to its end."""
    variables = {**os.environ, "PYTHONPATH": PATH, **environment}
    return subprocess.run(
        [*command, *arguments], env=variables, capture_output=True, text=True, timeout=120, check=False
    )


def test_an_engine_directory_is_served_asked_and_drained(serve: Serve, tmp_path: Path) -> None:
    control = {"INFLIGHT_CONTROL_DIR": str(tmp_path / "control"), "INFLIGHT_TEST_COMMAND": str(tmp_path)}
    served = serve(ENGINE, "--name", "mine", **control)
    printed = served.wait_ready()
    http, grpc = f"127.0.0.1:{served.ports.http}", f"127.0.0.1:{served.ports.grpc}"
    assert f"curl -s {http}/v2/models/mine/generate -d '" in printed
    assert f'chat --url {grpc} --model mine "Tell me a joke."\n' in printed
    # The gateway beside it, as the README shows.
    assert f"OpenAI's API http://127.0.0.1:{served.ports.gateway}/v1\n" in printed
    assert f"Playground http://127.0.0.1:{served.ports.gateway}/\n" in printed
    with openai.OpenAI(base_url=f"http://localhost:{served.ports.gateway}/v1", api_key="none") as client:
        asked = [{"role": "user", "content": "What is the capital of France?"}]
        told = client.chat.completions.create(model="mine", messages=asked, temperature=0)  # type: ignore[arg-type]
        assert "Paris" in (told.choices[0].message.content or "")
    raw = ("--model", "mine", "--no-chat", "The capital of France is", "--max-tokens", "4", "--temperature", "0")
    over_grpc = run(CLI, "chat", "--url", grpc, *raw)
    assert over_grpc.returncode == 0, over_grpc.stderr
    # As in an environment that has msgspec alone: no site-packages.
    over_http = run([sys.executable, "-S", "-m", "inflight_tools.cli"], "chat", "--url", http, *raw)
    assert over_http.returncode == 0, over_http.stderr
    assert over_http.stdout == over_grpc.stdout
    assert "4 tokens | finish reason: length" in over_http.stderr
    chat = run(CLI, "chat", "--url", f"http://{http}", "--model", "mine", "Say hello.", "--max-tokens", "8", "--json")
    assert json.loads(chat.stdout)["num_input_tokens"] > 10  # the chat template's own tokens are among them
    refused = run(CLI, "chat", "--url", f"http://{http}", "--model", "mine", "hi", "--top-p", "7")
    assert (refused.returncode, refused.stderr) == (1, "error: top_p must be at most 1, but is 7.\n")
    status = run(CLI, "status", "--json", **control)
    assert json.loads(status.stdout)["health"] == "ready"
    assert run(CLI, "drain", "another", **control).returncode == 1
    drained = run(CLI, "drain", "mine", "--notice-ms", "0", **control)
    assert drained.returncode == 0, drained.stderr
    late = run(CLI, "chat", "--url", grpc, *raw)
    assert late.returncode == 1
    assert "drain" in late.stderr
    assert served.stop() == 0
    assert marked_pids("INFLIGHT_TEST_COMMAND", str(tmp_path)) == []  # the gateway's process neither


def test_the_repository_of_the_checkout_and_ctrl_c(serve: Serve) -> None:
    served = serve(MODEL_REPOSITORY)
    assert "ready after" in served.wait_ready()
    with GrpcClient(f"127.0.0.1:{served.ports.grpc}") as client:
        assert client.generate("The capital of France is", max_tokens=4).text.startswith(" Paris")
    assert served.stop(signal.SIGINT) == 0
    assert "error" not in served.errors.read_text()


def environment_of_its_own(folder: Path) -> Path:
    """A Python environment with all that serving needs but Inflight; returns its Python."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True, timeout=120)
    packages = folder / PACKAGES.relative_to(sys.prefix)
    (packages / "of_the_tests.pth").write_text(
        f"{PACKAGES}\n"
    )  # whose own .pth files, an editable one too, say nothing
    return folder / "bin" / "python3"


def triton_of_somebody_else(folder: Path) -> Path:
    """The fetched server as if somebody had installed it: with the Python backend, without ours."""
    (folder / "bin").mkdir(parents=True)
    (folder / "backends").mkdir()
    (folder / "backends" / "python").symlink_to(BACKENDS / "python")
    program = folder / "bin" / "tritonserver"
    libraries = f"{CACHE}/lib:{CACHE}/server/nvidia_pytriton.libs"
    server = CACHE / "server" / "pytriton" / "tritonserver" / "bin" / "tritonserver"
    program.write_text(f'#!/bin/sh\nexport LD_LIBRARY_PATH="{libraries}"\nexec "{server}" "$@"\n')
    program.chmod(0o755)
    return program


_DECOY = "raise ImportError('the installed inflight was imported instead of the backend directory\\'s own')\n"
_FINDER = """\
import sys
from importlib.util import spec_from_file_location


class Finder:
    @staticmethod
    def find_spec(name, path=None, target=None):
        return spec_from_file_location(name, {decoy!r}) if name == "inflight" else None


def install():
    sys.meta_path.append(Finder)
"""


def test_an_installed_inflight_never_replaces_the_backends_own(tmp_path: Path) -> None:
    """Neither one in site-packages nor an editable one, in the real stub and in the engine process it starts."""
    require_installation()
    python = environment_of_its_own(tmp_path / "venv")
    packages = next((tmp_path / "venv" / "lib").glob("python*")) / "site-packages"
    (packages / "inflight").mkdir()
    (packages / "inflight" / "__init__.py").write_text(_DECOY)
    (packages / "decoy_finder.py").write_text(_FINDER.format(decoy=str(packages / "inflight" / "__init__.py")))
    (packages / "decoy.pth").write_text("import decoy_finder; decoy_finder.install()\n")
    decoyed = subprocess.run([python, "-c", "import inflight"], capture_output=True, text=True, check=False)
    assert "instead of the backend directory's own" in decoyed.stderr
    write_model(tmp_path / "repository", "llm", {"engine": "simulated"})
    environment = {"PATH": f"{python.parent}{os.pathsep}{os.environ['PATH']}", "PYTHONNOUSERSITE": "1"}
    program = triton_of_somebody_else(tmp_path / "triton")
    config = ServerConfig(repository=tmp_path / "repository", log=tmp_path / "log", drain_timeout_s=0.0)
    with Server(config, Triton(program, BACKENDS, environment)) as server:
        server.wait_ready(READY_TIMEOUT_S)
        with GrpcClient(server.grpc_url) as client:
            assert client.generate("hello", max_tokens=3).text


@pytest.mark.full
@pytest.mark.build
def test_gemma_is_built_at_the_default_and_answers(serve: Serve, tmp_path: Path) -> None:
    """A second real model: windows of 512 tokens, a vocabulary of 262,144, and no chat template."""
    checkpoint = MODELS / fetch_gemma.NAME
    fetch_gemma.fetch_gemma(checkpoint)
    caches = {"INFLIGHT_BUILD_CACHE": str(tmp_path / "stages"), "INFLIGHT_SERVE_CACHE": str(tmp_path / "served")}
    served = serve(checkpoint, **caches)
    served.wait_ready(1500)
    assert "int8 weights" in served.errors.read_text()
    (engine,) = (tmp_path / "served" / "engines").iterdir()
    figures = manifest.read(engine).verification
    assert figures is not None
    print(as_text(figures))
    assert figures.accepted == ""
    assert figures.mean_kl < 0.02
    assert [each.border for each in figures.beyond] == [512]
    with GrpcClient(f"127.0.0.1:{served.ports.grpc}") as client:
        for prompt in ("The capital of France is", "Once upon a time, 12,345 naïve 😀", "日本の首都は"):
            streamed = client.start(prompt, max_tokens=24).result().text
            assert streamed == client.start(prompt, stream=False, max_tokens=24).result().text
            assert "\ufffd" not in streamed
        assert "six" in client.start("One, two, three, four, five,", stream=False, max_tokens=4).result().text
    assert served.stop() == 0


@pytest.mark.full
@pytest.mark.build
def test_a_checkpoint_is_built_then_served_and_the_second_time_found(serve: Serve, tmp_path: Path) -> None:
    checkpoint = MODELS / "SmolLM2-135M-Instruct"
    caches = {"INFLIGHT_BUILD_CACHE": str(tmp_path / "stages"), "INFLIGHT_SERVE_CACHE": str(tmp_path / "served")}
    stopped = serve(checkpoint, **caches)
    stopped.wait(lambda: "exporting to OpenVINO" in stopped.errors.read_text(), 60)
    time.sleep(3.0)
    assert stopped.stop(signal.SIGINT) == 130
    assert stopped.errors.read_text().endswith("stopped; nothing was left behind\n")
    assert list((tmp_path / "served" / "engines").iterdir()) == []
    first = serve(checkpoint, **caches)
    assert "ready after" in first.wait_ready(600)
    answer = run(CLI, "chat", "--url", f"127.0.0.1:{first.ports.grpc}", "What is the capital of France?")
    assert "Paris" in answer.stdout
    assert first.stop() == 0
    assert "int8 weights" in first.errors.read_text()
    began = time.monotonic()
    second = serve(checkpoint, **caches)
    second.wait_ready()
    assert time.monotonic() - began < 45  # 6 s on an idle machine; a build takes more than a minute
    assert "int8 engine of an earlier build" in second.errors.read_text()
    assert second.stop() == 0


@pytest.mark.full
def test_installed_by_pip_without_a_checkout(serve: Serve, tmp_path: Path) -> None:
    """With msgspec from the package index and nothing else; then with the extra serve and a server, out of a folder."""
    source = tmp_path / "source"
    for name in ("build_engine", "python_backend", "scripts", "gateway"):
        shutil.copytree(REPOSITORY / name, source / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    shutil.copy(REPOSITORY / "pyproject.toml", source)
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True, timeout=120)
    bin_ = tmp_path / "venv" / "bin"
    install = [bin_ / "python", "-m", "pip", "install", "--quiet", source]
    done = subprocess.run(install, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    shutil.rmtree(source)
    listed = subprocess.run([bin_ / "python", "-m", "pip", "list", "--format", "json"], capture_output=True, check=True)
    names = {package["name"] for package in json.loads(listed.stdout)} - {"pip", "setuptools", "wheel"}
    assert names == {"inflight", "msgspec"}

    command = (bin_ / "inflight",)
    alone = {
        "PYTHONPATH": "",
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
        "INFLIGHT_SERVE_CACHE": "",
        "PATH": "/bin:/usr/bin",
    }
    began = time.monotonic()
    page = run(command, "--help", **alone)
    assert page.stdout.startswith("usage: inflight COMMAND")
    assert time.monotonic() - began < 5  # 0.1 s on an idle machine
    assert "135" in run(command, "plan", str(MODELS / "SmolLM2-135M-Instruct"), **alone).stdout.partition("\n")[0]
    assert "not found here" in run(command, "version", **alone).stdout
    here = run(command, "serve", **alone)
    assert here.stderr.startswith(
        "error: there is no model repository of its own here, as in a checkout of Inflight: name"
    )
    no_server = run(command, "serve", str(ENGINE), **alone)
    assert no_server.stderr.startswith("error: there is no tritonserver here: run scripts/quickstart.sh in a checkout")
    program = triton_of_somebody_else(tmp_path / "triton")
    no_extra = run(command, "serve", str(ENGINE), "--tritonserver", str(program), **alone)
    assert no_extra.stderr.count("\n") == 1
    assert 'lacks (numpy, tokenizers, jinja2): pip install "inflight[serve]".' in no_extra.stderr

    # What the extra would bring, from where it is installed already.
    packages = next((tmp_path / "venv" / "lib").glob("python*")) / "site-packages"
    (packages / "of_the_tests.pth").write_text(f"{PACKAGES}\n")
    served = serve(ENGINE, "--tritonserver", program, command=command, **alone)
    served.wait_ready()
    assert str(packages / "inflight") in os.path.realpath(next((tmp_path / "cache").rglob("backend/*/inflight")))
    (packages / "of_the_tests.pth").unlink()
    url = f"http://127.0.0.1:{served.ports.http}"
    answer = run(command, "chat", "--url", url, "What is the capital of France?", **alone)
    assert answer.returncode == 0, answer.stderr
    assert "Paris" in answer.stdout
    assert served.stop() == 0
