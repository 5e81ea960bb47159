"""Invariant 11 on the real engine: every input of the contract acts, or is refused by the name that the client used.

The table is walked by the contract's own names, so that an input that is new there fails here until somebody shows what
it does. What only another engine, tokenizer or load can show is told by the name of its test.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable
from typing import Any

import pytest
from tokenizers import Tokenizer

from inflight.request.contract import INPUTS, JSON_ALIASES, JSON_ONLY, OUTPUTS
from inflight_tools.common.layout import ENGINE, REPOSITORY
from tests.harness.grpc_client import GrpcClient, Pending, RequestFailed

pytestmark = pytest.mark.server

PROMPT = "one two one two one two one"
CHAT = json.dumps([{"role": "user", "content": "Say hello, please."}])
ALL = {"return_finish_reason": True, "return_num_output_tokens": True, "return_token_ids": True, "stream": False}
TALK = {"text_input": None, "messages": CHAT}
TOOLS = json.dumps([{"type": "function", "function": {"name": "f"}}])
CALL = {**TALK, "tools": TOOLS, "SELF": "required", "max_tokens": 60}
HOT = {"temperature": 2.0, "seed": 5}
Sees = Callable[[Pending, Pending], bool]


@dataclasses.dataclass(frozen=True)
class Acts:
    """`sees(with, without)` of two requests that differ in `value` alone; both have `base`."""

    value: Any
    sees: Sees
    base: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Refused:
    """It begins with the parameter's name and goes on with `words`."""

    value: Any
    words: str = "is not supported"
    base: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Elsewhere:
    """The test that shows it."""

    file: str
    test: str


def differs(got: Pending, without: Pending) -> bool:
    """Another choice of tokens, or other probabilities of the same ones."""
    return _chosen(got) != _chosen(without)


def _chosen(answer: Pending) -> tuple[Any, ...]:
    outputs = answer.responses[-1].outputs
    return tuple(answer.output_ids), tuple(outputs.get("output_log_probs", ()))


def present(name: str) -> Sees:
    return lambda got, without: name in got.responses[-1].outputs and name not in without.responses[-1].outputs


def ended(count: int, reason: str) -> Sees:
    return lambda got, without: (got.output_tokens, got.finish_reason) == (count, reason)


def several(count: int) -> Sees:
    return lambda got, without: got.responses[-1].outputs.get("sequence_index") == list(range(count))


def text_is(pattern: str) -> Sees:
    return lambda got, without: re.fullmatch(pattern, got.text) is not None


