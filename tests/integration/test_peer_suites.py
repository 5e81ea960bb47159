"""The peers' own tests and clients against a real server of ours, where their checkouts are given.

    INFLIGHT_PEER_SUITES=DIR ./scripts/test.sh full tests/integration/test_peer_suites.py

DIR holds checkouts of `vllm_backend` (main) and `tensorrtllm_backend` (v0.18.2, the last with clients of its own) under
these names. Their files run as they are, in copies in which only the server's address is another one. Which of them
pass, and why the others do not, is in scripts/maintain/peer_suites.py, whence docs/requests.md has it.

What is vllm_backend's own runs against the vLLM engine too, where scripts/install_vllm.sh has put it.

Clients that are packages run under INFLIGHT_CLIENT_PYTHON, a Python of another environment in which
`pip install nvidia-pytriton llama-index-llms-nvidia-triton` was done.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from inflight_tools.common.layout import MODELS
from inflight_tools.server.server import Server, ServerConfig
from maintain.peer_suites import END_TO_END, VLLM_CI, Suite, additional_outputs
from tests.conftest import READY_TIMEOUT_S, require_installation
from tests.doubles.vllm import model_parameters, write_chain
from tests.harness.repository import write_model

pytestmark = [pytest.mark.full, pytest.mark.server, pytest.mark.timeout(1800)]

ADD_SUB = """\
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        answers = []
        for request in requests:
            one, two = (pb_utils.get_input_tensor_by_name(request, f"INPUT{n}").as_numpy() for n in (0, 1))
            found = [pb_utils.Tensor("OUTPUT0", one + two), pb_utils.Tensor("OUTPUT1", one - two)]
            answers.append(pb_utils.InferenceResponse(found))
        return answers
"""
ADD_SUB_CONFIG = """\
backend: "python"
max_batch_size: 0
instance_group [ { count: 1, kind: KIND_CPU } ]
input [ { name: "INPUT0" data_type: TYPE_FP32 dims: [ 4 ] }, { name: "INPUT1" data_type: TYPE_FP32 dims: [ 4 ] } ]
output [ { name: "OUTPUT0" data_type: TYPE_FP32 dims: [ 4 ] }, { name: "OUTPUT1" data_type: TYPE_FP32 dims: [ 4 ] } ]
"""
# vLLM's default is 16 tokens, within which this model ends by itself; the suites expect to be cut short.
AS_THERE = {"exclude_input_in_output": "false", "default_max_tokens": "10"}
PROMPT = "The capital of France is"
ON_BOTH = pytest.mark.parametrize("peers", ["openvino", "vllm"], indirect=True)
ON_OPENVINO = pytest.mark.parametrize("peers", ["openvino"], indirect=True)


def checkout(name: str) -> Path:
    folder = os.environ.get("INFLIGHT_PEER_SUITES", "")
    if not folder:
        pytest.skip("INFLIGHT_PEER_SUITES names no folder with the peers' checkouts")
    path = Path(folder) / name
    if not path.is_dir():
        pytest.fail(f"INFLIGHT_PEER_SUITES has no checkout {name}: git clone it from triton-inference-server there")
    return path


def words_for_ever(root: Path) -> Path:
    """A checkpoint that vLLM computes in no time on two cores, with SmolLM2's tokenizer: it writes words with a rival
    each, because the suites look for blanks and for the likeliest tokens.
    """
    folder = root / "tokenizer"
    folder.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(MODELS / "SmolLM2-135M-Instruct" / name, folder)
    vocabulary = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"]
    words = [vocabulary["\u0120" + word] for word in ("the", "of", "and", "to", "in", "is", "that", "for", "was", "on")]
    place = {token: number for number, token in enumerate(words)}

    def after(token: int) -> dict[int, float]:
        number = place.get(token, 0)
        return {words[(number + step) % len(words)]: 1.0 - step / 20 for step in (1, 2)}

    return write_chain(root / "engine", folder, {token: after(token) for token in range(len(vocabulary) + 8)})


def on_engine(engine: str, root: Path) -> dict[str, Any]:
    """How a model is written for it, with the peers' defaults."""
    if engine == "openvino":
        return {"parameters": {"engine": engine, **AS_THERE}}
    parameters = model_parameters(**AS_THERE)
    return {"parameters": parameters, "engine_dir": words_for_ever(root)}


