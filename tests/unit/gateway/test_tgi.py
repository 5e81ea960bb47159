"""TGI's dialect as bytes: one event per token, each with its own text, and the same answer whole."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inflight_gateway.core.errors import GatewayError, Kind
from inflight_gateway.core.events import Event
from inflight_gateway.core.models import Model, ModelInfo
from inflight_gateway.http import routes
from inflight_gateway.wire.tgi import request, tokenize
from inflight_gateway.wire.tgi.answer import DIALECT
from inflight_gateway.wire.tgi.info import info_of

MODEL = Model(
    "llm", "llm", False, frozenset(), ModelInfo(release="1", engine="e", context=100), None, 1, "llm/1/engine"
)


def plan(stream: bool = False, inputs: Any = "Say", **parameters: Any) -> Any:
    parse = request.parse_stream if stream else request.parse_whole
    return parse({"inputs": inputs, "parameters": parameters}, MODEL)


def said_of(token_id: int, data: bytes) -> dict[str, Any]:
    text = data.decode("utf-8", "replace")
    return {str(token_id): {"logprob": -token_id / 10, "rank": 1, "decoded_token": text, "bytes": list(data)}}


def answer(text: str, tokens: list[bytes], finish: str = "", stop: str = "", first: int = 1) -> Event:
    ids = tuple(range(first, first + len(tokens)))
    logprobs = tuple(said_of(token_id, data) for token_id, data in zip(ids, tokens, strict=True))
    return Event(0, text, finish=finish, stop_reason=stop, prompt_tokens=4, tokens=len(ids), token_ids=ids,
                 logprobs=logprobs)  # fmt: skip


def events_of(data: bytes) -> list[Any]:
    blocks = data.decode().split("\n\n")[:-1]
    assert all(block.startswith("data:{") for block in blocks)
    return [json.loads(block.removeprefix("data:")) for block in blocks]


def streamed(events: list[Event], **parameters: Any) -> list[Any]:
    renderer = plan(True, **parameters).renderer
    return events_of(b"".join(renderer.chunks(one) for one in events) + renderer.end())


def whole(events: list[Event], **parameters: Any) -> Any:
    renderer = plan(**parameters).renderer
    for one in events:
        renderer.push(one)
    return json.loads(renderer.whole())


def test_merged_tokens_come_apart_and_the_last_one_has_the_whole_text() -> None:
    answers = [
        answer("Hel", [b"Hel"]),
        answer("lo \N{ROCKET}", [b"lo", b" ", b"\xf0\x9f", b"\x9a\x80"], first=2),
        answer("!", [b"!", b"<|end|>"], "stop", first=6),
    ]
    events = streamed(answers, details=True)
    assert [one["index"] for one in events] == [1, 2, 3, 4, 5, 6, 7]
    assert [one["token"]["text"] for one in events] == ["Hel", "lo", " ", "", "\N{ROCKET}", "!", "<|end|>"]
    assert [one["token"]["special"] for one in events] == [False] * 6 + [True]
    assert events[0]["token"] == {"id": 1, "text": "Hel", "logprob": -0.1, "special": False}
    assert {one["generated_text"] for one in events[:-1]} == {None}
    assert events[-1]["generated_text"] == "Hello \N{ROCKET}!"
    assert events[-1]["details"] == {
        "finish_reason": "eos_token",
        "generated_tokens": 7,
        "seed": None,
        "input_length": 4,
    }
    said = whole(answers, details=True)
    assert said["generated_text"] == events[-1]["generated_text"]
    assert said["details"]["tokens"] == [one["token"] for one in events]
    assert said["details"]["prefill"] == []


def test_a_deadline_is_no_stop_string() -> None:
    found = whole([answer("a", [b"a"], "length", "deadline")], details=True)
    assert found["details"]["finish_reason"] == "length"


def test_details_come_only_where_they_are_asked_for() -> None:
    events = streamed([answer("a", [b"a"], "length")])
    assert events[-1]["details"] is None
    assert whole([answer("a", [b"a"], "length")]) == {"generated_text": "a"}


def test_held_back_text_waits_with_its_token_and_a_stop_string_stays() -> None:
    renderer = plan(True, stop=["END"], details=True).renderer
    assert events_of(renderer.chunks(answer("a", [b"a", b"E"])))[-1]["token"]["text"] == "a"
    data = renderer.chunks(answer("END", [b"ND"], "stop", "END", first=3)) + renderer.end()
    assert [one["token"]["text"] for one in events_of(data)] == ["E", "ND"]
    assert events_of(data)[-1]["details"]["finish_reason"] == "stop_sequence"
    assert events_of(data)[-1]["generated_text"] == "aEND"
    assert plan(stop=["END"]).requests[0].options["include_stop_str_in_output"] is True


@given(st.data())
def test_the_texts_of_all_tokens_are_the_text_however_it_is_cut(data: Any) -> None:
    text = data.draw(st.text(max_size=12))
    raw = text.encode()
    cuts = sorted(data.draw(st.sets(st.integers(0, len(raw)), max_size=6)) | {0, len(raw)})
    tokens = [raw[a:b] for a, b in itertools.pairwise(cuts)]
    come = data.draw(st.lists(st.integers(0, 3), min_size=len(tokens), max_size=len(tokens)))
    events, sent, place = [], 0, 0
    for number, token in enumerate(tokens, 1):  # the text lags behind its tokens
        place += len(token)
        known = len(raw[:place].decode("utf-8", "ignore"))
        upto = max(sent, known - come[number - 1])
        events.append(answer(text[sent:upto], [token], first=number))
        sent = upto
    events.append(answer(text[sent:], [b"</s>"], "stop", first=len(tokens) + 1))
    found = streamed(events)
    assert "".join(one["token"]["text"] for one in found if not one["token"]["special"]) == text
    assert [one["token"]["id"] for one in found] == list(range(1, len(tokens) + 2))
    assert found[-1]["generated_text"] == text


def test_the_prompt_stands_before_the_text_where_asked_and_slash_answers_with_a_list() -> None:
    assert whole([answer("b", [b"b"], "stop")], inputs="a", return_full_text=True)["generated_text"] == "ab"
    either = request.parse_either({"inputs": "a"}, MODEL)
    either.renderer.push(answer("b", [b"b"], "stop"))
    assert json.loads(either.renderer.whole()) == [{"generated_text": "b"}]
    assert request.parse_either({"inputs": "a", "stream": True}, MODEL).stream


def test_an_answer_without_its_reason_is_no_answer() -> None:
    renderer = plan(True).renderer
    renderer.chunks(answer("half", [b"half"]))
    with pytest.raises(GatewayError):
        renderer.end()


@pytest.mark.parametrize(
    ("parameters", "options"),
    [
        ({}, {"temperature": 0, "max_tokens": 100, "seed": None, "return_token_ids": None}),
        ({"max_new_tokens": 5}, {"max_tokens": 5}),
        ({"top_k": 5}, {"top_k": 5, "temperature": 1.0}),
        ({"do_sample": True, "seed": 7}, {"temperature": 1.0, "seed": 7}),
        ({"do_sample": False}, {"temperature": 0}),
        ({"temperature": 0.5}, {"temperature": 0.5}),
        ({"repetition_penalty": 1.1}, {"repetition_penalty": 1.1, "temperature": 0}),
        ({"details": True, "top_n_tokens": 2}, {"logprobs": 2, "return_log_probs": True}),
        ({"adapter_id": "a"}, {"lora_name": "a"}),
        ({"grammar": {"type": "json", "value": '{"type": "object"}'}}, {"guided_decoding_guide": '{"type":"object"}'}),
        ({"grammar": {"type": "json_schema", "value": {"name": "x", "schema": {"type": "object"}}}},
         {"guided_decoding_guide": '{"type":"object"}', "guided_decoding_guide_type": "json_schema"}),
        ({"grammar": {"type": "regex", "value": "a+"}}, {"guided_decoding_guide_type": "regex"}),
        ({"typical_p": 1, "best_of": 1, "watermark": False, "truncate": None}, {"max_tokens": 100}),
    ],
)  # fmt: skip
def test_a_parameter_becomes_the_models(parameters: dict[str, Any], options: dict[str, Any]) -> None:
    found = plan(**parameters).requests[0].options
    assert {name: found.get(name) for name in options} == options


def test_what_cannot_be_honoured_and_langchain_always_sends_is_named_where_it_would_count() -> None:
    langchains = {"temperature": 0.8, "top_k": 10, "top_p": 0.95, "typical_p": 0.95, "do_sample": False}
    assert plan(**langchains).ignored == ["parameters.typical_p"]
    assert plan(**langchains | {"typical_p": 1}).ignored == []
    assert plan(**langchains | {"temperature": 0}).ignored == []


def test_a_sampled_answer_tells_its_seed() -> None:
    found = plan(do_sample=True, details=True)
    found.renderer.push(answer("b", [b"b"], "stop"))
    said = json.loads(found.renderer.whole())
    assert said["details"]["seed"] == found.requests[0].options["seed"]


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"inputs": ""}, "inputs"),
        ({"inputs": ["a"]}, "inputs"),
        ({"parameters": []}, "parameters"),
        ({"parameters": {"max_new_tokens": 0}}, "max_new_tokens"),
        ({"parameters": {"watermark": True}}, "watermark"),
        ({"parameters": {"truncate": 5}}, "truncate"),
        ({"parameters": {"decoder_input_details": True}}, "decoder_input_details"),
        ({"parameters": {"best_of": 2}}, "best_of"),
        ({"parameters": {"typical_p": 1.5}}, "typical_p"),
        ({"parameters": {"grammar": {"type": "xml", "value": ""}}}, "grammar"),
        ({"parameters": {"grammar": {"type": "json", "value": "{"}}}, "grammar"),
        ({"parameters": {"details": "yes"}}, "details"),
        ({"parameters": {"temperature": -1}}, "temperature"),
    ],
)
def test_what_is_wrong_names_its_field(body: dict[str, Any], param: str) -> None:
    with pytest.raises(GatewayError) as raised:
        request.parse_whole({"inputs": "a", **body}, MODEL)
    assert raised.value.param == param
    status, said = DIALECT.refused(raised.value, "id")
    assert (status, said["error_type"]) == (422, "validation")
    assert said["error"].startswith(f"Input validation error: {param} ")


@pytest.mark.parametrize(
    ("kind", "status", "type_", "within"),
    [
        (Kind.BUSY, 429, "overloaded", "overloaded"),
        (Kind.OVERLOADED, 429, "overloaded", "overloaded"),
        (Kind.DOWN, 503, "overloaded", "incomplete_generation_stream"),
        (Kind.INTERNAL, 424, "generation", "incomplete_generation_stream"),
        (Kind.DEADLINE, 504, "generation", "generation"),
    ],
)
def test_an_error_has_tgis_form_before_a_stream_and_within(kind: Kind, status: int, type_: str, within: str) -> None:
    error = GatewayError(kind, "why")
    assert DIALECT.refused(error, "id") == (status, {"error": "why", "error_type": type_})
    assert events_of(DIALECT.broken(error, "id", None)) == [{"error": "why", "error_type": within}]


def test_headers_tell_what_was_counted() -> None:
    renderer = plan().renderer
    renderer.push(answer("b", [b"b", b"c"], "length"))
    found = DIALECT.headers(renderer, 0.5)
    assert (found["x-prompt-tokens"], found["x-generated-tokens"], found["x-total-time"]) == ("4", "2", "500")
    assert "x-total-time" not in DIALECT.headers(renderer, None)


def test_one_path_has_both_forms_of_tokenize_and_invocations_go_by_shape() -> None:
    of = routes.ANSWERED["/v1/tokenize"].of
    assert of({"inputs": "a"}).dialect is DIALECT
    assert of({"prompt": "a"}).dialect is not DIALECT
    of = routes.ANSWERED["/invocations"].of
    assert of({"messages": []}).parse is routes.ANSWERED["/v1/chat/completions"].parse
    assert of({"prompt": "a"}).parse is routes.ANSWERED["/v1/completions"].parse
    assert of({"inputs": "a"}).parse is request.parse_either


def test_tokens_have_their_text_and_place() -> None:
    found = tokenize.parse({"inputs": "a\N{ROCKET}b"}, MODEL)
    found.renderer.push(answer("", [b"a", b"\xf0\x9f", b"\x9a\x80b"], "length"))
    assert json.loads(found.renderer.whole()) == [
        {"id": 1, "text": "a", "start": 0, "stop": 1},
        {"id": 2, "text": "", "start": 1, "stop": 1},
        {"id": 3, "text": "\N{ROCKET}b", "start": 1, "stop": 3},
    ]
    found = tokenize.parse_chat({"messages": [{"role": "user", "content": "hi"}]}, MODEL)
    assert found.requests[0].options["exclude_input_in_output"] is False
    found.renderer.push(answer("<hi>", [b"<hi>"], "length"))
    assert json.loads(found.renderer.whole())["templated_text"] == "<hi>"
    assert info_of(MODEL, 7)["max_total_tokens"] == 100
