"""One row of the contract's inputs after the other: in each of the three places, in both shapes, it does what it says.

`sees` tells what must be seen of a value, against the same request without it. What the simulated engine cannot do is
refused by name: that, too, is the contract. The real engine's side of it is in tests/integration.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from typing import Any

import pytest

from inflight.request.contract import INPUTS, JSON_ALIASES, JSON_ONLY
from tests.contract.forms import PROMPT, SHAPES, ask, forms_of
from tests.harness.grpc_client import GrpcClient, Pending, RequestFailed
from tests.unit.machines.tokenizer_kinds import KINDS

pytestmark = pytest.mark.server

TOKENIZER = KINDS["byte_level"]()
IDS = [0, *TOKENIZER.encode(PROMPT, add_special_tokens=False).ids]
MESSAGES = json.dumps([{"role": "user", "content": "Hi"}])
ALL = {
    "return_finish_reason": True,
    "return_num_input_tokens": True,
    "return_num_output_tokens": True,
    "return_token_ids": True,
}
Sees = Callable[[Pending, Pending], None]


@dataclasses.dataclass(frozen=True)
class Row:
    """`sees(with, without)` checks the effect of `value`; `refused` is the answer of an engine that lacks it."""

    name: str
    value: Any
    sees: Sees | None = None
    beside: dict[str, Any] = dataclasses.field(default_factory=dict)
    refused: str = ""
    bad: Any = None
    plain: bool = True  # ask for every detail, so that `sees` can look at it


def same(got: Pending, without: Pending) -> None:
    assert got.output_ids == without.output_ids
    assert got.text == without.text


def sampled(got: Pending, without: Pending) -> None:
    """Another answer than the greedy one."""
    assert got.output_ids != without.output_ids
    assert len(got.output_ids) == len(without.output_ids)


def tokens(count: int, reason: str) -> Sees:
    def sees(got: Pending, without: Pending) -> None:
        assert (got.output_tokens, got.finish_reason) == (count, reason)

    return sees


def output(name: str, present: bool = True) -> Sees:
    def sees(got: Pending, without: Pending) -> None:
        assert all((name in response.outputs) is present for response in got.responses)

    return sees


def responses(at_least: int) -> Sees:
    def sees(got: Pending, without: Pending) -> None:
        assert len(got.responses) >= at_least
        assert got.text == without.text

    return sees


def ends_with_token(place: int) -> Sees:
    def sees(got: Pending, without: Pending) -> None:
        first = without.output_ids.index(without.output_ids[place])
        assert got.output_ids == without.output_ids[: first + 1]
        assert got.finish_reason == "stop"

    return sees


def prompt_tokens(count: int) -> Sees:
    def sees(got: Pending, without: Pending) -> None:
        assert got.answer.outputs["num_input_tokens"] == count

    return sees


def chat_tokens(prompt: str) -> Sees:
    return prompt_tokens(len(TOKENIZER.encode(prompt, add_special_tokens=False).ids))


def no_calls(got: Pending, without: Pending) -> None:
    """The simulated model's template shows the tools, and it calls none."""
    assert got.responses[-1].outputs["tool_calls"] == [b"[]"]
    assert "tool_calls" not in without.responses[-1].outputs
    assert got.text


def thoughts(got: Pending, without: Pending) -> None:
    assert got.responses[-1].outputs["reasoning_output"] == [b""]
    assert "reasoning_output" not in without.responses[-1].outputs
    assert got.text == without.text


def counted(got: Pending, without: Pending) -> None:
    """The engine never sees it: the prompt's tokens, named, and no text."""
    assert (got.text, got.output_tokens, got.finish_reason) == ("", 0, "length")
    assert got.output_ids == IDS
    assert got.answer.outputs["num_input_tokens"] == len(IDS)


def keeps_its_stop(got: Pending, without: Pending) -> None:
    assert got.text == without.text + STOP
    assert got.responses[-1].outputs["stop_reason"] == [STOP.encode()]


def begins(text: str) -> Sees:
    def sees(got: Pending, without: Pending) -> None:
        assert got.text.startswith(text)

    return sees


def stopped_at_text(got: Pending, without: Pending) -> None:
    assert got.text == without.text[: without.text.index(STOP)]
    assert got.finish_reason == "stop"


def two_sequences(got: Pending, without: Pending) -> None:
    (response,) = got.responses
    assert response.outputs["sequence_index"] == [0, 1]
    assert len(response.outputs["text_output"]) == 2


