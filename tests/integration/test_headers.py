"""Headers that a real Triton forwards as request parameters: which pass, which are refused, and which act."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.conftest import MakeServer
from tests.harness.http_client import HttpClient

pytestmark = pytest.mark.server


def test_headers_that_look_like_parameters(make_server: MakeServer) -> None:
    server = make_server(arguments=("--http-header-forward-pattern=(?i)(x-.*|max.tokens|traceparent)",))
    client = HttpClient(server.http_url)

    def ask(**headers: str) -> tuple[int, dict[str, Any]]:
        body = json.dumps({"text_input": "The lazy dog", "max_tokens": 5, "return_num_output_tokens": True})
        named = {name.replace("__", "-"): value for name, value in headers.items()}
        status, content = client.call("POST", "/v2/models/llm/generate", body.encode(), named)
        return status, json.loads(content)

    status, answer = ask(x__request__id="7", traceparent="00-1-2-01", x__max__tokens="2")
    assert (status, answer["num_output_tokens"]) == (200, 5)
    for spelt in ("max__tokens", "Max__Tokens"):
        status, answer = ask(**{spelt: "2"})
        assert status == 400
        name = spelt.replace("__", "-")
        assert answer["error"].lower() == (
            f"{name} (request parameter) is not a parameter of this model (did you mean max_tokens?)".lower()
        )
    status, answer = ask(max_tokens="2")
    assert (status, answer["num_output_tokens"]) == (200, 5), "a tensor goes before a parameter"
    body = json.dumps({"text_input": "The lazy dog", "return_num_output_tokens": True}).encode()
    status, content = client.call("POST", "/v2/models/llm/generate", body, {"max_tokens": "2"})
    assert (status, json.loads(content)["num_output_tokens"]) == (200, 2), "the trap that docs/requests.md names"