LOG = {"return_log_probs": True}
IDS = [504, 3575, 282, 4649, 314]
CASES: dict[str, Acts | Refused | Elsewhere] = {
    "text_input": Acts("The capital of France is", differs),
    "messages": Acts(CHAT, differs),
    "input_ids": Acts(IDS, differs),
    "tools": Refused(TOOLS, "have no effect", TALK),
    "tool_choice": Acts("f", lambda got, _: got.finish_reason == "tool_calls", CALL),
    "parallel_tool_calls": Elsewhere("tests/unit/backend/test_forms.py", "test_a_named_tool_alone_is_called_once"),
    "documents": Refused('[{"text": "a"}]', "are not read", TALK),
    "chat_template_kwargs": Refused('{"style": 1}', "has style", TALK),
    "add_generation_prompt": Acts(False, differs, TALK),
    "continue_final_message": Acts(True, differs, TALK),
    "reasoning": Elsewhere("tests/unit/backend/test_forms.py", "test_thoughts_are_split_where_asked_for"),
    "include_stop_str_in_output": Elsewhere("tests/integration/test_chat.py", "test_why_it_stopped"),
    "return_model_info": Elsewhere("tests/integration/test_chat.py", "test_a_client_can_ask_what_the_model_is"),
    "stream": Acts(True, lambda got, without: len(got.responses) > 2 and len(without.responses) == 1),
    "sampling_parameters": Acts(
        '{"max_tokens": 3}', ended(3, "length"), {"max_tokens": None, "SELF": '{"max_tokens": 5}'}
    ),
    "max_tokens": Acts(3, ended(3, "length"), {"SELF": 5}),
    "min_tokens": Acts(9, lambda got, without: got.output_tokens >= 9 > without.output_tokens, {"end_id": "THIRD"}),
    "ignore_eos": Acts(True, lambda got, without: got.output_tokens > without.output_tokens, {"end_id": "THIRD"}),
    "end_id": Acts("THIRD", lambda got, without: got.output_tokens <= 3 and got.finish_reason == "stop"),
    "temperature": Acts(2.0, differs, {"seed": 5}),
    "top_p": Acts(0.01, differs, HOT),
    "top_k": Acts(1, differs, HOT),
    "min_p": Acts(1.0, differs, HOT),
    "repetition_penalty": Acts(3.0, differs, LOG),
    "presence_penalty": Acts(2.0, differs, LOG),
    "frequency_penalty": Acts(2.0, differs, LOG),
    "length_penalty": Refused(2.0, "has an effect only with beam search"),
    "seed": Acts(6, differs, {"temperature": 2.0, "SELF": 5}),
    "stop_words": Acts(["two"], lambda got, without: "two" in without.text and "two" not in got.text),
    "bad_words": Refused(["two"]),
    "num_return_sequences": Acts(2, several(2), HOT),
    "beam_width": Acts(3, several(1)),
    "logprobs": Acts(0, present("logprobs")),
    "return_log_probs": Acts(True, present("output_log_probs")),
    "return_logprobs": Acts(True, present("logprobs")),  # vLLM's name, and what vLLM's backend sends with it
    "exclude_input_in_output": Acts(False, lambda got, without: got.text == PROMPT + without.text),
    "return_finish_reason": Acts(True, present("finish_reason"), {"return_finish_reason": None}),
    "return_cumulative_logprob": Acts(True, present("cumulative_logprob")),
    "return_num_input_tokens": Acts(True, present("num_input_tokens")),
    "return_num_output_tokens": Acts(True, present("num_output_tokens"), {"return_num_output_tokens": None}),
    "return_perf_metrics": Acts(True, present("arrival_time_ns")),
    "return_token_ids": Acts(True, present("output_ids"), {"return_token_ids": None}),
    "guided_decoding_guide_type": Acts("regex", text_is("[0-9]{3}"), {"guided_decoding_guide": "[0-9]{3}"}),
    "guided_decoding_guide": Acts("[0-9]{3}", text_is("[0-9]{3}"), {"guided_decoding_guide_type": "regex"}),
    "lora_name": Refused("french"),
    "skip_special_tokens": Acts(
        False,
        lambda got, without: "<|im_end|>" in got.text and "<|im_end|>" not in without.text,
        {"messages": CHAT, "ignore_eos": True, "max_tokens": 40},
    ),
    "add_special_tokens": Elsewhere("tests/unit/request/test_tokenizer.py", "test_a_bos_is_added_once"),
    "cache_salt": Refused("tenant"),
    "request_priority": Elsewhere(
        "tests/contract/test_ends.py", "test_higher_priority_starts_first_and_equals_in_order"
    ),
    "deadline_ms": Acts(150, lambda got, without: got.finish_reason == "deadline", {"max_tokens": 60}),
    "pad_id": Elsewhere("tests/contract/test_inputs.py", 'Row("pad_id", 2, same'),  # without effect, as documented
}
IN_JSON: dict[str, Acts | Refused] = {
    "n": Acts(2, several(2), HOT),
    "stop": Acts(["two"], lambda got, without: "two" in without.text and "two" not in got.text),
    "stop_token_ids": Acts(["THIRD"], lambda got, without: got.output_tokens <= 3 and got.finish_reason == "stop"),
    "best_of": Refused(2, "above num_return_sequences cannot be streamed", {"stream": True}),
    "structured_outputs": Acts({"regex": "[0-9]{3}"}, text_is("[0-9]{3}")),
}
# Without one of the two nothing is asked for at all: these are refused alone.
NEEDS = {"guided_decoding_guide_type", "guided_decoding_guide"}


def ask(client: GrpcClient, values: dict[str, Any]) -> Pending:
    inputs = {"max_tokens": 12, **ALL, **values}
    if not {"text_input", "messages", "input_ids"} & set(values):
        inputs["text_input"] = PROMPT
    request = client.build(**inputs)
    return client.send(request).result()


@pytest.fixture(scope="module")
def third(server: Any) -> int:
    """The third token of the greedy answer to PROMPT: one that can end it."""
    with GrpcClient(server.grpc_url) as client:
        return ask(client, {}).output_ids[2]


def filled(value: Any, third: int) -> Any:
    if isinstance(value, dict):
        return {key: filled(item, third) for key, item in value.items()}
    if isinstance(value, list):
        return [filled(item, third) for item in value]
    return third if isinstance(value, str) and value == "THIRD" else value