def four_times(got: Pending, without: Pending) -> None:
    outputs = got.responses[-1].outputs
    names = ("arrival_time_ns", "first_scheduled_time_ns", "first_token_time_ns", "last_token_time_ns")
    times = [outputs[name][0] for name in names]
    assert times == sorted(times)
    assert times[0] > 0


def logprobs_json(got: Pending, without: Pending) -> None:
    entries = json.loads(got.responses[-1].outputs["logprobs"][0])
    assert [next(iter(entry)) for entry in entries] == [str(token_id) for token_id in got.output_ids]


SHORT = {"max_tokens": 8}
CHAT = {"messages": MESSAGES, **SHORT}
TOOLS = json.dumps([{"type": "function", "function": {"name": "f"}}])
HOT = {"temperature": 1.0, "seed": 3, **SHORT}
# Parts of what the simulated engine answers to PROMPT; rows name them, the fixture `known_answer` looks them up.
STOP = ""
TOKEN = 0

ROWS: list[Row] = [
    Row("text_input", PROMPT, prompt_tokens(len(IDS)), SHORT, bad=""),
    Row("messages", MESSAGES, chat_tokens("<user>Hi<assistant>"), SHORT, bad="[]"),
    Row("input_ids", IDS, same, SHORT, bad=[-1]),
    Row("stream", True, responses(2), {"max_tokens": 300}, bad="perhaps"),
    Row("streaming", True, responses(2), {"max_tokens": 300}, bad="perhaps"),
    Row("tools", TOOLS, no_calls, CHAT, bad="{}"),
    Row("tools", TOOLS, None, {"tool_choice": "required", **CHAT}, refused="tools"),
    Row("tool_choice", "none", output("tool_calls", False), {"tools": TOOLS, **CHAT}, bad="robot"),
    Row("tool_choice", "f", None, {"tools": TOOLS, **CHAT}, refused="tools"),
    Row("parallel_tool_calls", False, output("tool_calls"), {"tools": TOOLS, **CHAT}, bad="perhaps"),
    Row("documents", '[{"text": "Ah"}]', chat_tokens("Ah<user>Hi<assistant>"), CHAT, bad="{}"),
    Row("chat_template_kwargs", '{"style": "Oh"}', chat_tokens("Oh<user>Hi<assistant>"), CHAT, bad='{"robot": 1}'),
    Row("add_generation_prompt", False, chat_tokens("<user>Hi"), CHAT, bad="perhaps"),
    Row("continue_final_message", True, chat_tokens("<user>Hi"), CHAT, bad="perhaps"),
    Row("reasoning", True, thoughts, SHORT, bad="perhaps"),
    Row("include_stop_str_in_output", True, keeps_its_stop, {"stop_words": ["STOP"], "max_tokens": 20}, bad="perhaps"),
    Row("max_tokens", 0, counted),
    Row("max_tokens", 5, tokens(5, "length"), bad=-1),
    Row("min_tokens", 20, same, {"max_tokens": 20}, bad=-1),
    Row("min_length", 20, same, {"max_tokens": 20}, bad=-1),
    Row("ignore_eos", True, same, SHORT, bad="perhaps"),
    Row("end_id", "TOKEN", ends_with_token(3), SHORT, bad=-2),
    Row("temperature", 0.5, sampled, {"seed": 3, **SHORT}, bad=-0.5),
    Row("top_p", 0.5, sampled, {"seed": 3, **SHORT}, bad=1.5),
    Row("top_k", 40, sampled, {"seed": 3, **SHORT}, bad=-2),
    Row("min_p", 0.5, sampled, {"seed": 3, **SHORT}, bad=1.5),
    Row("repetition_penalty", 1.5, None, SHORT, bad=0.0),
    Row("presence_penalty", 0.5, None, SHORT, bad=2.5),
    Row("frequency_penalty", 0.5, None, SHORT, bad=-2.5),
    Row("length_penalty", 1.0, same, SHORT, bad=0.5),
    Row("seed", 4, sampled, {"temperature": 1.0, **SHORT}, bad="x"),
    Row("random_seed", 4, sampled, {"temperature": 1.0, **SHORT}, bad="x"),
    Row("stop_words", ["STOP"], stopped_at_text, {"max_tokens": 20}, bad=["x" * 2000]),
    Row("bad_words", [""], same, SHORT),
    Row("bad_words", ["dog"], None, SHORT, refused="bad_words"),
    Row("num_return_sequences", 2, two_sequences, HOT, bad=0),
    Row("beam_width", 1, same, SHORT, bad=0),
    Row("beam_width", 2, None, SHORT, refused="beam_width"),
    Row("logprobs", 0, logprobs_json, SHORT, bad=-1),
    Row("logprobs", 2, None, SHORT, refused="logprobs"),
    Row("return_log_probs", True, output("output_log_probs"), SHORT, bad="perhaps"),
    Row("return_logprobs", True, logprobs_json, SHORT, bad="perhaps"),
    Row("exclude_input_in_output", False, begins(PROMPT), SHORT, bad="perhaps"),
    Row("return_finish_reason", True, output("finish_reason"), SHORT, bad="perhaps", plain=False),
    Row("return_cumulative_logprob", True, output("cumulative_logprob"), SHORT, bad="perhaps", plain=False),
    Row("return_num_input_tokens", True, output("num_input_tokens"), SHORT, bad="perhaps", plain=False),
    Row("return_num_output_tokens", True, output("num_output_tokens"), SHORT, bad="perhaps", plain=False),
    Row("return_perf_metrics", True, four_times, SHORT, bad="perhaps", plain=False),
    Row("return_token_ids", True, output("output_ids"), SHORT, bad="perhaps", plain=False),
    Row("return_model_info", True, output("model_info"), SHORT, bad="perhaps", plain=False),
    Row("return_finish_reason", False, output("finish_reason", False), SHORT, plain=False),
    Row(
        "guided_decoding_guide_type", "regex", None, {"guided_decoding_guide": "a"}, "guided_decoding_guide_type", "xml"
    ),
    Row("guided_decoding_guide", "a", None, {"guided_decoding_guide_type": "regex"}, "guided_decoding_guide_type"),
    Row("lora_name", "french", None, SHORT, refused="lora_name"),
    Row(
        "skip_special_tokens",
        False,
        begins("<|bos|>"),
        {"input_ids": IDS, "exclude_input_in_output": False, **SHORT},
        bad="perhaps",
    ),
    Row("add_special_tokens", False, prompt_tokens(len(IDS) - 1), SHORT, bad="perhaps"),
    Row("cache_salt", "tenant", same, SHORT, bad="x" * 300),
    Row("request_priority", 7, same, SHORT, bad=101),
    Row("deadline_ms", 60_000, same, SHORT, bad=0),
    Row("pad_id", 2, same, SHORT),
]
JSON_ROWS: list[Row] = [
    Row("n", 2, two_sequences, HOT, bad=0),
    Row("stop", "STOP", stopped_at_text, {"max_tokens": 20}, bad=5),
    Row("stop", ["x" * 9, "STOP"], stopped_at_text, {"max_tokens": 20}, bad=[1]),
    Row("stop_token_ids", ["TOKEN"], ends_with_token(3), SHORT, bad=["x"]),
    Row("best_of", 3, None, HOT, bad=0),
    Row("guided_decoding", {"regex": "a"}, None, SHORT, refused="guided_decoding", bad={"xml": "a"}),
    Row("structured_outputs", {"regex": "a"}, None, SHORT, refused="structured_outputs", bad={"xml": "a"}),
]


