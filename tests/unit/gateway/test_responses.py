"""/v1/responses as bytes: what items become, the order of a stream's events, and the same answer whole."""

from __future__ import annotations

import json
from typing import Any

import pytest

from inflight_gateway.core.errors import GatewayError, Kind
from inflight_gateway.core.events import CallDelta, Event
from inflight_gateway.core.models import Model, ModelInfo
from inflight_gateway.wire.responses import request
from inflight_gateway.wire.responses.answer import DIALECT

INFO = ModelInfo(release="1", engine="e", context=100, reasoning_format="think", template_variables=("thinking",))
MODEL = Model("llm", "llm", False, frozenset(), INFO, None, 1, "llm/1/engine")
PLAIN = Model("llm", "llm", False, frozenset(), ModelInfo(context=100), None, 1, "llm/1/engine")
TOOL = {"type": "function", "name": "f", "description": "d", "parameters": {"type": "object"}, "strict": True}


def plan(model: Model = MODEL, **body: Any) -> Any:
    return request.parse({"model": "llm", "input": "hi", **body}, model)


def messages(given: Any, **body: Any) -> Any:
    return json.loads(plan(input=given, **body).requests[0].messages)


def events_of(data: bytes, first: int = 0) -> list[Any]:
    found = []
    for number, block in enumerate(data.decode().split("\n\n")[:-1], first):
        name, said = block.split("\n")
        value = json.loads(said.removeprefix("data: "))
        assert name == f"event: {value['type']}"
        assert value["sequence_number"] == number
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
    Event(0, calls=(CallDelta(0, "", "", "1}"), CallDelta(1, "call_2", "g", "")), tokens=5),
    Event(0, finish="tool_calls", cached_tokens=4, tokens=1),
]


def without_ids(value: Any) -> Any:
    if isinstance(value, dict):
        left = ("id", "item_id", "created_at", "completed_at")
        return {name: without_ids(one) for name, one in value.items() if name not in left}
    return [without_ids(one) for one in value] if isinstance(value, list) else value


def test_a_stream_is_items_one_after_the_other_and_ends_with_the_whole_answer() -> None:
    events = streamed(TURN)
    assert [one["type"].removeprefix("response.") for one in events] == [
        "created", "in_progress",
        "output_item.added", "content_part.added", "reasoning_text.delta", "reasoning_text.done", "content_part.done",
        "output_item.done",
        "output_item.added", "content_part.added", "output_text.delta", "output_text.delta", "output_text.done",
        "content_part.done", "output_item.done",
        "output_item.added", "function_call_arguments.delta", "function_call_arguments.delta",
        "function_call_arguments.done", "output_item.done",
        "output_item.added", "function_call_arguments.delta", "function_call_arguments.done", "output_item.done",
        "completed",
    ]  # fmt: skip
    last = events[-1]["response"]
    assert [one["item"] for one in events if one["type"] == "response.output_item.done"] == last["output"]
    assert without_ids(last) == without_ids(whole(TURN))
    assert [item["type"] for item in last["output"]] == ["reasoning", "message", "function_call", "function_call"]
    assert [item.get("arguments") for item in last["output"][2:]] == ['{"a":1}', "{}"]
    assert last["output"][1]["content"][0]["text"] == "Let me look."
    assert last["usage"] == {
        "input_tokens": 7, "input_tokens_details": {"cached_tokens": 4, "cache_write_tokens": 0}, "output_tokens": 10,
        "output_tokens_details": {"reasoning_tokens": 1}, "total_tokens": 17,
    }  # fmt: skip
    assert (last["status"], last["error"], last["store"]) == ("completed", None, False)


def test_an_answer_that_was_cut_off_is_incomplete() -> None:
    cut = [Event(0, "half"), Event(0, finish="length")]
    last = streamed(cut)[-1]
    assert last["type"] == "response.incomplete"
    assert last["response"]["incomplete_details"] == {"reason": "max_output_tokens"}
    assert last["response"]["output"][0]["status"] == "incomplete"
    assert without_ids(whole(cut)) == without_ids(last["response"])


def test_a_stream_that_breaks_has_failed_and_says_why() -> None:
    renderer = plan(stream=True).renderer
    begun = len(events_of(renderer.chunks(Event(0, "half"))))
    with pytest.raises(GatewayError) as raised:
        renderer.end()
    failed, error = events_of(DIALECT.broken(raised.value, "id", renderer), begun)
    assert (failed["type"], failed["response"]["status"]) == ("response.failed", "failed")
    assert failed["response"]["error"] == {"code": "internal_error", "message": raised.value.message}
    assert failed["response"]["output"][0]["content"][0]["text"] == "half"
    assert (error["type"], error["code"], error["error"]["message"]) == (
        "error", "internal_error", raised.value.message,
    )  # fmt: skip