def check(client: GrpcClient, name: str, case: Acts | Refused, third: int, in_json: bool = False) -> None:
    base, value = filled(case.base, third), filled(case.value, third)
    if "SELF" in base:  # the same name with another value
        base[name] = base.pop("SELF")
        assert _chosen(ask(client, base)) == _chosen(ask(client, base))
    asked = {**base, "sampling_parameters": json.dumps({name: value})} if in_json else {**base, name: value}
    if isinstance(case, Refused):
        with pytest.raises(RequestFailed) as refusal:
            ask(client, asked)
        assert str(refusal.value).startswith(f"{name} {case.words}")
        return
    got = ask(client, asked)
    if name in NEEDS:
        with pytest.raises(RequestFailed, match=r"^guided_decoding_guide"):
            ask(client, base)
        without = got
    else:
        without = ask(client, base)
    assert case.sees(got, without), (name, got.text, without.text)


NAMES = [(name, item.name) for item in INPUTS for name in (item.name, *item.aliases)]


@pytest.mark.parametrize(("name", "canonical"), NAMES, ids=[name for name, _ in NAMES])
def test_every_input_acts_or_is_refused_by_its_name(name: str, canonical: str, grpc: GrpcClient, third: int) -> None:
    case = CASES[name] if name in CASES else CASES[canonical]
    if isinstance(case, Elsewhere):
        assert case.test in (REPOSITORY / case.file).read_text(encoding="utf-8")
        return
    check(grpc, name, _for_alias(case, name, canonical), third)


def _for_alias(case: Acts | Refused, name: str, canonical: str) -> Acts | Refused:
    """Without the name itself among what is asked for anyway, where an alias is tried."""
    unset = {canonical: None} if name != canonical and canonical in ALL else {}
    return dataclasses.replace(case, base={**case.base, **unset})


@pytest.mark.parametrize("name", [*JSON_ALIASES, *JSON_ONLY])
def test_every_name_that_only_json_knows_acts_or_is_refused(name: str, grpc: GrpcClient, third: int) -> None:
    case = IN_JSON[name] if name in IN_JSON else IN_JSON[JSON_ALIASES[name]]
    check(grpc, name, case, third, in_json=True)


def test_beams_of_different_lengths_are_weighed_by_length_penalty(grpc: GrpcClient) -> None:
    full_stop = Tokenizer.from_file(str(ENGINE / "tokenizer.json")).token_to_id(".")
    asked = {"text_input": "The capital of France is", "beam_width": 4, "max_tokens": 16}
    asked["sampling_parameters"] = json.dumps({"stop_token_ids": [full_stop]})
    short, long = (ask(grpc, {**asked, "length_penalty": penalty}) for penalty in (-8.0, 8.0))
    assert short.output_tokens < long.output_tokens


SEEN_WITH: dict[str, dict[str, Any]] = {
    "text_output": {},
    "finish_reason": {"return_finish_reason": True},
    "sequence_index": {"beam_width": 2},
    "output_ids": {"return_token_ids": True},
    "cumulative_logprob": {"return_cumulative_logprob": True},
    "cum_log_probs": LOG,
    "output_log_probs": LOG,
    "logprobs": LOG,
    "stop_reason": {"return_finish_reason": True},
    "reasoning_output": {"reasoning": True},
    "model_info": {"return_model_info": True},
    "num_input_tokens": {"return_num_input_tokens": True},
    "num_output_tokens": {"return_num_output_tokens": True},
    "arrival_time_ns": {"return_perf_metrics": True},
    "first_scheduled_time_ns": {"return_perf_metrics": True},
    "first_token_time_ns": {"return_perf_metrics": True},
    "last_token_time_ns": {"return_perf_metrics": True},
}
# OpenVINO tells nobody how much of a prompt it had, and this model is told of no tools: tests/contract/test_outputs.py
NOT_HERE = {"kv_cache_reused_block", "num_cached_tokens", "tool_calls"}


@pytest.mark.parametrize("name", [item.name for item in OUTPUTS])
def test_every_output_is_there_when_asked_for_and_only_then(name: str, grpc: GrpcClient) -> None:
    everything = {key: True for values in SEEN_WITH.values() for key in values if key != "beam_width"}
    plain = grpc.send(grpc.build(text_input=PROMPT, max_tokens=4)).result().responses[-1].outputs
    asked = grpc.send(grpc.build(text_input=PROMPT, max_tokens=4, **SEEN_WITH.get(name, everything))).result()
    outputs = asked.responses[-1].outputs
    assert (name in outputs) == (name not in NOT_HERE)
    assert (name in plain) == (name == "text_output")