@pytest.fixture(scope="module", autouse=True)
def known_answer(server: Any) -> None:
    """Look once at what the engine answers to PROMPT, to choose a stop string and a stop token out of it."""
    global STOP, TOKEN
    with GrpcClient(server.grpc_url) as client:
        answer = ask(client, {"max_tokens": 20, **ALL})
    TOKEN = answer.output_ids[3]
    STOP = answer.text[9:12]


def filled(value: Any) -> Any:
    """A row's value with the placeholders replaced by what the engine really says."""
    if isinstance(value, list):
        return [filled(item) for item in value]
    return {"STOP": STOP, "TOKEN": TOKEN}.get(value, value) if isinstance(value, str) else value


def beside(row: Row) -> dict[str, Any]:
    values = {name: filled(value) for name, value in row.beside.items()}
    if row.plain and row.name not in ("num_return_sequences", "n"):
        values |= {name: value for name, value in ALL.items() if name != row.name}
    return values


CASES = [
    pytest.param(row, form, model, id=f"{row.name}={str(row.value)[:12]}-{form}-{model}")
    for row in ROWS
    for form in forms_of(row.value)
    for model in SHAPES
]
BAD = [
    pytest.param(row, form, id=f"{row.name}={str(row.bad)[:12]}-{form}")
    for row in ROWS
    if row.bad is not None
    for form in (
        forms_of(row.bad) if isinstance(row.bad, type(row.value)) or not isinstance(row.bad, str) else ("json",)
    )
]


