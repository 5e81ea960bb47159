"""Headers that a real Triton forwards as request parameters: which pass, which are refused, and which act.

Triton 24.10 forwards those of gRPC; its HTTP `generate` forwards none, whatever `--http-header-forward-pattern` says.
"""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.conftest import MakeServer
from tests.harness.grpc_client import GrpcClient
from tests.harness.http_client import HttpClient
from tests.harness.tensors import outputs

pytestmark = pytest.mark.server

PATTERN = "(?i)(x-.*|max.tokens|traceparent)"


def test_headers_that_look_like_parameters(make_server: MakeServer) -> None:
    server = make_server(
        arguments=(f"--grpc-header-forward-pattern={PATTERN}", f"--http-header-forward-pattern={PATTERN}")
    )

    def ask(*headers: tuple[str, str], **values: Any) -> int | str:
        """Tokens of the answer, or the error."""
        with GrpcClient(server.grpc_url) as client:
            asked = client.build(text_input="The lazy dog", return_num_output_tokens=True, **values)
            del asked.parameters["triton_enable_empty_final_response"]
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
