"""OpenAI's own client through the gateway to the real server and model: what the README promises of it."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from openai.types.chat import ChatCompletionMessageParam, ChatCompletionToolParam
from openai.types.responses import FunctionToolParam
from pydantic import BaseModel

from inflight_tools.server.server import Server
from tests.harness.gateway import Gateway, running
from tests.harness.grpc_client import GrpcClient
from tests.harness.http_client import wait_for_metric

pytestmark = pytest.mark.server

ASK: list[ChatCompletionMessageParam] = [{"role": "user", "content": "What is the capital of France?"}]
WEATHER: ChatCompletionToolParam = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


@pytest.fixture(scope="module")
def gateway(server: Server) -> Iterator[Gateway]:
    with running(server.grpc_url) as found:
        found.wait_ready()
        yield found


@pytest.fixture(scope="module")
def client(gateway: Gateway) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{gateway.url}/v1", api_key="none", max_retries=0, timeout=60) as found:
        yield found


def test_streamed_whole_and_over_grpc_the_answer_is_the_same(client: openai.OpenAI, server: Server) -> None:
    whole = client.chat.completions.create(model="llm", messages=ASK, temperature=0, max_tokens=24)
    with client.chat.completions.stream(
        model="llm", messages=ASK, temperature=0, max_tokens=24, stream_options={"include_usage": True}
    ) as stream:
        for _ in stream:
            pass
        streamed = stream.get_final_completion()
    assert whole.choices[0].message.content
    assert streamed.choices[0].message.content == whole.choices[0].message.content
    assert streamed.choices[0].finish_reason == whole.choices[0].finish_reason == "stop"
    assert streamed.usage == whole.usage
    with GrpcClient(server.grpc_url) as grpc:
        plain = grpc.generate(messages=json.dumps(ASK), temperature=0.0, max_tokens=24, add_special_tokens=False)
    assert plain.text == whole.choices[0].message.content


def test_a_required_tool_is_called_streamed_and_whole(client: openai.OpenAI) -> None:
    messages = [{"role": "user", "content": "What is the weather in Paris?"}]
    asked = {"model": "llm", "messages": messages, "temperature": 0, "max_tokens": 200, "tools": [WEATHER]}
    whole = client.chat.completions.create(**asked, tool_choice="required")  # type: ignore[call-overload]
    with client.chat.completions.stream(**asked, tool_choice="required") as stream:
        for _ in stream:
            pass
        streamed = stream.get_final_completion()
    for answer in (whole, streamed):
        assert answer.choices[0].finish_reason == "tool_calls"
        call = answer.choices[0].message.tool_calls[0]
        assert call.function.name == "get_weather"
        assert isinstance(json.loads(call.function.arguments)["city"], str)
        assert call.id.startswith("call_")


class City(BaseModel):
    city: str


def test_a_structured_answer_is_parsed_by_the_client(client: openai.OpenAI) -> None:
    answer = client.chat.completions.parse(
        model="llm", messages=ASK, temperature=0, max_tokens=100, response_format=City
    )
    assert isinstance(answer.choices[0].message.parsed, City)


def test_completions_of_several_prompts_with_log_probabilities(client: openai.OpenAI) -> None:
    answer = client.completions.create(model="llm", prompt=["1 2 3", "The sky is"], temperature=0, n=1, logprobs=0)
    assert [choice.index for choice in answer.choices] == [0, 1]
    for choice in answer.choices:
        assert choice.logprobs is not None
        assert "".join(choice.logprobs.tokens or []) == choice.text
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 32


@pytest.mark.parametrize(
    ("values", "error", "code"),
    [
        ({"model": "nope"}, openai.NotFoundError, "model_not_found"),
        ({"logit_bias": {"1": 1}}, openai.BadRequestError, "unsupported_parameter"),
        ({"messages": [{"role": "user", "content": "x " * 9000}]}, openai.BadRequestError, "context_length_exceeded"),
        ({"logprobs": True, "top_logprobs": 3}, openai.BadRequestError, "unsupported_parameter"),
    ],
)
def test_what_cannot_be_is_said_in_the_clients_words(
    client: openai.OpenAI, values: dict[str, object], error: type[openai.APIStatusError], code: str
) -> None:
    for stream in (False, True):
        with pytest.raises(error) as raised:
            client.chat.completions.create(**{"model": "llm", "messages": ASK, "stream": stream, **values})  # type: ignore[call-overload]
        assert raised.value.code == code


def test_responses_are_chats_streamed_and_whole(client: openai.OpenAI) -> None:
    asked = "What is the capital of France?"
    chat = client.chat.completions.create(model="llm", messages=ASK, temperature=0, max_tokens=24)
    whole = client.responses.create(model="llm", input=asked, temperature=0, max_output_tokens=24)
    with client.responses.stream(model="llm", input=asked, temperature=0, max_output_tokens=24) as stream:
        said = "".join(event.delta for event in stream if event.type == "response.output_text.delta")
        streamed = stream.get_final_response()
    assert said == streamed.output_text == whole.output_text == chat.choices[0].message.content
    assert streamed.status == whole.status == "completed"
    assert streamed.usage == whole.usage
    assert whole.usage is not None
    assert chat.usage is not None
    assert whole.usage.total_tokens == chat.usage.total_tokens
    cut = client.responses.create(model="llm", input=asked, temperature=0, max_output_tokens=3)
    assert (cut.status, cut.incomplete_details and cut.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    parsed = client.responses.parse(model="llm", input=asked, temperature=0, max_output_tokens=100, text_format=City)
    assert isinstance(parsed.output_parsed, City)
    with pytest.raises(openai.BadRequestError) as raised:
        client.responses.create(model="llm", input=asked, previous_response_id=whole.id)
    assert raised.value.param == "previous_response_id"


def test_a_response_calls_a_function_and_hears_what_it_gave(client: openai.OpenAI) -> None:
    function = WEATHER["function"]
    tool: FunctionToolParam = {
        "type": "function", "name": function["name"], "parameters": function["parameters"], "strict": False,
    }  # fmt: skip
    asked = {"role": "user", "content": "What is the weather in Paris?"}
    common = {"model": "llm", "temperature": 0, "max_output_tokens": 200, "tools": [tool]}
    whole = client.responses.create(input=[asked], tool_choice="required", **common)  # type: ignore[call-overload]
    with client.responses.stream(input=[asked], tool_choice="required", **common) as stream:  # type: ignore[arg-type]
        streamed = stream.get_final_response()
    for answer in (whole, streamed):
        call = answer.output[-1]
        assert (call.type, call.name) == ("function_call", "get_weather")
        assert isinstance(json.loads(call.arguments)["city"], str)
    gave = {"type": "function_call_output", "call_id": whole.output[-1].call_id, "output": "sunny"}
    items = [asked, *(item.model_dump() for item in whole.output), gave]
    answer = client.responses.create(input=items, tool_choice="none", **common)  # type: ignore[call-overload]
    assert answer.output_text


def test_a_client_that_leaves_ends_its_request_in_the_engine(client: openai.OpenAI, server: Server) -> None:
    stream = client.chat.completions.create(
        model="llm", messages=ASK, max_tokens=4000, stream=True, extra_body={"ignore_eos": True}
    )
    next(iter(stream))
    wait_for_metric(server.metrics_url, 1, "inflight_requests_running")
    began = time.monotonic()
    stream.close()
    wait_for_metric(server.metrics_url, 0, "inflight_requests_running")
    assert time.monotonic() - began < 5  # metrics are flushed at an interval


def test_texts_become_tokens_and_tokens_texts(gateway: Gateway) -> None:
    def ask(path: str, **body: object) -> tuple[int, dict[str, Any]]:
        status, _, answer = gateway.call("POST", path, body)
        return status, json.loads(answer)

    for prefix in ("", "/v1"):
        for text in ("hello world", "<|im_start|>user\nnaïve 日本 🙂<|im_end|>\n"):
            status, found = ask(f"{prefix}/tokenize", prompt=text)
            assert (status, found["count"]) == (200, len(found["tokens"]))
            assert ask(f"{prefix}/detokenize", model="llm", tokens=found["tokens"]) == (200, {"prompt": text})
    assert ask("/detokenize", tokens=[]) == (200, {"prompt": ""})
    for tokens in ([10**6], [0] * 9000):
        status, found = ask("/detokenize", tokens=tokens)
        assert (status, found["error"]["param"]) == (400, "tokens")


def test_a_completion_of_no_tokens_is_its_prompt(client: openai.OpenAI) -> None:
    answer = client.completions.create(model="llm", prompt=["1 2 3", "The sky"], max_tokens=0, echo=True)
    assert [(choice.text, choice.finish_reason) for choice in answer.choices] == [
        ("1 2 3", "length"),
        ("The sky", "length"),
    ]
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 0