@pytest.fixture(scope="module")
def peers(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The models that the suites name, on one engine."""
    ensemble = checkout("vllm_backend") / "ci" / "L0_backend_vllm" / "vllm_backend" / "ensemble_config.pbtxt"
    require_installation()
    root = tmp_path_factory.mktemp("peers")
    repository = root / "models"
    model = on_engine(request.param, root)
    for name in ("vllm_opt", "vllm_load_test"):
        write_model(repository, name, **model)
    wrong: dict[str, dict[str, Any]] = {"1": {"invalid_attribute": "1"}, "2": {"engine_dir": "invalid_model"}}
    for number, more in wrong.items():
        write_model(repository, f"vllm_invalid_{number}", {**model["parameters"], **more})
    write_model(repository, "ensemble", **model, max_batch_size=1)
    (repository / "ensemble_model" / "1").mkdir(parents=True)
    shutil.copy(ensemble, repository / "ensemble_model" / "config.pbtxt")
    (repository / "add_sub" / "1").mkdir(parents=True)
    (repository / "add_sub" / "config.pbtxt").write_text(ADD_SUB_CONFIG, encoding="utf-8")
    (repository / "add_sub" / "1" / "model.py").write_text(ADD_SUB, encoding="utf-8")
    log = root / "tritonserver.log"
    models = ("vllm_opt", "ensemble") if request.param == "openvino" else ("vllm_opt",)
    config = ServerConfig(repository=repository, models=models, log=log, drain_timeout_s=0.0)
    with Server(config) as running:
        running.wait_ready(280.0)
        yield running


def copied(path: Path, server: Server, folder: Path) -> Path:
    """A copy that asks our server."""
    text = path.read_text(encoding="utf-8").replace("localhost:8001", server.grpc_url)
    copy = folder / path.name
    copy.write_text(text, encoding="utf-8")
    return copy


def run(command: list[str], folder: Path, limit_s: float, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=limit_s,
        check=False,
        text=True,
        encoding="utf-8",
    )


@ON_BOTH
@pytest.mark.parametrize("suite", VLLM_CI, ids=lambda suite: Path(suite.path).stem)
def test_vllm_backends_ci(suite: Suite, peers: Server, tmp_path: Path) -> None:
    root = checkout("vllm_backend") / "ci"
    copied(root / "common" / "test_util.py", peers, tmp_path)
    script = copied(root / suite.path, peers, tmp_path)
    (tmp_path / "request_cancellation_server.log").touch()  # ours is not vLLM's
    done = run([sys.executable, str(script), "-v"], tmp_path, 300.0, PYTHONPATH=str(tmp_path))
    # A test's name, its docstring on a line of its own if it has one, and whatever it prints, then its outcome.
    found = dict(re.findall(r"^(test_\w+) \(.*?(ok|FAIL|ERROR)$", done.stdout, re.MULTILINE | re.DOTALL))
    expected = {name: "ok" if not why else "FAIL" for name, why in suite.tests.items()}
    assert found == expected, done.stdout


# Collected by the original's pytest: every seventh of its 1,458 cases, which are products of twos and threes.
EVERY_SEVENTH = "def pytest_collection_modifyitems(items):\n    items[:] = items[::7]\n"


@ON_BOTH
def test_vllm_backends_additional_outputs(peers: Server, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """Each case passes, or falls under a row of the table."""
    engine = request.node.callspec.params["peers"]
    path = checkout("vllm_backend") / "ci" / "L0_additional_outputs_vllm" / "additional_outputs_test.py"
    script = copied(path, peers, tmp_path)
    (tmp_path / "conftest.py").write_text(EVERY_SEVENTH, encoding="utf-8")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-rA", "--tb=no", script.name]
    done = run(command, tmp_path, 900.0)
    outcomes = re.findall(r"^(PASSED|FAILED) \S+\[([^\]]*)\]", done.stdout, re.MULTILINE)
    assert len(outcomes) == 209, done.stdout[-2000:]
    wrong = []
    for outcome, case in outcomes:
        # Its ids are the values of its parameters, the last decorator's first.
        _, _, returns, logprobs, _, finish, stream = case.split("-")
        why = additional_outputs(engine, returns, logprobs, finish, stream)
        if (outcome == "PASSED") is bool(why):
            wrong.append((outcome, case, why))
    passed = sum(outcome == "PASSED" for outcome, _ in outcomes)
    print(f"{passed} of {len(outcomes)} pass")
    assert not wrong


@ON_OPENVINO
@pytest.mark.parametrize(("arguments", "expected"), END_TO_END, ids=lambda value: str(value)[:40])
def test_nvidias_end_to_end_client(arguments: str, expected: str, peers: Server, tmp_path: Path) -> None:
    (path,) = checkout("tensorrtllm_backend").rglob("end_to_end_grpc_client.py")
    command = [sys.executable, str(path), "-u", peers.grpc_url, "-p", PROMPT, "-o", "8", *arguments.split()]
    done = run(command, tmp_path, 60.0)
    assert done.returncode == 0, done.stdout
    assert re.search(expected, done.stdout), done.stdout


@ON_BOTH
@pytest.mark.parametrize("streaming", [True, False])
def test_vllm_backends_sample_client(streaming: bool, peers: Server, tmp_path: Path) -> None:
    samples = checkout("vllm_backend") / "samples"
    command = [sys.executable, str(samples / "client.py"), "-u", peers.grpc_url, "-m", "vllm_opt"]
    command += ["--input-prompts", str(samples / "prompts.txt"), *(["-s"] if streaming else [])]
    done = run(command, tmp_path, 120.0)
    assert "PASS: vLLM example" in done.stdout, done.stdout


# -- clients that are packages ---------------------------------------------------------------------------------------

LLAMA_INDEX = """
import sys
from llama_index.core.llms import ChatMessage
from llama_index.llms.nvidia_triton import NvidiaTriton

model = NvidiaTriton(server_url=sys.argv[1], model_name="ensemble", tokens=8)
whole = model.complete("The capital of France is").text
assert whole, "complete"
assert model.chat([ChatMessage(role="user", content="Hi")]).message.content, "chat"
streamed = "".join(piece.delta for piece in model.stream_complete("The capital of France is"))
# It stops one response short of `tokens`, whatever the response holds.
assert streamed and (whole.startswith(streamed) or streamed.startswith(whole)), (streamed, whole)
"""
PYTRITON = """
import sys
import numpy as np
from pytriton.client import DecoupledModelClient

texts = {}
with DecoupledModelClient("grpc://" + sys.argv[1], "pytriton") as client:
    for stream in (True, False):
        asked = dict(text_input=np.array([b"The capital of France is"], dtype=object), stream=np.array([stream]))
        found = list(client.infer_sample(max_tokens=np.array([6], np.int32), **asked))
        texts[stream] = b"".join(one["text_output"].item() for one in found)
assert texts[True] == texts[False] != b"", texts
"""


@pytest.mark.parametrize("script", [LLAMA_INDEX, PYTRITON], ids=["llama-index", "pytriton"])
def test_a_client_that_is_a_package(script: str, tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> None:
    """llama-index with all its defaults; pytriton's client of decoupled models, which drops what comes with FINAL."""
    python = os.environ.get("INFLIGHT_CLIENT_PYTHON", "")
    if not python:
        pytest.skip("INFLIGHT_CLIENT_PYTHON names no Python with the clients' packages")
    require_installation()
    repository = tmp_path_factory.mktemp("packages")
    write_model(repository, "ensemble", {"engine": "openvino"}, max_batch_size=1)
    write_model(repository, "pytriton", {"engine": "openvino", "empty_final_response": "true"})
    models = ("ensemble",) if script is LLAMA_INDEX else ("pytriton",)
    config = ServerConfig(repository=repository, models=models, log=tmp_path / "tritonserver.log", drain_timeout_s=0.0)
    with Server(config) as running:
        running.wait_ready(READY_TIMEOUT_S)
        done = run([python, "-W", "ignore", "-c", script, running.grpc_url], tmp_path, 120.0, PYTHONPATH="")
    assert done.returncode == 0, done.stdout