def check(client: GrpcClient, row: Row, form: str, model: str) -> None:
    values = {row.name: filled(row.value)}
    others = beside(row)
    if row.refused:
        with pytest.raises(RequestFailed) as caught:
            ask(client, values, form, model, **others)
        assert str(caught.value).startswith(f"{row.refused} is not supported")
        assert "simulated" in str(caught.value)
        return
    got = ask(client, values, form, model, **others)
    assert got.finals == 1
    if row.sees is not None:
        without = {
            name: value for name, value in others.items() if name not in ("input_ids",) or row.name != "input_ids"
        }
        row.sees(got, ask(client, {}, "tensor", model, **without))


@pytest.mark.parametrize(("row", "form", "model"), CASES)
def test_a_row_does_what_it_says_in_every_form_and_shape(row: Row, form: str, model: str, grpc: GrpcClient) -> None:
    check(grpc, row, form, model)


@pytest.mark.parametrize("model", SHAPES)
@pytest.mark.parametrize("row", JSON_ROWS, ids=[f"{row.name}={str(row.value)[:12]}" for row in JSON_ROWS])
def test_a_row_that_only_json_knows(row: Row, model: str, grpc: GrpcClient) -> None:
    check(grpc, row, "json", model)


@pytest.mark.parametrize(("row", "form"), BAD)
def test_a_bad_value_is_refused_by_name_in_every_form(row: Row, form: str, grpc: GrpcClient) -> None:
    with pytest.raises(RequestFailed) as caught:
        ask(grpc, {row.name: row.bad}, form, **{name: value for name, value in row.beside.items() if name != row.name})
    assert row.name in str(caught.value)


@pytest.mark.parametrize(
    "values", [{"input_ids": [5] * 300_000}, {"stop_words": ["x"] * 300_000}, {"text_input": "7" * (8 << 20)}]
)
def test_what_no_model_could_take_is_refused_by_name(values: dict[str, Any], grpc: GrpcClient) -> None:
    """Before it is copied, parsed or tokenized; the next request is answered at once."""
    with pytest.raises(RequestFailed, match=f"{next(iter(values))} (has 300000 values|is longer than)"):
        ask(grpc, values)
    assert ask(grpc, {"max_tokens": 1, "return_num_output_tokens": True}).output_tokens == 1


@pytest.mark.parametrize(
    "values",
    [
        {"structured_outputs": {"json": "DEEP"}},
        {
            "tools": [{"type": "function", "function": {"name": "f", "parameters": "DEEP"}}],
            "messages": json.loads(MESSAGES),
        },
        {"messages": [{"role": "user", "content": "Hi", "more": "DEEP"}]},
        {"chat_template_kwargs": "DEEP", "messages": json.loads(MESSAGES)},
    ],
    ids=lambda values: next(iter(values)),
)
def test_what_is_nested_without_end_is_the_clients_mistake(values: dict[str, Any], grpc: GrpcClient) -> None:
    """What Python reads at one depth of calls it may not write at another, so every depth near its bound is tried."""
    beside = {} if "messages" in values else {"text_input": PROMPT}
    for depth in (*range(900, 1000), 100_000):
        text = json.dumps(values | {"max_tokens": 1}).replace('"DEEP"', '{"a":' * depth + "1" + "}" * depth)
        said = ""
        try:
            grpc.send(grpc.build(model="llm", sampling_parameters=text, **beside)).result()
        except RequestFailed as refused:
            said = str(refused)
        assert "internal error" not in said, depth


def test_every_row_of_the_contract_is_tried() -> None:
    tried = {row.name for row in ROWS} | {"sampling_parameters"}
    assert tried == {name for item in INPUTS for name in (item.name, *item.aliases)}
    assert {row.name for row in JSON_ROWS} == set(JSON_ALIASES) | set(JSON_ONLY)


# -- the end of sequence, which `llm` never reaches by itself -------------------------------------------------------


SPECIAL = ["<|bos|>", "<|eos|>"]  # one of them is the end token of the model at hand; no text shows it


