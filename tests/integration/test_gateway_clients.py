"""Clients of OpenAI's API through the gateway to the real model: each runs a script of its own (gateway_clients/), in
an environment that has it. What the full tier sees is the table in docs/gateway.md.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from inflight_tools.common.layout import CACHE, ENGINE
from inflight_tools.load.perf_analyzer import find_perf_analyzer
from inflight_tools.server.server import Server
from maintain.gateway_clients import record
from tests.doubles.vllm import vllm_python
from tests.harness.gateway import Gateway, running

pytestmark = pytest.mark.server

LONGEST_S = 900.0  # of a client's script: on a machine that is busy with other things a hundred tokens take a minute
SCRIPTS = Path(__file__).parent / "gateway_clients"
NODE = shutil.which("node")
NPM = shutil.which("npm")
# The newest on 2026-11-29 that agree with one another: most clients ask for openai 2.
PINS = (
    "openai==2.54.0", "litellm==1.110.2", "langchain-openai==1.7.4", "llama-index-llms-openai-like==0.8.1",
    "instructor==1.17.0", "pydantic-ai-slim[openai]==2.31.1", "huggingface_hub==2.4.0",
)  # fmt: skip
# Apart from those: text-generation wants an old huggingface_hub.
DIALECT_PINS = ("openai-agents==0.20.0", "litellm==1.110.2", "text-generation==0.7.0")
FURTHER_PINS = ("lm-eval[api]==0.4.13", "langchain-huggingface==1.2.3")  # which want a new one


@pytest.fixture(scope="module")
def gateway(server: Server) -> Iterator[Gateway]:
    with running(server.grpc_url) as found:
        found.wait_ready()
        yield found


@pytest.fixture(scope="module")
def others() -> Path:
    """A Python with clients that this project's own environment does not have: made here, or named."""
    return Path(os.environ.get("INFLIGHT_CLIENTS_PYTHON") or python_with(PINS))


@pytest.fixture(scope="module")
def of_dialects() -> Path:
    """A Python with clients of the other dialects."""
    return python_with(DIALECT_PINS)


def python_with(pins: tuple[str, ...]) -> Path:
    """Installed once."""
    name = hashlib.sha256("\n".join((sys.version, *pins)).encode()).hexdigest()[:16]
    folder = CACHE / "clients" / name
    if not (folder / "installed").exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True, timeout=240)
        subprocess.run([folder / "bin" / "pip", "install", "--quiet", *pins], check=True, timeout=1500)
        (folder / "installed").touch()
    return folder / "bin" / "python"


def tell(gateway: Gateway, program: Any, script: Any, *arguments: Any) -> dict[str, Any]:
    """What a client's script says, all of whose features must be well."""
    command = [str(program), str(script), gateway.url, *map(str, arguments)]
    done = subprocess.run(command, cwd=SCRIPTS, capture_output=True, text=True, encoding="utf-8", timeout=LONGEST_S)
    assert done.returncode == 0, done.stderr[-2000:]
    found: dict[str, Any] = json.loads(done.stdout)
    assert found["features"]
    assert set(found["features"].values()) == {"yes"}, found["features"]
    return found


def keep(client: str, found: dict[str, Any]) -> None:
    record(client, found["version"], datetime.date.today().isoformat(), found["features"])


def test_huggingfaces_client(gateway: Gateway) -> None:
    tell(gateway, sys.executable, "huggingface_python.py")


def node() -> list[Any]:
    """The command of npm's client, installed once as its lock says."""
    lock = (SCRIPTS / "package-lock.json").read_bytes()
    folder = CACHE / "npm" / hashlib.sha256(lock).hexdigest()[:16]
    if not (folder / "installed").exists():
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("package.json", "package-lock.json"):
            shutil.copy(SCRIPTS / name, folder)
        subprocess.run([NPM, "ci", "--silent", "--no-audit", "--no-fund"], cwd=folder, check=True, timeout=240)  # type: ignore[list-item]
        (folder / "installed").touch()
    shutil.copy(SCRIPTS / "openai_node.mjs", folder)
    return [NODE, folder / "openai_node.mjs"]


@pytest.mark.skipif(NODE is None or NPM is None, reason="there is no node with npm: apt-get install nodejs npm")
def test_openais_client_for_javascript(gateway: Gateway) -> None:
    tell(gateway, *node())


