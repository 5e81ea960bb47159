"""Streams letter by letter: each is what some client breaks on if it were otherwise, as was tried with real clients."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inflight_gateway.core import errors
from inflight_gateway.core.errors import GatewayError, Kind, invalid
from inflight_gateway.core.events import CallDelta, Event
from inflight_gateway.core.models import Model, ModelInfo
from inflight_gateway.wire import chat, completion, openai

MODEL = Model(
    "llm", "llm", False, frozenset(), ModelInfo(release="1", engine="e", engine_version="2"), None, 1, "llm/1/engine"
)
HEAD = '"id":"%s-0","object":"%s","created":7,"model":"llm","system_fingerprint":"inflight-1-e-2","choices":['
CHAT = "data: {" + HEAD % ("chatcmpl", "chat.completion.chunk")
TEXT = "data: {" + HEAD % ("cmpl", "text_completion")
ROLE = '{"index":%d,"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}'
SAYS = '{"index":%d,"delta":{"content":"%s"},"logprobs":null,"finish_reason":null}'
CALLS = '{"index":0,"delta":{"tool_calls":[%s]},"logprobs":null,"finish_reason":null}'
ENDS = '{"index":%d,"delta":{},"logprobs":null,"finish_reason":"%s"}'
FIRST = '{"index":%d,"id":"%s","type":"function","function":{"name":"%s","arguments":%s}}'
NEXT = '{"index":%d,"function":{"arguments":%s}}'
DONE = "data: [DONE]\n\n"


@pytest.fixture(autouse=True)
def same_head(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openai.secrets, "token_hex", lambda _: "0")
    monkeypatch.setattr(openai.time, "time", lambda: 7.9)


def stream(events: list[Event], dialect: Any = chat, **body: Any) -> str:
    """The whole stream as text."""
    asked = {"messages": [{"role": "user", "content": "hi"}]} if dialect is chat else {"prompt": "hi"}
    renderer = dialect.parse({"model": "llm", "stream": True, **asked, **body}, MODEL).renderer
    return (b"".join(renderer.chunks(event) for event in events) + renderer.end()).decode()


def whole(events: list[Event], dialect: Any = chat, **body: Any) -> Any:
    asked = {"messages": [{"role": "user", "content": "hi"}]} if dialect is chat else {"prompt": "hi"}
    renderer = dialect.parse({"model": "llm", **asked, **body}, MODEL).renderer
    for event in events:
        renderer.push(event)
    return json.loads(renderer.whole())


def chunks(*choices: str, head: str = CHAT) -> str:
    return "".join(f"{head}{choice}]}}\n\n" for choice in choices) + DONE


def test_role_once_object_always_no_delta_is_null_one_reason_done() -> None:
    events = [Event(0, "Hel"), Event(0), Event(0, 'l"o\n\0\u2028é'), Event(0, finish="stop")]
    assert stream(events) == chunks(
        ROLE % 0, SAYS % (0, "Hel"), SAYS % (0, 'l\\"o\\n\\u0000\u2028é'), ENDS % (0, "stop")
    )


def test_the_last_text_comes_before_the_reason() -> None:
    assert stream([Event(0, "all", finish="length")]) == chunks(ROLE % 0, SAYS % (0, "all"), ENDS % (0, "length"))


def test_an_empty_answer_has_its_role_and_its_reason() -> None:
    assert stream([Event(0, finish="stop")]) == chunks(ROLE % 0, ENDS % (0, "stop"))


def test_what_stopped_it_stands_beside_the_reason() -> None:
    end = '{"index":0,"delta":{},"logprobs":null,"finish_reason":"stop","stop_reason":"END"}'
    assert stream([Event(0, finish="stop", stop_reason="END")]) == chunks(ROLE % 0, end)


def test_each_choice_has_its_own_role_and_reason_and_no_chunk_has_two() -> None:
    events = [Event(1, "b"), Event(0, "a"), Event(1, finish="length"), Event(0, "c", finish="stop")]
    assert stream(events, n=2) == chunks(
        ROLE % 1, SAYS % (1, "b"), ROLE % 0, SAYS % (0, "a"), ENDS % (1, "length"), SAYS % (0, "c"), ENDS % (0, "stop")
    )


USAGE = '"usage":{"prompt_tokens":7,"completion_tokens":%d,"total_tokens":%d}'


def test_usage_comes_alone_before_the_end() -> None:
    events = [Event(0, "a", prompt_tokens=7, tokens=2), Event(0, finish="stop", prompt_tokens=7, tokens=1)]
    said = chunks(ROLE % 0, SAYS % (0, "a"), ENDS % (0, "stop")).removesuffix(DONE)
    options = {"include_usage": True}
    assert stream(events, stream_options=options) == said + CHAT + "]," + USAGE % (3, 10) + "}\n\n" + DONE


@pytest.mark.parametrize("dialect", [chat, completion])
def test_usage_so_far_comes_with_every_chunk_where_asked_for(dialect: Any) -> None:
    events = [Event(0, "a", prompt_tokens=7, tokens=2), Event(0, "b", finish="stop", prompt_tokens=7, tokens=1)]
    said = stream(events, dialect, stream_options={"include_usage": True, "continuous_usage_stats": True})
    *most, done = said.split("\n\n")[:-1]
    assert done == "data: [DONE]"
    counted = [json.loads(one.removeprefix("data: "))["usage"]["completion_tokens"] for one in most]
    assert counted == sorted(counted)
    assert {counted[0], counted[-1]} == {2, 3}


def test_tokens_reused_are_told_where_known() -> None:
    events = [Event(0, "a", finish="stop", prompt_tokens=7, cached_tokens=4, tokens=1)]
    assert '"prompt_tokens_details":{"cached_tokens":4}' in stream(events, stream_options={"include_usage": True})


def test_a_call_in_pieces_has_id_type_and_name_once() -> None:
    events = [Event(0, calls=(CallDelta(0, "call_1", "f", ""),)), Event(0, calls=(CallDelta(0, "", "", '{"a"'),))]
    events += [Event(0, calls=(CallDelta(0, "", "", ":1}"),)), Event(0, finish="tool_calls")]
    assert stream(events) == chunks(
        ROLE % 0,
        CALLS % (FIRST % (0, "call_1", "f", '""')),
        CALLS % (NEXT % (0, '"{\\"a\\""')),
        CALLS % (NEXT % (0, '":1}"')),
        ENDS % (0, "tool_calls"),
    )


def test_a_call_in_one_piece_after_text_and_two_at_once() -> None:
    two = (CallDelta(0, "call_1", "f", "{}"), CallDelta(1, "call_2", "g", '{"b":2}'))
    assert stream([Event(0, "Wait"), Event(0, calls=two, finish="tool_calls")]) == chunks(
        ROLE % 0,
        SAYS % (0, "Wait"),
        CALLS % (FIRST % (0, "call_1", "f", '"{}"')),
        CALLS % (FIRST % (1, "call_2", "g", '"{\\"b\\":2}"')),
        ENDS % (0, "tool_calls"),
    )


def test_what_a_model_repeats_of_a_call_is_not_repeated() -> None:
    again = [Event(0, calls=(CallDelta(0, "call_1", "f", part),)) for part in ('{"a"', ":1}")]
    assert stream([*again, Event(0, finish="tool_calls")]) == chunks(
        ROLE % 0,
        CALLS % (FIRST % (0, "call_1", "f", '"{\\"a\\""')),
        CALLS % (NEXT % (0, '":1}"')),
        ENDS % (0, "tool_calls"),
    )


def test_a_call_without_arguments_has_an_empty_object() -> None:
    events = [Event(0, calls=(CallDelta(0, "call_1", "f", ""),)), Event(0, finish="tool_calls")]
    first, empty = CALLS % (FIRST % (0, "call_1", "f", '""')), CALLS % (NEXT % (0, '"{}"'))
    assert stream(events) == chunks(ROLE % 0, first, empty, ENDS % (0, "tool_calls"))
    assert whole(events)["choices"][0]["message"]["tool_calls"][0]["function"]["arguments"] == "{}"


def test_a_call_that_was_cut_keeps_what_there_was_of_it() -> None:
    events = [Event(0, calls=(CallDelta(0, "call_1", "f", ""),)), Event(0, finish="length")]
    assert stream(events) == chunks(ROLE % 0, CALLS % (FIRST % (0, "call_1", "f", '""')), ENDS % (0, "length"))
    said = whole(events)["choices"][0]
    assert (said["finish_reason"], said["message"]["tool_calls"][0]["function"]["arguments"]) == ("length", "")


def test_thoughts_come_under_their_own_name_or_not_at_all() -> None:
    events = [Event(0, reasoning="hm"), Event(0, "a", finish="stop")]
    thought = '{"index":0,"delta":{"reasoning_content":"hm"},"logprobs":null,"finish_reason":null}'
    assert stream(events) == chunks(ROLE % 0, thought, SAYS % (0, "a"), ENDS % (0, "stop"))
    assert stream(events, include_reasoning=False) == chunks(ROLE % 0, SAYS % (0, "a"), ENDS % (0, "stop"))


LOGPROBS = {"9": {"logprob": -0.5, "decoded_token": "\ufffd", "bytes": [195]}, "4": {"logprob": None}}


def test_log_probabilities_keep_a_chunk_without_text_and_lose_no_reason() -> None:
    events = [Event(0, token_ids=(9,), logprobs=(LOGPROBS,)), Event(0, finish="length")]
    entry = '{"token":"\ufffd","logprob":-0.5,"bytes":[195],"top_logprobs":[]}'
    said = (SAYS % (0, "")).replace("null", '{"content":[' + entry + '],"refusal":null}', 1)
    assert stream(events, logprobs=True) == chunks(ROLE % 0, said, ENDS % (0, "length"))
    named = stream(events, logprobs=True, top_logprobs=2, return_tokens_as_token_ids=True)
    assert '"token":"token_id:9"' in named
    assert '{"token":"token_id:4","logprob":-9999.0,"bytes":[]}' in named


def test_completions_have_no_role_and_their_reason_with_the_last_text() -> None:
    said = '{"index":%d,"text":"%s","logprobs":null,"finish_reason":%s,"stop_reason":%s}'
    events = [Event(0, "a"), Event(0), Event(0, "b", finish="stop", stop_reason="x")]
    assert stream(events, completion) == chunks(
        said % (0, "a", "null", "null"), said % (0, "b", '"stop"', '"x"'), head=TEXT
    )
    assert stream([Event(0, finish="length")], completion) == chunks(said % (0, "", '"length"', "null"), head=TEXT)
    assert stream([Event(0, "a", finish="stop")], completion, echo=True) == chunks(
        said % (0, "hia", '"stop"', "null"), head=TEXT
    )


def test_completions_usage_comes_alone_before_the_end() -> None:
    events = [Event(0, "a", finish="stop", prompt_tokens=7, tokens=2)]
    said = stream(events, completion, stream_options={"include_usage": True})
    assert said.endswith("\n\n" + TEXT + "]," + USAGE % (2, 9) + "}\n\n" + DONE)


def test_completions_tell_token_ids_and_offsets_that_run_on() -> None:
    said = [{"9": {"logprob": -0.5, "decoded_token": "ab"}}, {"9": {"logprob": -1.0, "decoded_token": "ab"}}]
    events = [Event(0, "ab", token_ids=(9,), logprobs=(one,)) for one in said] + [Event(0, finish="stop")]
    text = stream(events, completion, logprobs=1, return_token_ids=True)
    assert '"text_offset":[0]},"finish_reason":null,"stop_reason":null,"token_ids":[9]}' in text
    assert '"text_offset":[2]}' in text
    choice = whole(events, completion, logprobs=1, return_token_ids=True, return_tokens_as_token_ids=True)["choices"][0]
    assert choice["token_ids"] == [9, 9]
    assert choice["logprobs"]["tokens"] == ["token_id:9", "token_id:9"]
    assert choice["logprobs"]["text_offset"] == [0, 2]


@pytest.mark.parametrize("dialect", [chat, completion])
def test_a_stream_without_its_reason_has_no_end(dialect: Any) -> None:
    for events in ([], [Event(0, "half")]):
        with pytest.raises(GatewayError) as raised:
            stream(events, dialect)
        assert raised.value.kind is Kind.INTERNAL
    with pytest.raises(GatewayError):
        stream([Event(1, "nobody's")], dialect)


def test_an_error_is_an_object_with_all_its_names() -> None:
    said = b'data: {"error":{"message":"n is 0","type":"invalid_request_error","param":"n","code":null}}\n\n'
    assert openai.sse(openai.error_body(invalid("n", "is 0"))) == said


def test_who_was_refused_together_does_not_come_back_together() -> None:
    assert {errors.retry_after(Kind.DOWN) for _ in range(200)} == {3, 4, 5, 6}
    assert {errors.retry_after(Kind.BUSY) for _ in range(200)} == {1, 2}
    assert errors.retry_after(Kind.INVALID) is None


pieces = st.lists(st.tuples(st.integers(0, 1), st.text(max_size=6), st.text(max_size=3)), max_size=15)
arguments = st.lists(st.tuples(st.integers(0, 2), st.text(max_size=6)), max_size=15)


@given(pieces, arguments)
def test_a_streams_pieces_joined_are_the_whole_answer(said: list[tuple[int, str, str]], calls: Any) -> None:
    """As clients join them: texts, thoughts and arguments are appended, ids and names too."""
    events = [Event(choice, text, reasoning=thought, tokens=1) for choice, text, thought in said]
    events += [Event(0, calls=(CallDelta(index, f"call_{index}", "f", part),)) for index, part in calls]
    events += [Event(0, finish="tool_calls" if calls else "stop"), Event(1, finish="stop")]
    answer = whole(events, n=2)
    joined: list[dict[str, Any]] = [{}, {}]
    reasons = ["", ""]
    for block in stream(events, n=2).split("\n\n")[:-2]:
        for choice in json.loads(block.removeprefix("data: "))["choices"]:
            _join(joined[choice["index"]], choice["delta"])
            reasons[choice["index"]] += choice["finish_reason"] or ""
    for choice, found, reason in zip(answer["choices"], joined, reasons, strict=True):
        message = choice["message"]
        assert reason == choice["finish_reason"]
        assert found["role"] == message["role"]
        assert found["content"] == (message["content"] or "")
        assert found.get("reasoning_content", "") == message.get("reasoning_content", "")
        assert [found.get("tool_calls", {})[key] for key in sorted(found.get("tool_calls", {}))] == message.get(
            "tool_calls", []
        )


def _join(known: dict[str, Any], delta: dict[str, Any]) -> None:
    for key, value in delta.items():
        if key == "tool_calls":
            for call in value:
                one = known.setdefault("tool_calls", {}).setdefault(call["index"], {})
                _join(one, {name: part for name, part in call.items() if name != "index"})
        elif isinstance(value, dict):
            _join(known.setdefault(key, {}), value)
        else:
            known[key] = known.get(key, "") + value


@given(st.lists(st.tuples(st.integers(0, 3), st.text(max_size=6)), max_size=20))
def test_completions_pieces_joined_are_the_whole_answer(said: list[tuple[int, str]]) -> None:
    events = [Event(choice, text, tokens=1) for choice, text in said] + [Event(n, finish="stop") for n in range(4)]
    asked = {"prompt": ["a", "b"], "n": 2, "echo": True}
    joined = [""] * 4
    for block in stream(events, completion, **asked).split("\n\n")[:-2]:
        for choice in json.loads(block.removeprefix("data: "))["choices"]:
            joined[choice["index"]] += choice["text"]
    assert joined == [choice["text"] for choice in whole(events, completion, **asked)["choices"]]
