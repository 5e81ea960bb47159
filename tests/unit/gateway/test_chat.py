"""Chat as bytes: the order of a stream's chunks, what clients break on, and the same answer whole."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inflight_gateway.core.errors import GatewayError, Kind
from inflight_gateway.core.events import CallDelta, Event
from inflight_gateway.core.models import Model, ModelInfo
from inflight_gateway.wire import chat, completion, tokenize
from inflight_gateway.wire.fields import decode

MODEL = Model(
    "llm", "llm", False, frozenset(), ModelInfo(release="1", engine="e", context=100), None, 1, "llm/1/engine"
)
HELLO = [{"role": "user", "content": "hi"}]


def events_of(data: bytes) -> list[Any]:
    found = []
    for block in data.decode().split("\n\n")[:-1]:
        assert block.startswith("data: ")
        text = block.removeprefix("data: ")
        found.append(text if text == "[DONE]" else json.loads(text))
    return found


def plan(**body: Any) -> Any:
    return chat.parse({"model": "llm", "messages": HELLO, **body}, MODEL)


def streamed(events: list[Event], **body: Any) -> list[Any]:
    renderer = plan(stream=True, **body).renderer
    return events_of(b"".join(renderer.chunks(event) for event in events) + renderer.end())


def test_a_stream_has_one_role_then_deltas_then_one_reason_then_usage_then_done() -> None:
    chunks = streamed(
        [Event(0, "Hel", prompt_tokens=7, tokens=1), Event(0, "lo", finish="stop", tokens=2)],
        stream_options={"include_usage": True},
    )
    assert chunks[-1] == "[DONE]"
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks[:-2]]
    assert deltas == [{"role": "assistant", "content": ""}, {"content": "Hel"}, {"content": "lo"}, {}]
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks[:-2]] == [None, None, None, "stop"]
    assert chunks[-2]["choices"] == []
    assert chunks[-2]["usage"]["prompt_tokens"] == 7
    assert chunks[-2]["usage"]["completion_tokens"] == 3
    assert len({(chunk["id"], chunk["created"], chunk["object"]) for chunk in chunks[:-1]}) == 1
    assert chunks[0]["object"] == "chat.completion.chunk"


def test_a_calls_id_type_and_name_come_once() -> None:
    calls = [CallDelta(0, "call_1", "f", ""), CallDelta(0, "", "", '{"a"'), CallDelta(0, "", "", ":1}")]
    chunks = streamed([Event(0, calls=(call,)) for call in calls] + [Event(0, finish="tool_calls")])
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks[1:-2]]
    assert deltas[0] == {
        "tool_calls": [{"index": 0, "id": "call_1", "type": "function", "function": {"name": "f", "arguments": ""}}]
    }
    assert deltas[1] == {"tool_calls": [{"index": 0, "function": {"arguments": '{"a"'}}]}
    assert chunks[-2]["choices"][0]["finish_reason"] == "tool_calls"


def test_an_answer_without_its_reason_is_no_answer() -> None:
    renderer = plan(stream=True).renderer
    renderer.chunks(Event(0, "half"))
    with pytest.raises(GatewayError) as raised:
        renderer.end()
    assert raised.value.kind is Kind.INTERNAL


@given(st.lists(st.tuples(st.integers(0, 1), st.text(max_size=5)), max_size=20))
def test_a_streams_text_joined_is_the_whole_text(pieces: list[tuple[int, str]]) -> None:
    events = [Event(choice, text, tokens=1) for choice, text in pieces] + [Event(n, finish="stop") for n in (0, 1)]
    whole = plan(n=2).renderer
    for event in events:
        whole.push(event)
    said = json.loads(whole.whole())
    joined = ["", ""]
    for chunk in streamed(events, n=2)[:-1]:
        for choice in chunk["choices"]:
            joined[choice["index"]] += choice["delta"].get("content", "")
    assert joined == [choice["message"]["content"] for choice in said["choices"]]
    assert said["usage"]["completion_tokens"] == len(pieces)


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"messages": []}, "messages"),
        ({"temperature": 3}, "temperature"),
        ({"temperature": True}, "temperature"),
        ({"temperature": "1"}, "temperature"),
        ({"seed": 10**30}, "seed"),
        ({"n": 0}, "n"),
        ({"n": 1000}, "n"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"stop": ["a\0"]}, "stop"),
        ({"stop": ["x"] * 65}, "stop"),
        ({"logit_bias": {"1": 2}}, "logit_bias"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"response_format": {"type": "xml"}}, "response_format"),
        ({"response_format": {"type": "json_object"}, "guided_regex": "a"}, "guided_regex"),
        ({"tools": "x"}, "tools"),
        ({"tool_choice": 7, "tools": [{}]}, "tool_choice"),
        ({"stream": "yes"}, "stream"),
        ({"stop_token_ids": [10**30]}, "stop_token_ids"),
        ({"structured_outputs": {"json_object": False}}, "structured_outputs.json_object"),
        ({"chat_template": "{{ x }}"}, "chat_template"),
    ],
)
def test_what_is_wrong_names_its_field(body: dict[str, Any], param: str) -> None:
    with pytest.raises(GatewayError) as raised:
        plan(**body)
    assert raised.value.kind.status == 400
    assert raised.value.param == param


@pytest.mark.parametrize(
    ("body", "options"),
    [
        ({}, {"temperature": 1.0, "max_tokens": 100}),
        ({"max_tokens": 5, "max_completion_tokens": 7}, {"max_tokens": 7}),
        ({"seed": -1}, {"seed": 2**64 - 1}),
        ({"stop": ["", "x"]}, {"stop_words": ["x"]}),
        ({"priority": 5}, {"request_priority": -5}),
        ({"top_p": 0}, {"top_p": 1e-6}),
        ({"top_p": 1e-300}, {"top_p": 1e-6}),
        ({"n": 3, "use_beam_search": True}, {"beam_width": 3, "num_return_sequences": 3}),
        ({"response_format": {"type": "json_object"}}, {"guided_decoding_guide_type": "json"}),
        ({"response_format": {"type": "json_object", "value": {}}}, {"guided_decoding_guide_type": "json_schema"}),
        ({"structured_outputs": {"choice": ["a", "b"]}}, {"guided_decoding_guide": '["a","b"]'}),
        ({"tools": [{"type": "function", "function": {"name": "f"}}], "tool_choice": "none"}, {"tool_choice": "none"}),
    ],
)  # fmt: skip
def test_a_field_becomes_the_models_parameter(body: dict[str, Any], options: dict[str, Any]) -> None:
    found = plan(**body).requests[0].options
    assert {name: found.get(name) for name in options} == options


@pytest.mark.parametrize("listed", [None, 7, [{"name": ["f"]}], [{"function": "f"}], ["f"]])
def test_allowed_tools_of_any_form_are_read(listed: Any) -> None:
    choice = {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": listed}}
    tools = [{"function": "f"}, {"type": "function", "function": {"name": "f"}}]
    assert plan(tools=tools, tool_choice=choice).requests[0].tools is None


def test_nulls_and_defaults_ask_for_nothing_and_unknown_fields_are_named() -> None:
    found = plan(logit_bias=None, audio=None, tools=[], user="u", functions=[], foo=1, bar=None)
    assert found.ignored == ["foo"]
    assert found.requests[0].tools is None


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b"\xff", b'{"a": NaN}', b'{"a": "\\ud800"}', b"[" * 100_000])
def test_a_body_that_is_no_json_object_is_refused(body: bytes) -> None:
    with pytest.raises(GatewayError) as raised:
        decode(body)
    assert raised.value.kind is Kind.INVALID


def test_prompts_of_completions_keep_their_order_and_their_echo() -> None:
    found = completion.parse({"model": "llm", "prompt": ["a", "b"], "n": 2, "echo": True}, MODEL)
    assert [request.text for request in found.requests] == ["a", "b"]
    for choice in range(4):
        found.renderer.push(Event(choice, str(choice), finish="length", prompt=choice // 2, prompt_tokens=3, tokens=1))
    said = json.loads(found.renderer.whole())
    assert [choice["text"] for choice in said["choices"]] == ["a0", "a1", "b2", "b3"]
    assert said["usage"] == {"prompt_tokens": 6, "completion_tokens": 4, "total_tokens": 10}


def test_token_ids_may_be_written_as_any_whole_number() -> None:
    found = completion.parse({"model": "llm", "prompt": [[1, 2.0], [3.0]]}, MODEL)
    assert [request.token_ids for request in found.requests] == [[1, 2], [3]]


@pytest.mark.parametrize(
    "prompt", [None, "", [], [[]], [1, "a"], [-1], {"a": 1}, ["a\0"], ["x"] * 65, [1.5], [True], ["a", 1], [[1], 2]]
)
def test_a_prompt_that_is_none_is_refused(prompt: Any) -> None:
    with pytest.raises(GatewayError):
        completion.parse({"model": "llm", "prompt": prompt}, MODEL)


@pytest.mark.parametrize("tokens", [None, "x", [-1], [1.5], [True], [2**31], [[1]]])
def test_tokens_that_are_none_are_refused(tokens: Any) -> None:
    with pytest.raises(GatewayError) as raised:
        tokenize.parse_tokens({"tokens": tokens}, MODEL)
    assert raised.value.param == "tokens"


def test_no_tokens_are_no_text_and_ask_no_model() -> None:
    found = tokenize.parse_tokens({"tokens": []}, MODEL)
    assert (found.requests, found.renderer.whole()) == ((), b'{"prompt":""}')


def test_what_tokens_look_like_one_by_one_is_not_told_in_silence() -> None:
    with pytest.raises(GatewayError):
        tokenize.parse({"prompt": "x", "return_token_strs": True}, MODEL)


def thinking(*variables: str) -> Model:
    info = ModelInfo(context=100, reasoning_format="think", template_variables=variables)
    return Model("llm", "llm", False, frozenset(), info, None, 1, "llm/1/engine")


@pytest.mark.parametrize(
    ("variables", "effort", "given", "expected"),
    [
        (("reasoning_effort", "date"), "high", {}, {"reasoning_effort": "high"}),
        (("enable_thinking",), "none", {}, {"enable_thinking": False}),
        (("enable_thinking",), "low", {}, {"enable_thinking": True}),
        (("thinking", "reasoning_effort"), "none", {}, {"reasoning_effort": "none", "thinking": False}),
        (("enable_thinking",), "high", {"enable_thinking": False}, {"enable_thinking": False}),
        (("enable_thinking",), None, {}, None),
        ((), "high", {}, None),
        (("date",), "high", {"date": "x"}, {"date": "x"}),
    ],
)
def test_an_effort_becomes_what_the_template_reads_and_else_is_ignored(
    variables: tuple[str, ...], effort: str | None, given: dict[str, Any], expected: dict[str, Any] | None
) -> None:
    body = {"model": "llm", "messages": HELLO, "reasoning_effort": effort, "chat_template_kwargs": given}
    found = chat.parse(body, thinking(*variables))
    said = found.requests[0].options.get("chat_template_kwargs")
    assert (None if said is None else json.loads(said)) == expected
    reads = bool({"reasoning_effort", "enable_thinking", "thinking"} & set(variables))
    assert list(found.ignored) == ([] if effort is None or reads else ["reasoning_effort"])


@pytest.mark.parametrize("effort", ["lots", 3, {"effort": "low"}])
def test_an_effort_that_is_none_of_openais_is_refused_where_it_would_count(effort: Any) -> None:
    body = {"model": "llm", "messages": HELLO, "reasoning_effort": effort}
    with pytest.raises(GatewayError) as raised:
        chat.parse(body, thinking("enable_thinking"))
    assert (raised.value.kind, raised.value.param) == (Kind.INVALID, "reasoning_effort")
    assert chat.parse(body, thinking()).ignored == ["reasoning_effort"]


@pytest.mark.parametrize(("choice", "asks"), [("required", True), ("auto", False), (None, False), ("none", False)])
def test_a_whole_answer_with_a_forced_call_asks_what_its_guide_leaves_out(choice: str | None, asks: bool) -> None:
    tools = [{"type": "function", "function": {"name": "f"}}]
    whole, stream = (
        plan(tools=tools, tool_choice=choice, stream=stream).requests[0].options for stream in (False, True)
    )
    assert whole.get("return_model_info", False) is asks
    assert "return_model_info" not in stream
