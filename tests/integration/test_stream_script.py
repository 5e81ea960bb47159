"""scripts/stream.py as a person uses it, against a real server."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence

import pytest

from inflight_tools.common.layout import REPOSITORY
from inflight_tools.server.server import Server
from tests.conftest import MakeServer
from tests.harness.grpc_client import GrpcClient
from tests.harness.http_client import wait_for_metric

pytestmark = pytest.mark.server

SCRIPT = [sys.executable, str(REPOSITORY / "scripts" / "stream.py")]
FIGURES = re.compile(r"time to first token \d+ ms \| [\d.]+ tokens/s \| (\d+) tokens \| finish reason: (\w+)\n")


def ask(url: str, *options: str, given: bytes | None = None) -> subprocess.CompletedProcess[bytes]:
    """Run the script to its end."""
    return subprocess.run([*SCRIPT, "--url", url, *options], input=given, capture_output=True, timeout=120)


def sentence(done: subprocess.CompletedProcess[bytes]) -> str:
    """The one line that a failed run says."""
    assert done.returncode == 1
    text = done.stderr.decode()
    assert text.startswith("error: ")
    assert text.count("\n") == 1
    assert "Traceback" not in text
    return text


def test_it_prints_the_answer_and_its_figures(server: Server, grpc: GrpcClient) -> None:
    done = ask(server.grpc_url, "The capital of France is", "--max-tokens", "12", "--temperature", "0")
    whole = grpc.generate("The capital of France is", max_tokens=12, temperature=0.0)
    assert done.returncode == 0
    assert done.stdout.decode() == whole.text + "\n"
    found = FIGURES.fullmatch(done.stderr.decode())
    assert found is not None, done.stderr
    assert found.groups() == ("12", "length")


def test_tokens_leave_as_they_come(make_server: MakeServer) -> None:
    url = make_server({"llm": {"engine_options": {"step_ms": 50}}}).grpc_url
    process = subprocess.Popen([*SCRIPT, "--url", url, "hi", "--max-tokens", "40"], stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.read(1)
    first = time.monotonic()
    process.stdout.read()
    assert process.wait(timeout=30) == 0
    assert time.monotonic() - first > 1.0  # 39 steps of 50 ms came after the first character


def test_a_chat_from_standard_input_as_json(server: Server) -> None:
    options = ("--chat", "--system", "Be brief.", "--json", "--max-tokens", "8", "--return-token-ids")
    done = ask(server.grpc_url, *options, given="Say ☂".encode())
    content = json.loads(done.stdout)
    (sequence,) = content["sequences"]
    assert len(sequence["output_ids"]) == sequence["num_output_tokens"] <= 8
    assert content["num_input_tokens"] > 10  # the template's own tokens are among them
    assert 0 < content["time_to_first_token_s"] <= content["latency_s"]


def test_one_piece_is_the_same_text(server: Server) -> None:
    options = ("Once upon a time", "--max-tokens", "16", "--temperature", "0")
    whole, streamed = ask(server.grpc_url, *options, "--no-stream"), ask(server.grpc_url, *options)
    assert whole.stdout == streamed.stdout
    assert b"answer after" in whole.stderr


def test_several_sequences(server: Server) -> None:
    options = ("--num-return-sequences", "3", "--temperature", "1", "--seed", "5", "--max-tokens", "6")
    done = ask(server.grpc_url, "One two", *options, "--json")
    sequences = json.loads(done.stdout)["sequences"]
    assert [sequence["num_output_tokens"] for sequence in sequences] == [6, 6, 6]
    assert b"--- sequence 2\n" in ask(server.grpc_url, "One two", *options).stdout


def test_the_shape_is_found_out(make_server: MakeServer) -> None:
    url = make_server(batched=True).grpc_url
    done = ask(url, "hi", "--max-tokens", "4")
    assert done.returncode == 0
    assert b"4 tokens" in done.stderr
    assert "leave --shape at auto" in sentence(ask(url, "hi", "--shape", "flat"))


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        (("hi", "--max-tokens", "-1"), "error: max_tokens must be at least 0, but is -1.\n"),
        (("hi", "--model", "nope"), "has no model 'nope' that is ready"),
        (("hi", "--guided-decoding-guide-type", "magic"), "guided_decoding_guide_type"),
        (("--messages", "{"), "messages"),
    ],
)
def test_refusals_are_one_sentence(server: Server, options: Sequence[str], wanted: str) -> None:
    assert wanted in sentence(ask(server.grpc_url, *options))


def test_no_server_is_one_sentence() -> None:
    assert "no server answers at 127.0.0.1:9: start one with" in sentence(ask("127.0.0.1:9", "hi"))


def test_ctrl_c_cancels_at_the_server(make_server: MakeServer) -> None:
    server = make_server({"llm": {"engine_options": {"step_ms": 20}, "metrics_interval_ms": 100}})
    command = [*SCRIPT, "--url", server.grpc_url, "hi", "--max-tokens", "8000", "--ignore-eos"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.read(1)
    wait_for_metric(server.metrics_url, 1, "inflight_requests_running")
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert b"Traceback" not in errors
    wait_for_metric(server.metrics_url, 0, "inflight_requests_running")


def test_a_reader_that_leaves_cancels_too(make_server: MakeServer) -> None:
    server = make_server({"llm": {"engine_options": {"step_ms": 20}, "metrics_interval_ms": 100}})
    command = [*SCRIPT, "--url", server.grpc_url, "hi", "--max-tokens", "8000", "--ignore-eos"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.read(1)
    process.stdout.close()
    assert process.wait(timeout=30) == 141
    assert b"Traceback" not in process.stderr.read()
    wait_for_metric(server.metrics_url, 0, "inflight_requests_running")
