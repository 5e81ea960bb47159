"""Anthropic's dialect as bytes: what a request becomes, and the events that its clients read."""

from __future__ import annotations

import json
from typing import Any

import pytest

from inflight_gateway.core.errors import GatewayError, Kind
from inflight_gateway.core.events import CallDelta, Event
from inflight_gateway.core.models import Model, ModelInfo
from inflight_gateway.wire.anthropic import request
from inflight_gateway.wire.anthropic.answer import DIALECT

INFO = ModelInfo(
    release="1", engine="e", context=100, reasoning_format="think", template_variables=("enable_thinking",)
)
MODEL = Model("llm", "llm", False, frozenset(), INFO, None, 1, "llm/1/engine")
PLAIN = Model("llm", "llm", False, frozenset(), ModelInfo(context=100), None, 1, "llm/1/engine")
HELLO = [{"role": "user", "content": "hi"}]


def plan(model: Model = MODEL, **body: Any) -> Any:
    return request.parse({"model": "llm", "max_tokens": 9, "messages": HELLO, **body}, model)


def messages(turns: list[Any], **body: Any) -> Any:
    return json.loads(plan(messages=turns, **body).requests[0].messages)


def events_of(data: bytes) -> list[Any]:
    found = []
    for block in data.decode().split("\n\n")[:-1]:
        name, said = block.split("\n")
        value = json.loads(said.removeprefix("data: "))
        assert name == f"event: {value['type']}"
        found.append(value)
    return found


def streamed(events: list[Event], **body: Any) -> list[Any]:
    renderer = plan(stream=True, **body).renderer
    return events_of(b"".join(renderer.chunks(one) for one in events) + renderer.end())


def whole(events: list[Event], **body: Any) -> Any:
    renderer = plan(**body).renderer
    for one in events:
        renderer.push(one)
    return json.loads(renderer.whole())


TURN = [
    Event(0, reasoning="hm", prompt_tokens=7, tokens=1),
    Event(0, "Let me ", tokens=1),
    Event(0, "look.", tokens=2),
    Event(0, calls=(CallDelta(0, "call_1", "f", ""), CallDelta(0, "", "", '{"a":'))),
    Event(0, calls=(CallDelta(0, "", "", "1}"), CallDelta(1, "call_2", "g", "{}")), tokens=5),
    Event(0, finish="tool_calls", cached_tokens=4, tokens=1),
]


def test_a_stream_is_blocks_one_after_the_other_and_equals_the_whole_answer() -> None:
    events = streamed(TURN)
    assert [one["type"] for one in events[:3]] == ["message_start", "content_block_start", "content_block_delta"]
    assert events[0]["message"]["usage"] == {"input_tokens": 7, "output_tokens": 1}
    assert [one["type"] for one in events[-3:]] == ["content_block_stop", "message_delta", "message_stop"]
    assert events[-2]["delta"] == {"stop_reason": "tool_use", "stop_sequence": None}
    assert events[-2]["usage"] == {"input_tokens": 3, "cache_read_input_tokens": 4, "output_tokens": 10}
    blocks: list[Any] = []
    open_: int | None = None
    for one in events[1:-2]:
        if one["type"] == "content_block_start":
            assert open_ is None
            open_ = one["index"]
            assert open_ == len(blocks)
            blocks.append(one["content_block"] | {"said": ""})
        elif one["type"] == "content_block_stop":
            assert open_ == one["index"]
            open_ = None
        else:
            assert one["index"] == open_
            blocks[-1]["said"] += next(value for name, value in one["delta"].items() if name != "type")
    assert open_ is None
    said = whole(TURN)
    assert [block["type"] for block in blocks] == ["thinking", "text", "tool_use", "tool_use"]
    assert [block["said"] for block in blocks[:2]] == [said["content"][0]["thinking"], said["content"][1]["text"]]
    assert [json.loads(block["said"]) for block in blocks[2:]] == [block["input"] for block in said["content"][2:]]
    assert said["content"][2] == {"type": "tool_use", "id": "toolu_1", "name": "f", "input": {"a": 1}}
    assert (said["stop_reason"], said["usage"]) == ("tool_use", events[-2]["usage"])


