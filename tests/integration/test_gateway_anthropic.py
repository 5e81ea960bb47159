"""Anthropic's own client through the gateway to the real server and model."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import anthropic
import pytest

from inflight_tools.server.server import Server
from tests.harness.gateway import Gateway, running

pytestmark = pytest.mark.server

ASK: Any = [{"role": "user", "content": "What is the capital of France?"}]
GREEDY: Any = {"extra_body": {"temperature": 0}}  # the client has no parameter for it
WEATHER: Any = {
    "name": "get_weather",
    "description": "The weather of a city.",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}


@pytest.fixture(scope="module")
def gateway(server: Server) -> Iterator[Gateway]:
    with running(server.grpc_url, keys="one") as found:
        found.wait_ready()
        yield found


@pytest.fixture(scope="module")
def client(gateway: Gateway) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=gateway.url, api_key="one", max_retries=0, timeout=60) as found:
        yield found


def test_streamed_whole_and_in_openais_dialect_the_answer_is_the_same(
    client: anthropic.Anthropic, gateway: Gateway
) -> None:
    asked: dict[str, Any] = {"model": "llm", "messages": ASK, "system": "Be brief.", "max_tokens": 24, **GREEDY}
    whole = client.messages.create(**asked)
    with client.messages.stream(**asked) as stream:
        said = "".join(stream.text_stream)
        streamed = stream.get_final_message()
    assert whole.content[0].type == "text"
    assert said == whole.content[0].text != ""
    assert [block.model_dump(exclude={"parsed_output"}) for block in streamed.content] == [
        block.model_dump() for block in whole.content
    ]
    assert (streamed.stop_reason, streamed.usage) == (whole.stop_reason, whole.usage)
    assert whole.id != streamed.id
    assert whole._request_id
    counted = client.messages.count_tokens(model="llm", messages=ASK, system="Be brief.")
    assert counted.input_tokens == whole.usage.input_tokens
    openai = {"model": "llm", "messages": [{"role": "system", "content": "Be brief."}, *ASK], "temperature": 0}
    _, _, body = gateway.call("POST", "/v1/chat/completions", openai | {"max_tokens": 24}, x_api_key="one")
    chat = json.loads(body)
    assert chat["choices"][0]["message"]["content"] == said
    assert chat["usage"]["completion_tokens"] == whole.usage.output_tokens


def test_a_forced_tool_is_used_streamed_and_whole(client: anthropic.Anthropic) -> None:
    asked: dict[str, Any] = {
        "model": "llm", "max_tokens": 200, "tools": [WEATHER], "tool_choice": {"type": "any"}, **GREEDY,
        "messages": [{"role": "user", "content": "What is the weather in Paris?"}],
    }  # fmt: skip
    whole = client.messages.create(**asked)
    with client.messages.stream(**asked) as stream:
        streamed = stream.get_final_message()
    for answer in (whole, streamed):
        assert answer.stop_reason == "tool_use"
        call = answer.content[-1]
        assert call.type == "tool_use"
        assert call.name == "get_weather"
        assert isinstance(call.input["city"], str)
    result = {"type": "tool_result", "tool_use_id": whole.content[-1].id, "content": "sunny"}  # type: ignore[union-attr]
    turns = [*asked["messages"], {"role": "assistant", "content": whole.content}, {"role": "user", "content": [result]}]
    answer = client.messages.create(**asked | {"messages": turns, "tool_choice": {"type": "none"}})
    assert answer.content


def test_the_end_is_told_by_its_kind_and_a_beginning_is_gone_on_with(client: anthropic.Anthropic) -> None:
    cut = client.messages.create(model="llm", messages=ASK, max_tokens=3, **GREEDY)
    assert cut.stop_reason == "max_tokens"
    asked = [*ASK, {"role": "assistant", "content": "The capital of"}]
    stopped = client.messages.create(model="llm", messages=asked, max_tokens=24, stop_sequences=["Paris"], **GREEDY)
    assert (stopped.stop_reason, stopped.stop_sequence) == ("stop_sequence", "Paris")
    assert "capital" not in stopped.content[0].text  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("values", "error", "kind"),
    [
        ({"model": "nope"}, anthropic.NotFoundError, "not_found_error"),
        ({"messages": [{"role": "user", "content": "x " * 9000}]}, anthropic.BadRequestError, "invalid_request_error"),
        ({"thinking": {"type": "enabled", "budget_tokens": 1024}}, anthropic.BadRequestError, "invalid_request_error"),
    ],
)
def test_what_cannot_be_is_said_in_the_clients_words(
    client: anthropic.Anthropic, values: dict[str, Any], error: type[anthropic.APIStatusError], kind: str
) -> None:
    for stream in (False, True):
        with pytest.raises(error) as raised:
            client.messages.create(**{"model": "llm", "messages": ASK, "max_tokens": 8, "stream": stream, **values})
        assert raised.value.body["error"]["type"] == kind  # type: ignore[index]


def test_a_wrong_key_is_refused_in_anthropics_form(gateway: Gateway) -> None:
    stranger = anthropic.Anthropic(base_url=gateway.url, api_key="two", max_retries=0)
    with stranger, pytest.raises(anthropic.AuthenticationError) as raised:
        stranger.messages.create(model="llm", messages=ASK, max_tokens=8)
    assert raised.value.body["error"]["type"] == "authentication_error"  # type: ignore[index]