@pytest.mark.parametrize(
    ("values", "count", "reason"),
    [
        ({}, 6, "stop"),
        ({"ignore_eos": True, "max_tokens": 30}, 30, "length"),
        ({"min_tokens": 10, "max_tokens": 30}, 11, "stop"),
        ({"min_length": 10, "max_tokens": 30}, 11, "stop"),
        ({"end_id": 1, "max_tokens": 30}, None, "length"),
        ({"ignore_eos": True, "stop_words": SPECIAL, "max_tokens": 30}, 6, "stop"),
        ({"ignore_eos": True, "stop_words": SPECIAL, "max_tokens": 30, "min_tokens": 10}, 11, "stop"),
        ({"max_tokens": 6}, 6, "stop"),
        ({"max_tokens": 5}, 5, "length"),
    ],
)
def test_who_decides_about_the_end(values: dict[str, Any], count: int | None, reason: str, grpc: GrpcClient) -> None:
    for stream in (False, True):
        got = ask(grpc, {**values, "stream": stream, **ALL}, model="ends")
        if count is not None:
            assert (got.output_tokens, got.finish_reason) == (count, reason)
        assert "<|" not in got.text


def test_min_tokens_hold_back_stop_strings(grpc: GrpcClient) -> None:
    values = {"max_tokens": 20, "stop_words": [STOP], **ALL}
    stopped = ask(grpc, values)
    whole = ask(grpc, {**values, "min_tokens": 20})
    assert (stopped.finish_reason, whole.finish_reason) == ("stop", "length")
    assert STOP in whole.text
    for least in range(stopped.output_tokens - 1, stopped.output_tokens + 2):
        unary = ask(grpc, {**values, "min_tokens": least})
        assert unary.output_tokens > least
        assert ask(grpc, {**values, "min_tokens": least, "stream": True}).text == unary.text
        assert (unary.output_tokens == stopped.output_tokens) == (least < stopped.output_tokens)


# -- precedence -----------------------------------------------------------------------------------------------------


def test_a_tensor_beats_json_and_json_beats_a_parameter(grpc: GrpcClient) -> None:
    def count(**places: Any) -> int:
        tensors = dict(places.get("tensor", {}))
        if "json" in places:
            tensors["sampling_parameters"] = json.dumps(places["json"])
        request = grpc.build(
            text_input=PROMPT, return_num_output_tokens=True, parameters=places.get("parameter", {}), **tensors
        )
        return grpc.send(request).result().output_tokens

    three, four, five = {"max_tokens": 3}, {"max_tokens": 4}, {"max_tokens": 5}
    assert count(tensor=three, json=four, parameter=five) == 3
    assert count(json=four, parameter=five) == 4
    assert count(parameter=five) == 5
    assert count(parameter={"sampling_parameters": json.dumps(three), "max_tokens": 5}) == 3


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("max_tokens", "4", 4),
        ("temperature", "0.5", 0.5),
        ("top_p", "0.5", 0.5),
        ("top_k", "5", 5),
        ("seed", "77", 77),
        ("stream", "true", True),
        ("ignore_eos", "0", False),
    ],
)
def test_numbers_and_truth_values_may_be_strings_in_json_and_parameters(
    name: str, text: str, value: Any, grpc: GrpcClient
) -> None:
    base = {key: other for key, other in {"max_tokens": 6, "seed": 5, "temperature": 1.0}.items() if key != name}
    right = ask(grpc, {name: value}, "tensor", **base).text
    assert ask(grpc, {name: text}, "json", **base).text == right
    assert ask(grpc, {name: text}, "parameter", **base).text == right


@pytest.mark.parametrize(("alias", "name"), [(alias, item.name) for item in INPUTS for alias in item.aliases])
def test_a_name_and_its_alias_together_are_refused(alias: str, name: str, grpc: GrpcClient) -> None:
    with pytest.raises(RequestFailed) as caught:
        ask(grpc, {name: 1}, "json", **{alias: 1})
    assert alias in str(caught.value)
    assert name in str(caught.value)


@pytest.mark.parametrize("form", ["json", "parameter"])
def test_an_unknown_name_is_refused_with_the_nearest(form: str, grpc: GrpcClient) -> None:
    with pytest.raises(RequestFailed, match=r"max_tokenz.*did you mean max_tokens"):
        ask(grpc, {"max_tokenz": 4}, form)