@pytest.mark.parametrize(
    ("last", "reason", "sequence"),
    [
        (Event(0, finish="stop"), "end_turn", None),
        (Event(0, finish="stop", stop_reason="END"), "stop_sequence", "END"),
        (Event(0, finish="stop", stop_reason="7"), "end_turn", None),
        (Event(0, finish="length"), "max_tokens", None),
    ],
)
def test_why_an_answer_ended(last: Event, reason: str, sequence: str | None) -> None:
    said = whole([Event(0, "x"), last], stop_sequences=["END"])
    assert (said["stop_reason"], said["stop_sequence"]) == (reason, sequence)
    events = streamed([Event(0, "x"), last], stop_sequences=["END"])
    assert events[-2]["delta"] == {"stop_reason": reason, "stop_sequence": sequence}


def test_an_answer_without_words_has_no_blocks_and_a_call_that_was_cut_off_is_left_out() -> None:
    assert whole([Event(0, finish="stop")])["content"] == []
    assert [one["type"] for one in streamed([Event(0, finish="stop")])] == [
        "message_start", "message_delta", "message_stop",
    ]  # fmt: skip
    for cut in ('{"a', '{"a":' * 50_000):
        said = whole([Event(0, calls=(CallDelta(0, "call_1", "f", cut),)), Event(0, finish="length")])
        assert said["content"] == []


def test_arguments_are_those_that_the_model_wrote() -> None:
    written = '{"a":12345678901234567890123,"b":0.10}'
    renderer = plan().renderer
    renderer.push(Event(0, calls=(CallDelta(0, "call_1", "f", written),), finish="tool_calls"))
    assert f'"input":{written}'.encode() in renderer.whole()


def test_an_answer_without_its_reason_is_no_answer() -> None:
    renderer = plan(stream=True).renderer
    renderer.chunks(Event(0, "half"))
    with pytest.raises(GatewayError):
        renderer.end()


def test_results_come_before_the_rest_of_their_turn_and_turns_of_one_role_are_one() -> None:
    assert messages(
        [
            {"role": "user", "content": "a"},
            {"role": "user", "content": [{"type": "text", "text": "b"}]},
            {"role": "assistant", "content": [
                {"type": "thinking", "thinking": "hm", "signature": ""}, {"type": "redacted_thinking", "data": "x"},
                {"type": "text", "text": "c"}, {"type": "tool_use", "id": "t1", "name": "f", "input": {"x": 1}},
            ]},
            {"role": "user", "content": [
                {"type": "text", "text": "d"},
                {"type": "tool_result", "tool_use_id": "t1", "content": "bad", "is_error": True},
            ]},
        ],
        system=[{"type": "text", "text": "s1", "cache_control": {"type": "ephemeral"}}, {"type": "text", "text": "s2"}],
    ) == [
        {"role": "system", "content": "s1\ns2"},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        {"role": "assistant", "content": "c", "reasoning_content": "hm", "tool_calls": [
            {"id": "t1", "type": "function", "function": {"name": "f", "arguments": '{"x":1}'}}]},
        {"role": "tool", "tool_call_id": "t1", "content": "Error: bad"},
        {"role": "user", "content": "d"},
    ]  # fmt: skip


def test_a_last_turn_of_the_assistant_is_the_beginning_of_the_answer() -> None:
    found = plan(messages=[*HELLO, {"role": "assistant", "content": "Well"}]).requests[0]
    assert found.options["continue_final_message"] is True
    assert "continue_final_message" not in plan().requests[0].options


@pytest.mark.parametrize(
    ("body", "options"),
    [
        ({}, {"max_tokens": 9, "temperature": 1.0, "add_special_tokens": False, "reasoning": True}),
        ({"stop_sequences": ["a"], "top_k": 5, "top_p": 0.5}, {"stop_words": ["a"], "top_k": 5, "top_p": 0.5}),
        ({"thinking": {"type": "disabled"}}, {"chat_template_kwargs": '{"enable_thinking":false}'}),
        ({"thinking": {"type": "enabled", "budget_tokens": 1024}},
         {"chat_template_kwargs": '{"enable_thinking":true}'}),
        ({"output_config": {"effort": "low"}}, {"chat_template_kwargs": '{"enable_thinking":true}'}),
        ({"output_config": {"effort": "low"}, "thinking": {"type": "disabled"}},
         {"chat_template_kwargs": '{"enable_thinking":false}'}),
        ({"tools": [{"name": "f"}], "tool_choice": {"type": "any", "disable_parallel_tool_use": True}},
         {"tool_choice": "required", "parallel_tool_calls": False}),
        ({"tools": [{"name": "f"}], "tool_choice": {"type": "tool", "name": "f"}},
         {"tool_choice": '{"type":"function","function":{"name":"f"}}'}),
        ({"output_config": {"format": {"type": "json_schema", "schema": {"type": "object"}}}},
         {"guided_decoding_guide_type": "json_schema", "guided_decoding_guide": '{"type":"object"}'}),
    ],
)  # fmt: skip
def test_a_field_becomes_the_models_parameter(body: dict[str, Any], options: dict[str, Any]) -> None:
    found = plan(**body).requests[0].options
    assert {name: found.get(name) for name in options} == options


