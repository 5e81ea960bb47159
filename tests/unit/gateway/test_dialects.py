"""One answer in every dialect: the same text, usage and end, streamed and whole; and streams letter by letter.

`golden/` holds a stream for each dialect but chat and completions (test_golden.py has theirs), whole and broken.
INFLIGHT_WRITE_GOLDEN=1 writes them again, to be read before they are committed.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inflight_gateway.core.errors import GatewayError, Kind
from inflight_gateway.core.events import CallDelta, Event
from inflight_gateway.core.models import Model, ModelInfo
from inflight_gateway.http import routes
from inflight_gateway.wire.anthropic import answer as anthropic
from inflight_gateway.wire.responses import answer as responses

INFO = ModelInfo(release="1", engine="e", engine_version="2", context=100, reasoning_format="think")
MODEL = Model("llm", "llm", False, frozenset(), INFO, None, 1, "llm/1/engine")
GOLDEN = Path(__file__).parent / "golden"
TURN = [{"role": "user", "content": "hi"}]


@dataclasses.dataclass(frozen=True)
class Spoken:
    """How a dialect asks, and where its answers say what. `end`: the model's reason → the dialect's."""

    path: str
    body: dict[str, Any]
    names: dict[str, str]
    text: Callable[[Any], str]
    usage: Callable[[Any], tuple[int, int]]
    reason: Callable[[Any], str]
    end: dict[str, str]
    last: Callable[[list[Any]], Any]  # of a stream's events: as a whole answer
    streams: str = ""  # the path of streams, where that is another


def joined(events: list[Any], piece: Callable[[Any], str]) -> str:
    return "".join(piece(event) for event in events)


def of_chunks(events: list[Any], piece: Callable[[Any], str], field: str) -> Any:
    choices = [event["choices"][0] for event in events if event["choices"]]
    text = joined(choices, piece)
    ends = [choice["finish_reason"] for choice in choices if choice["finish_reason"]]
    said = {"message": {"content": text}} if field == "message" else {"text": text}
    return {"choices": [{**said, "finish_reason": ends[0]}], "usage": events[-1]["usage"]}


def of_blocks(events: list[Any]) -> Any:
    text = joined([one for one in events if one["type"] == "content_block_delta"], lambda one: one["delta"]["text"])
    return {"content": [{"text": text}] if text else [], **events[-2]["delta"], "usage": events[-2]["usage"]}


SPOKEN = {
    "chat": Spoken(
        "/v1/chat/completions", {"messages": TURN, "stream_options": {"include_usage": True}}, {},
        lambda said: said["choices"][0]["message"]["content"],
        lambda said: (said["usage"]["prompt_tokens"], said["usage"]["completion_tokens"]),
        lambda said: said["choices"][0]["finish_reason"], {"stop": "stop", "length": "length"},
        lambda events: of_chunks(events[:-1], lambda choice: choice["delta"].get("content", ""), "message"),
    ),
    "completion": Spoken(
        "/v1/completions", {"prompt": "hi", "stream_options": {"include_usage": True}}, {},
        lambda said: said["choices"][0]["text"],
        lambda said: (said["usage"]["prompt_tokens"], said["usage"]["completion_tokens"]),
        lambda said: said["choices"][0]["finish_reason"], {"stop": "stop", "length": "length"},
        lambda events: of_chunks(events[:-1], lambda choice: choice["text"], "text"),
    ),
    "responses": Spoken(
        "/v1/responses", {"input": "hi"}, {"max_tokens": "max_output_tokens", "stop": "", "seed": ""},
        lambda said: "".join(item["content"][0]["text"] for item in said["output"]),
        lambda said: (said["usage"]["input_tokens"], said["usage"]["output_tokens"]),
        lambda said: said["status"], {"stop": "completed", "length": "incomplete"},
        lambda events: events[-1]["response"],
    ),
    "anthropic": Spoken(
        "/v1/messages", {"messages": TURN, "max_tokens": 50}, {"stop": "stop_sequences", "seed": ""},
        lambda said: "".join(block["text"] for block in said["content"]),
        lambda said: (said["usage"]["input_tokens"], said["usage"]["output_tokens"]),
        lambda said: said["stop_reason"], {"stop": "end_turn", "length": "max_tokens"}, of_blocks,
    ),
    "tgi": Spoken(
        "/generate", {"inputs": "hi", "parameters": {"details": True}}, {"max_tokens": "max_new_tokens"},
        lambda said: said["generated_text"],
        lambda said: (said["details"].get("input_length", 7), said["details"]["generated_tokens"]),
        lambda said: said["details"]["finish_reason"], {"stop": "eos_token", "length": "length"},
        lambda events: events[-1], "/generate_stream",
    ),
}  # fmt: skip


def events_of(data: bytes) -> list[Any]:
    lines = [line for line in data.decode().split("\n") if line.startswith("data:")]
    return [line if line.endswith("[DONE]") else json.loads(line.removeprefix("data:")) for line in lines]


def plan(spoken: Spoken, stream: bool, **more: Any) -> Any:
    endpoint = routes.ANSWERED[spoken.streams if stream and spoken.streams else spoken.path]
    body = json.loads(json.dumps(spoken.body))
    given = {spoken.names.get(name, name): value for name, value in more.items() if spoken.names.get(name, name)}
    if "parameters" in body:
        body["parameters"] |= given
    else:
        body |= given
    return endpoint.parse({"model": "llm", "stream": stream, **body}, MODEL)


@pytest.mark.parametrize("name", SPOKEN)
@given(
    pieces=st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=5), max_size=6),
    finish=st.sampled_from(["stop", "length"]),
)
def test_the_same_answer_has_the_same_text_usage_and_end(name: str, pieces: list[str], finish: str) -> None:
    spoken = SPOKEN[name]
    streamed, whole = plan(spoken, True).renderer, plan(spoken, False).renderer
    data = b""
    for number, piece in enumerate([*pieces, ""]):
        told = ({str(number): {"logprob": -1.0, "decoded_token": piece}},)
        last = finish if number == len(pieces) else ""
        made = Event(0, piece, finish=last, prompt_tokens=7, tokens=1, token_ids=(number,), logprobs=told)
        data += streamed.chunks(made)
        whole.push(made)
    said = json.loads(whole.whole())
    for found in (said, spoken.last(events_of(data + streamed.end()))):
        assert spoken.text(found) == "".join(pieces)
        assert spoken.usage(found) == (7, len(pieces) + 1)
        assert spoken.reason(found) == spoken.end[finish]


@given(
    st.fixed_dictionaries(
        {"max_tokens": st.integers(1, 99)},
        optional={
            "temperature": st.floats(0.25, 1), "top_p": st.floats(0.25, 0.75),
            "stop": st.lists(st.text("ab", min_size=1), min_size=1, max_size=3), "seed": st.integers(0, 2**63),
        },
    )
)  # fmt: skip
def test_the_same_request_asks_the_model_for_the_same(asked: dict[str, Any]) -> None:
    names = {"stop": "stop_words"}
    for name, spoken in SPOKEN.items():
        options = plan(spoken, False, **asked).requests[0].options
        for field, value in asked.items():
            if spoken.names.get(field, field):
                assert options[names.get(field, field)] == value, (name, field)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", {"messages": TURN, "tools": [{"type": "function", "function": {"name": "f"}}]}),
        ("/v1/responses", {"input": "hi", "tools": [{"type": "function", "name": "f"}]}),
        ("/v1/messages", {"messages": TURN, "max_tokens": 9, "tools": [{"name": "f"}]}),
    ],
)
def test_a_forced_call_asks_what_its_guide_leaves_out_where_a_header_can_say_it(
    path: str, body: dict[str, Any]
) -> None:
    forced = {"type": "any"} if path == "/v1/messages" else "required"
    for stream, choice, wanted in ((False, forced, True), (True, forced, None), (False, None, None)):
        asked = {"model": "llm", "stream": stream, "tool_choice": choice, **body}
        options = routes.ANSWERED[path].parse(asked, MODEL).requests[0].options
        assert options.get("return_model_info") is wanted


ANSWER = [
    Event(0, reasoning="hm", prompt_tokens=7, tokens=1, token_ids=(1,),
          logprobs=({"1": {"logprob": -0.5, "decoded_token": "hm"}},)),
    Event(0, "Hé ", prompt_tokens=7, tokens=1, token_ids=(2,),
          logprobs=({"2": {"logprob": -0.25, "decoded_token": "Hé "}},)),
    Event(0, "", calls=(CallDelta(0, "call_1", "f", ""), CallDelta(0, "", "", '{"a":')), prompt_tokens=7, tokens=2),
    Event(0, "", calls=(CallDelta(0, "", "", "1}"),), prompt_tokens=7, tokens=1),
    Event(0, "", finish="tool_calls", prompt_tokens=7, tokens=1, token_ids=(3,),
          logprobs=({"3": {"logprob": -1.0, "decoded_token": "<|end|>"}},)),
]  # fmt: skip


@pytest.fixture
def same_ids(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(anthropic.secrets, "token_hex", lambda _: "0")
    monkeypatch.setattr(responses.time, "time", lambda: 7.0)


@pytest.mark.parametrize("broken", [False, True])
@pytest.mark.parametrize("name", ["responses", "anthropic", "tgi"])
def test_a_stream_is_the_golden_one(name: str, broken: bool, same_ids: None) -> None:
    spoken = SPOKEN[name]
    renderer = plan(spoken, True).renderer
    data = b"".join(renderer.chunks(event) for event in (ANSWER[:2] if broken else ANSWER))
    if broken:
        error = GatewayError(Kind.RESTARTING, "the engine is restarting; try again in a few seconds")
        data += routes.ANSWERED[spoken.path].dialect.broken(error, "id", renderer)
    else:
        data += renderer.end()
    golden = GOLDEN / f"{name}{'_broken' if broken else ''}.txt"
    if os.environ.get("INFLIGHT_WRITE_GOLDEN"):
        golden.write_bytes(data)
    assert data.decode() == golden.read_text(encoding="utf-8")


# How each dialect says within a stream that something went wrong.
BREAKS = {
    "chat": lambda event: event["error"]["message"],
    "completion": lambda event: event["error"]["message"],
    "responses": lambda event: event["message"] and event["error"]["message"],
    "anthropic": lambda event: event["error"]["message"],
    "tgi": lambda event: event["error"].removeprefix("Input validation error: "),
}


@pytest.mark.parametrize("kind", list(Kind))
@pytest.mark.parametrize("name", SPOKEN)
def test_whatever_goes_wrong_is_the_last_event_and_has_a_status(name: str, kind: Kind) -> None:
    spoken = SPOKEN[name]
    endpoint = routes.ANSWERED[spoken.path]
    renderer = plan(spoken, True).renderer
    renderer.chunks(Event(0, "half", token_ids=(1,), logprobs=({"1": {"logprob": 0.0, "decoded_token": "half"}},)))
    data = endpoint.dialect.broken(GatewayError(kind, "why"), "id", renderer)
    assert data.endswith(b"\n\n")
    assert b"[DONE]" not in data
    assert BREAKS[name](events_of(data)[-1]) == "why"
    status, body = endpoint.dialect.refused(GatewayError(kind, "why"), "id")
    assert status >= 400
    assert "why" in json.dumps(body)
