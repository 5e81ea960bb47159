"""Hugging Face's own client of TGI through the gateway to the real server and model."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from huggingface_hub import InferenceClient
from huggingface_hub.errors import ValidationError

from inflight_tools.server.server import Server
from tests.harness.gateway import Gateway, running
from tests.harness.grpc_client import GrpcClient

pytestmark = pytest.mark.server

PROMPT = "The capital of France is"


@pytest.fixture(scope="module")
def gateway(server: Server) -> Iterator[Gateway]:
    with running(server.grpc_url) as found:
        found.wait_ready()
        yield found


@pytest.fixture(scope="module")
def client(gateway: Gateway) -> InferenceClient:
    return InferenceClient(model=gateway.url, timeout=60)


def test_streamed_whole_and_over_grpc_the_answer_is_the_same(client: InferenceClient, server: Server) -> None:
    whole = client.text_generation(PROMPT, max_new_tokens=24, do_sample=False, details=True)
    streamed = list(client.text_generation(PROMPT, max_new_tokens=24, do_sample=False, details=True, stream=True))
    with GrpcClient(server.grpc_url) as grpc:
        plain = grpc.generate(text_input=PROMPT, temperature=0.0, max_tokens=24)
    assert whole.generated_text == plain.text
    assert streamed[-1].generated_text == whole.generated_text
    assert "".join(one.token.text for one in streamed if not one.token.special) == whole.generated_text
    assert whole.details is not None
    last = streamed[-1].details
    assert last is not None
    assert len(streamed) == len(whole.details.tokens) == last.generated_tokens == whole.details.generated_tokens
    assert [one.token.id for one in streamed] == [one.id for one in whole.details.tokens]
    assert last.finish_reason == whole.details.finish_reason


def test_a_stop_string_stays_and_what_is_wrong_is_a_validation_error(client: InferenceClient) -> None:
    found = client.text_generation(PROMPT, max_new_tokens=24, do_sample=False, stop=["Paris"], details=True)
    assert found.generated_text.endswith("Paris")
    assert found.details is not None
    assert found.details.finish_reason == "stop_sequence"
    tokens = list(client.text_generation(PROMPT, max_new_tokens=24, do_sample=False, stop=["Paris"], stream=True))
    assert "".join(str(one) for one in tokens) == found.generated_text
    for stream in (False, True):
        with pytest.raises(ValidationError, match=r"^Input validation error: watermark "):
            list(client.text_generation(PROMPT, watermark=True, stream=stream))


def test_every_other_path_has_tgis_form(gateway: Gateway) -> None:
    def post(path: str, body: Any) -> tuple[Any, dict[str, str]]:
        status, headers, said = gateway.call("POST", path, body)
        assert status == 200, said
        return json.loads(said), headers

    asked = {"inputs": PROMPT, "parameters": {"max_new_tokens": 4}}
    said, headers = post("/generate", asked)
    assert (headers["x-generated-tokens"], headers["x-compute-characters"]) == ("4", str(len(PROMPT)))
    assert post("/invocations", asked)[0] == post("/", asked)[0] == [said]
    chat = {"messages": [{"role": "user", "content": "Hi"}]}
    assert post("/invocations", chat | {"model": "tgi", "max_tokens": 2})[0]["object"] == "chat.completion"
    tokens = post("/tokenize", {"inputs": PROMPT})[0]
    assert "".join(one["text"] for one in tokens) == PROMPT
    assert [PROMPT[one["start"] : one["stop"]] for one in tokens] == [one["text"] for one in tokens]
    assert post("/tokenize", {"model": "llm", "prompt": PROMPT})[0]["tokens"] == [one["id"] for one in tokens]
    templated = post("/chat_tokenize", chat)[0]
    assert "".join(one["text"] for one in templated["tokenize_response"]) == templated["templated_text"]
    assert "Hi" in templated["templated_text"]
    info = json.loads(gateway.call("GET", "/info")[2])
    assert info["max_input_tokens"] == info["max_total_tokens"] - 1
    assert gateway.call("GET", "/ping")[0] == gateway.call("GET", "/health")[0] == 200