def test_tools_become_functions_and_unknown_fields_are_named() -> None:
    found = plan(PLAIN, tools=[{"name": "f", "description": "d", "input_schema": {"type": "object"}}], foo=1,
                 output_config={"effort": "low"})  # fmt: skip
    function = {"name": "f", "parameters": {"type": "object"}, "description": "d"}
    assert json.loads(found.requests[0].tools) == [{"type": "function", "function": function}]
    assert found.ignored == ["foo", "output_config.effort"]


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"max_tokens": None}, "max_tokens"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"messages": []}, "messages"),
        ({"messages": ["x"]}, "messages.0"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages.0.role"),
        ({"messages": [{"role": "user", "content": 7}]}, "messages.0.content"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages.0.content.0.text"),
        ({"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]}, "messages.0.content.0.type"),
        ({"messages": [{"role": "user", "content": [{"type": "tool_result"}]}]}, "messages.0.content.0.tool_use_id"),
        ({"messages": [{"role": "assistant", "content": [{"type": "tool_use", "id": "a", "name": "f"}]}]}, "messages"),
        ({"system": 7}, "system"),
        ({"stop_sequences": [7]}, "stop_sequences"),
        ({"tools": "x"}, "tools"),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "tools.0.type"),
        ({"tool_choice": {"type": "all"}}, "tool_choice.type"),
        ({"thinking": {"type": "deep"}}, "thinking.type"),
        ({"output_config": {"format": {"type": "xml"}}}, "output_config.format"),
        ({"container": "x"}, "container"),
        ({"mcp_servers": [{}]}, "mcp_servers"),
        ({"temperature": 9}, "temperature"),
    ],
)
def test_what_is_wrong_names_its_field(body: dict[str, Any], param: str) -> None:
    with pytest.raises(GatewayError) as raised:
        plan(**body)
    assert raised.value.kind.status == 400
    assert raised.value.param == param


def test_a_model_that_does_not_think_cannot_be_made_to() -> None:
    with pytest.raises(GatewayError) as raised:
        plan(PLAIN, thinking={"type": "enabled", "budget_tokens": 1024})
    assert raised.value.param == "thinking"
    for kind in ("adaptive", "disabled"):
        assert "chat_template_kwargs" not in plan(PLAIN, thinking={"type": kind}).requests[0].options


@pytest.mark.parametrize(
    ("kind", "status", "type_"),
    [
        (Kind.INVALID, 400, "invalid_request_error"),
        (Kind.TOO_LONG, 400, "invalid_request_error"),
        (Kind.NO_KEY, 401, "authentication_error"),
        (Kind.NO_MODEL, 404, "not_found_error"),
        (Kind.TOO_LARGE, 413, "request_too_large"),
        (Kind.BUSY, 429, "rate_limit_error"),
        (Kind.INTERNAL, 500, "api_error"),
        (Kind.DOWN, 529, "overloaded_error"),
        (Kind.DEADLINE, 504, "timeout_error"),
    ],
)
def test_an_error_has_anthropics_form_before_a_stream_and_within(kind: Kind, status: int, type_: str) -> None:
    error = GatewayError(kind, "stop is wrong", "stop")
    found, body = DIALECT.refused(error, "id1")
    said = {"type": "error", "error": {"type": type_, "message": "stop_sequences is wrong"}, "request_id": "id1"}
    assert (found, body) == (status, said)
    assert events_of(DIALECT.broken(error, "id1", None)) == [said]


def test_tokens_are_counted_of_the_same_prompt() -> None:
    body = {"model": "llm", "messages": HELLO, "system": "s", "tools": [{"name": "f"}]}
    counted = request.parse_count(body, MODEL)
    asked = request.parse({**body, "max_tokens": 5}, MODEL)
    assert (counted.requests[0].messages, counted.requests[0].tools) == (
        asked.requests[0].messages, asked.requests[0].tools,
    )  # fmt: skip
    assert counted.requests[0].options["max_tokens"] == 0
    counted.renderer.push(Event(0, prompt_tokens=12, finish="stop"))
    assert json.loads(counted.renderer.whole()) == {"input_tokens": 12}