def test_items_of_one_turn_are_one_message() -> None:
    assert messages(
        [
            {"role": "developer", "content": "d"},
            {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "a"}]},
            {"type": "reasoning", "id": "rs_1", "summary": [], "content": [{"type": "reasoning_text", "text": "hm"}]},
            {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "b"}]},
            {"type": "function_call", "call_id": "c1", "name": "f", "arguments": "{}"},
            {"type": "function_call", "call_id": "c2", "name": "g", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "c1", "output": "r1"},
            {"type": "function_call_output", "call_id": "c2", "output": [{"type": "input_text", "text": "r2"}]},
            {"role": "assistant", "content": "x"},
            {"role": "assistant", "content": "y"},
        ],
        instructions="s",
    ) == [
        {"role": "system", "content": "s"},
        {"role": "developer", "content": "d"},
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b", "reasoning_content": "hm", "tool_calls": [
            {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}},
            {"id": "c2", "type": "function", "function": {"name": "g", "arguments": "{}"}}]},
        {"role": "tool", "tool_call_id": "c1", "content": "r1"},
        {"role": "tool", "tool_call_id": "c2", "content": "r2"},
        {"role": "assistant", "content": "x"},
        {"role": "assistant", "content": "y"},
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("body", "options"),
    [
        ({}, {"max_tokens": 100, "temperature": 1.0, "add_special_tokens": False, "reasoning": True}),
        ({"max_output_tokens": 5, "temperature": 0, "top_p": 0.5}, {"max_tokens": 5, "temperature": 0, "top_p": 0.5}),
        ({"text": {"format": {"type": "text"}}}, {"guided_decoding_guide_type": None}),
        ({"text": {"format": {"type": "json_object"}}}, {"guided_decoding_guide_type": "json"}),
        ({"text": {"format": {"type": "json_schema", "name": "x", "schema": {"type": "object"}, "strict": True}}},
         {"guided_decoding_guide_type": "json_schema", "guided_decoding_guide": '{"type":"object"}'}),
        ({"tools": [TOOL], "tool_choice": "required", "parallel_tool_calls": False},
         {"tool_choice": "required", "parallel_tool_calls": False}),
        ({"tools": [TOOL], "tool_choice": {"type": "function", "name": "f"}},
         {"tool_choice": '{"type":"function","function":{"name":"f"}}'}),
        ({"reasoning": {"effort": "none"}}, {"chat_template_kwargs": '{"thinking":false}'}),
        ({"include": [request.LOGPROBS], "top_logprobs": 2}, {"return_log_probs": True, "logprobs": 2}),
    ],
)  # fmt: skip
def test_a_field_becomes_the_models_parameter(body: dict[str, Any], options: dict[str, Any]) -> None:
    found = plan(**body).requests[0].options
    assert {name: found.get(name) for name in options} == options


def test_tools_are_as_chat_has_them_and_those_that_are_not_allowed_are_left_out() -> None:
    function = {name: value for name, value in TOOL.items() if name != "type"}
    assert json.loads(plan(tools=[TOOL]).requests[0].tools) == [{"type": "function", "function": function}]
    allowed = {"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "g"}]}
    found = plan(tools=[TOOL, TOOL | {"name": "g"}], tool_choice=allowed).requests[0]
    assert [one["function"]["name"] for one in json.loads(found.tools)] == ["g"]
    assert found.options["tool_choice"] == "required"


def test_what_asks_for_nothing_is_taken_and_an_answer_repeats_its_request() -> None:
    found = plan(PLAIN, tools=[], include=[], previous_response_id=None, store=True, background=False, foo=1,
                 truncation="disabled", metadata={"a": "b"}, reasoning={"effort": "low"})  # fmt: skip
    assert found.ignored == ["foo", "reasoning.effort"]
    found.renderer.push(Event(0, "x", finish="stop"))
    said = json.loads(found.renderer.whole())
    assert (said["metadata"], said["store"], said["tool_choice"], said["tools"]) == ({"a": "b"}, False, "auto", [])


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"background": True}, "background"),
        ({"prompt": {"id": "p"}}, "prompt.id"),
        ({"truncation": "auto"}, "truncation"),
        ({"input": None}, "input"),
        ({"input": []}, "input"),
        ({"input": [7]}, "input[0]"),
        ({"input": [{"role": "tool", "content": "a"}]}, "input[0].role"),
        ({"input": [{"role": "user", "content": 7}]}, "input[0].content"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input[0].content[0].type"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0].type"),
        ({"input": [{"type": "function_call", "name": "f", "arguments": "{}"}]}, "input[0].call_id"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"tools": "x"}, "tools"),
        ({"tool_choice": "all"}, "tool_choice"),
        ({"text": {"format": {"type": "xml"}}}, "text.format"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"reasoning": {"effort": "huge"}}, "reasoning.effort"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
    ],
)
def test_what_is_wrong_names_its_field(body: dict[str, Any], param: str) -> None:
    with pytest.raises(GatewayError) as raised:
        plan(**body)
    status, said = DIALECT.refused(raised.value, "id")
    assert (status, said["error"]["param"]) == (400, param)


def test_a_models_refusal_names_the_clients_field() -> None:
    status, said = DIALECT.refused(GatewayError(Kind.TOO_LONG, "prompt is too long", "prompt"), "id")
    assert (status, said["error"]["param"], said["error"]["message"]) == (400, "input", "input is too long")
