"""Headers that a real Triton forwards as request parameters: which pass, which are refused, and which act.

Triton 24.10 forwards those of gRPC; its HTTP `generate` forwards none, whatever `--http-header-forward-pattern` says.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import pytest

from inflight_tools.server.server import Server
from tests.conftest import MakeServer
from tests.harness.grpc_client import GrpcClient
from tests.harness.http_client import HttpClient
from tests.harness.tensors import outputs

pytestmark = pytest.mark.server

PATTERN = "(?i)(x-.*|max.tokens|traceparent)"


def test_headers_that_look_like_parameters(make_server: MakeServer) -> None:
    server = make_server(
        arguments=(f"--grpc-header-forward-pattern={PATTERN}", f"--http-header-forward-pattern={PATTERN}"),
        environment={"INFLIGHT_ACCESS_LOG": "1"},
    )

    def ask(*headers: tuple[str, str], **values: Any) -> int | str:
        """Tokens of the answer, or the error."""
        with GrpcClient(server.grpc_url) as client:
            asked = client.build(text_input="The lazy dog", return_num_output_tokens=True, **values)
            del asked.parameters["triton_enable_empty_final_response"]
            asked.id = ""
            (answer,) = client.stub.ModelStreamInfer(iter([asked]), metadata=headers, timeout=30)
        if answer.error_message:
            return str(answer.error_message)
        return int(outputs(answer.infer_response)["num_output_tokens"][0])

    assert ask(("x-request-id", "7"), ("traceparent", "00-1-2-01"), ("x-max-tokens", "2"), max_tokens=5) == 5
    refused = "max-tokens (request parameter) is not a parameter of this model (did you mean max_tokens?)"
    assert ask(("max-tokens", "2")) == refused
    assert ask(("max_tokens", "2")) == 2, "the trap that docs/requests.md names"
    assert ask(("max_tokens", "2"), max_tokens=5) == 5, "a tensor goes before a parameter"
    assert ask(("top-p", "2"), max_tokens=5) == 5, "not forwarded"
    body = json.dumps({"text_input": "The lazy dog", "max_tokens": 5, "return_num_output_tokens": True}).encode()
    path = "/v2/models/llm/generate"
    status, answer = HttpClient(server.http_url).call("POST", path, body, {"x-request-id": "7", "traceparent": "0"})
    assert (status, json.loads(answer)["num_output_tokens"]) == (200, 5)
    check_access_log(server, ask)


def check_access_log(server: Server, ask: Callable[..., int | str]) -> None:
    """A line for each request, with the ids of forwarded headers; Triton's own id goes before x-request-id."""
    trace_id = "4bf92f3577b34da6a3ce929d0e0e4736"
    headers = (("x-request-id", "found"), ("traceparent", f"00-{trace_id}-00f067aa0ba902b7-01"))
    assert ask(*headers, max_tokens=3) == 3
    assert "temperature" in str(ask(*headers, max_tokens=3, temperature=-1.0))
    body = {"id": "triton", "text_input": "The lazy dog", "max_tokens": 4}
    status, _ = HttpClient(server.http_url).call("POST", "/v2/models/llm/generate", json.dumps(body).encode())
    assert status == 200
    good, bad, third = accessed(server, {"found", "triton"}, 3)
    assert (good["id"], good["trace"], good["status"], good["finish"]) == ("found", trace_id, "ok", "length")
    assert (good["model"], good["tokens_out"]) == ("llm", 3)
    assert 0 <= good["queue_ms"] <= good["ttft_ms"] <= good["duration_ms"]
    assert (bad["id"], bad["trace"], bad["status"], bad["finish"]) == ("found", trace_id, "invalid_arg", None)
    assert (third["id"], third["tokens_out"]) == ("triton", 4)
    assert "lazy" not in server.log_text()


def accessed(server: Server, ids: set[str], count: int) -> list[dict[str, Any]]:
    """That many lines of the access log about these ids; a line comes a moment after the answer."""
    give_up = time.monotonic() + 10.0
    while True:
        lines = [line for line in server.log_text().splitlines() if " inflight.access INFO " in line]
        found = [line for line in (json.loads(line.split(" INFO ", 1)[1]) for line in lines) if line["id"] in ids]
        if len(found) >= count or time.monotonic() > give_up:
            return found
        time.sleep(0.05)