def perf_analyzer(gateway: Gateway, folder: Path) -> dict[str, Any]:
    """What Triton's load generator says of the gateway with its kind `openai`, streamed and whole."""
    program = find_perf_analyzer()
    features = {}
    for feature, stream in (("chat", False), ("chat, streamed", True)):
        asked = {"model": "llm", "messages": [{"role": "user", "content": "Say hello."}], "max_tokens": 8}
        payload, seen = folder / f"{stream}.json", folder / f"seen-{stream}.json"
        payload.write_text(json.dumps({"data": [{"payload": [{**asked, "stream": stream}]}]}), encoding="utf-8")
        command = [
            program, "-m", "llm", "-u", gateway.url.removeprefix("http://"), "--async", "--concurrency-range", "2",
            "--service-kind", "openai", "--endpoint", "v1/chat/completions", "--input-data", payload,
            "--request-count", "20", "--profile-export-file", seen,
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", timeout=240)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
        requests = json.loads(seen.read_text(encoding="utf-8"))["experiments"][0]["requests"]
        assert len(requests) == 20
        for request in requests:
            said = "".join(one["response"] for one in request["response_outputs"])
            assert ("[DONE]" in said) == stream, said
            assert '"finish_reason":"' in said, said
        features[feature] = "yes"
    return {"version": "2.51", "features": features}


@pytest.mark.full
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    ("client", "script"),
    [
        ("openai 2 (Python)", "openai_python.py"),
        ("huggingface_hub", "huggingface_python.py"),
        ("LiteLLM", "litellm_python.py"),
        ("LangChain (langchain-openai)", "langchain_python.py"),
        ("LlamaIndex (openai-like)", "llama_index_python.py"),
        ("instructor", "instructor_python.py"),
        ("pydantic-ai", "pydantic_ai_python.py"),
    ],
)
def test_a_client_can_do_all_it_has(client: str, script: str, gateway: Gateway, others: Path) -> None:
    keep(client, tell(gateway, others, script))


@pytest.mark.full
@pytest.mark.timeout(1200)
def test_openais_newest_client_can_do_all_it_has(gateway: Gateway) -> None:
    keep("openai (Python)", tell(gateway, sys.executable, "openai_python.py"))


@pytest.mark.full
@pytest.mark.timeout(1200)
@pytest.mark.skipif(NODE is None or NPM is None, reason="there is no node with npm: apt-get install nodejs npm")
def test_openais_client_for_javascript_is_in_the_table(gateway: Gateway) -> None:
    keep("openai (npm)", tell(gateway, *node()))


@pytest.mark.full
@pytest.mark.timeout(600)
def test_tritons_own_load_generator(gateway: Gateway, tmp_path: Path) -> None:
    keep("perf_analyzer (openai)", perf_analyzer(gateway, tmp_path))


@pytest.mark.full
@pytest.mark.timeout(1800)
def test_clients_of_the_other_dialects(gateway: Gateway, of_dialects: Path, tmp_path: Path) -> None:
    for client, script in (
        ("openai-agents", "openai_agents_python.py"),
        ("LiteLLM (anthropic, huggingface, responses)", "litellm_dialects_python.py"),
        ("text-generation", "text_generation_python.py"),
    ):
        keep(client, tell(gateway, of_dialects, script))
    if NODE is not None and NPM is not None:
        shutil.copy(SCRIPTS / "anthropic_node.mjs", tmp_path)
        install = [NPM, "install", "--silent", "--no-audit", "--no-fund", "@anthropic-ai/sdk@1.14.0"]
        subprocess.run(install, cwd=tmp_path, check=True, timeout=240)
        keep("anthropic (npm)", tell(gateway, NODE, tmp_path / "anthropic_node.mjs"))


@pytest.mark.full
@pytest.mark.timeout(1800)
def test_an_evaluation_and_langchains_endpoint_of_hugging_face(gateway: Gateway) -> None:
    python = python_with(FURTHER_PINS)
    keep("lm-eval", tell(gateway, python, "lm_eval_python.py"))
    keep("LangChain (HuggingFaceEndpoint)", tell(gateway, python, "langchain_huggingface_python.py"))


@pytest.mark.full
@pytest.mark.timeout(1200)
def test_vllms_benchmark(gateway: Gateway) -> None:
    keep("vllm bench serve", tell(gateway, vllm_python(), "vllm_bench.py", ENGINE))
