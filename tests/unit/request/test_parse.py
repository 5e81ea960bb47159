"""One row of the contract after the other: what a request's parameter may be and what it becomes.

The rows hold for every place that a value may come from (tensor, `sampling_parameters`, request parameter): each is
tried in all three.
"""

from __future__ import annotations

import dataclasses
import json
import operator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inflight.engines.base import Guide
from inflight.errors import ErrorCode, RequestError
from inflight.model.parameters import ModelConfig
from inflight.request.chat import ToolChoice
from inflight.request.contract import INPUTS, JSON_ALIASES, JSON_ONLY, VLLM_DEFAULTS
from inflight.request.defaults import GenerationDefaults
from inflight.request.parse import GenerationRequest, RawRequest, parse_request
from tests.unit.machines.strategies import budget

pytestmark = pytest.mark.fast

CONFIG = ModelConfig()
NO_DEFAULTS = GenerationDefaults()
GUIDE = {"guided_decoding_guide_type": "regex", "guided_decoding_guide": "a+"}


@dataclasses.dataclass(frozen=True)
class Row:
    """The request's `attribute` is the second of a pair when the parameter is the first; `bad` is refused by name."""

    name: str
    attribute: str
    pairs: list[tuple[Any, Any]]
    bad: list[Any] = dataclasses.field(default_factory=list)
    default: Any = None
    beside: dict[str, Any] = dataclasses.field(default_factory=dict)


def truth(name: str, attribute: str, default: bool, beside: dict[str, Any] | None = None) -> Row:
    return Row(
        name,
        attribute,
        [(True, True), (False, False), ("true", True), ("0", False)],
        ["perhaps", 2],
        default,
        beside or {},
    )


TOOL = {"type": "function", "function": {"name": "f"}}
TOOLS = json.dumps([TOOL])
MESSAGES = {"messages": "[]"}
ROWS = [
    Row(
        "tools",
        "chat.tools",
        [(TOOLS, (TOOL,)), ("[]", ()), ("", ())],
        [
            "{",
            "{}",
            "[3]",
            '["f"]',
            '[{"name": "f"}]',
            '[{"type": "function", "function": {"name": ""}}]',
            '[{"type": "function", "function": {"name": "a b"}}]',
            json.dumps([TOOL, TOOL]),
            json.dumps([TOOL] * 129),
            json.dumps([{"type": "function", "function": {"name": "f", "parameters": 3}}]),
            json.dumps([{"type": "function", "function": {"name": "f", "strict": "yes"}}]),
            " " * 600_000 + "[]",
        ],
        (),
    ),
    Row(
        "tool_choice",
        "chat.tool_choice",
        [
            ("none", ToolChoice.NONE),
            ("auto", ToolChoice.AUTO),
            ("required", ToolChoice.REQUIRED),
            ("f", ToolChoice.NAMED),
            ('{"type": "function", "function": {"name": "f"}}', ToolChoice.NAMED),
        ],
        ["g", '{"type": "function"}', "{", '{"type": "custom", "function": {"name": "f"}}'],
        ToolChoice.NONE,
        {"tools": TOOLS},
    ),
    truth("parallel_tool_calls", "chat.parallel_tool_calls", True),
    Row(
        "documents",
        "chat.documents",
        [('[{"text": "t"}]', ({"text": "t"},)), ("[]", ())],
        ["{}", "[1]", "x"],
        (),
        MESSAGES,
    ),
    Row(
        "chat_template_kwargs",
        "chat.template_kwargs",
        [('{"enable_thinking": false}', {"enable_thinking": False}), ("{}", {})],
        ["[]", "x", json.dumps({"a": "x" * 70_000})],
        {},
        MESSAGES,
    ),
    truth("add_generation_prompt", "chat.add_generation_prompt", True, MESSAGES),
    truth("continue_final_message", "chat.continue_final_message", False, MESSAGES),
    truth("reasoning", "reasoning", False),
    truth("include_stop_str_in_output", "include_stop", False),
    truth("stream", "stream", False),
    Row(
        "max_tokens",
        "max_tokens",
        [(0, 0), (1, 1), (7, 7), ("16", 16), (2**31 - 1, 2**31 - 1)],
        [-1, "x", 1.5, 2**31],
        256,
    ),
    Row("min_tokens", "min_tokens", [(0, 0), (5, 5), ("5", 5)], [-1, "x", 300], 0),
    truth("ignore_eos", "ignore_eos", False),
    Row("end_id", "end_id", [(2, 2), (0, 0), (-1, -1)], [-2, "x"], None),
    Row("temperature", "temperature", [(0, 0.0), (0.5, 0.5), ("0.5", 0.5), (2, 2.0)], [-0.1, "x", 101.0], 0.0),
    Row("top_p", "top_p", [(1, 1.0), (0.5, 0.5), ("0.5", 0.5)], [0, -0.5, 1.5, "x"], 1.0),
    Row("top_k", "top_k", [(0, 0), (-1, 0), (40, 40), ("40", 40)], [-2, "x", 1.5], 0),
    Row("min_p", "min_p", [(0, 0.0), (0.5, 0.5), (1, 1.0)], [-0.5, 1.5, "x"], 0.0),
    Row("repetition_penalty", "repetition_penalty", [(1, 1.0), (1.5, 1.5), (0.5, 0.5)], [0, -1, 101.0, "x"], 1.0),
    Row("presence_penalty", "presence_penalty", [(-2, -2.0), (0.5, 0.5), (2, 2.0)], [-2.5, 2.5, "x"], 0.0),
    Row("frequency_penalty", "frequency_penalty", [(-2, -2.0), (0.5, 0.5), (2, 2.0)], [-2.5, 2.5, "x"], 0.0),
    Row("length_penalty", "length_penalty", [(1, 1.0), (0.5, 0.5), (-1, -1.0)], ["x"], 1.0, {"beam_width": 2}),
    Row("length_penalty", "length_penalty", [(1, 1.0)], [0.5], 1.0),
    Row(
        "seed",
        "seed",
        [(0, 0), (7, 7), (2**64 - 1, 2**64 - 1), ("7", 7), (-7, 2**64 - 7), (-(2**63), 2**63)],
        [-(2**63) - 1, 2**64, "x", 1.5],
    ),
    Row("stop_words", "stops", [(["a", "b"], ("a", "b")), (["", "a", "a"], ("a",)), ([""], ())], [["x" * 1025]], ()),
    Row("bad_words", "bad_words", [(["a"], ("a",)), ([""], ()), (["b", "a", "b"], ("b", "a"))], [["x" * 1025]], ()),
    Row("num_return_sequences", "num_sequences", [(1, 1), (3, 3), ("3", 3)], [0, -1, 129, "x"], 1),
    Row("beam_width", "beam_width", [(1, 1), (4, 4), ("4", 4)], [0, -1, 129, "x"], 1),
    Row("logprobs", "top_logprobs", [(0, 0), (5, 5), ("5", 5)], [-1, 101, "x"], -1),
    truth("return_log_probs", "return_log_probs", False),
    Row("exclude_input_in_output", "echo_prompt", [(True, False), (False, True)], ["perhaps", 2], False),
    truth("return_finish_reason", "return_finish_reason", False),
    truth("return_cumulative_logprob", "return_cumulative_logprob", False),
    truth("return_num_input_tokens", "return_num_input_tokens", False),
    truth("return_num_output_tokens", "return_num_output_tokens", False),
    truth("return_perf_metrics", "return_perf_metrics", False),
    truth("return_token_ids", "return_token_ids", False),
    truth("return_model_info", "return_model_info", False),
    Row(
        "guided_decoding_guide_type",
        "guide",
        [(kind, Guide(kind, "a+")) for kind in ("json_schema", "regex", "ebnf_grammar", "choice")],
        ["xml", "", "JSON"],
        None,
        {"guided_decoding_guide": "a+"},
    ),
    Row(
        "guided_decoding_guide",
        "guide",
        [("b+", Guide("regex", "b+"))],
        ["x" * 65537],
        None,
        {"guided_decoding_guide_type": "regex"},
    ),
    Row("lora_name", "lora_name", [("french", "french")], ["x" * 257], None),
    truth("skip_special_tokens", "skip_special_tokens", True),
    truth("add_special_tokens", "add_special_tokens", True),
    Row("cache_salt", "cache_salt", [("tenant", "tenant")], ["x" * 257], None),
    Row("request_priority", "priority", [(-100, -100), (100, 100), ("5", 5)], [-101, 101, "x"], 0),
    Row("deadline_ms", "deadline_ms", [(1, 1), (60000, 60000), ("500", 500)], [0, -1, "x"], 0),
    Row("pad_id", "end_id", [(2, None), (-1, None)], ["x", 1.5], None),
]
PROMPT_ROWS = {"text_input", "messages", "input_ids", "sampling_parameters"}
BOOLEAN = {item.name for item in INPUTS if item.type == "BOOL"}


def raw(value: Any) -> list[Any]:
    """A value as a tensor gives it."""
    items = value if isinstance(value, list) else [value]
    return [item.encode() if isinstance(item, str) else item for item in items]


def parse(
    form: str,
    values: dict[str, Any],
    config: ModelConfig = CONFIG,
    defaults: GenerationDefaults = NO_DEFAULTS,
    batched: bool = False,
) -> GenerationRequest:
    tensors: dict[str, Any] = {}
    parameters: dict[str, Any] = {}
    if not {"text_input", "messages", "input_ids"} & set(values):
        tensors["text_input"] = [b"hi"]
    if form == "tensor":
        tensors |= {name: raw(value) for name, value in values.items()}
    elif form == "json":
        tensors["sampling_parameters"] = [json.dumps(values).encode()]
    else:
        parameters = dict(values)
    return parse_request(RawRequest(tensors, parameters, batched=batched), config, defaults)


def attribute_of(request: GenerationRequest, path: str) -> Any:
    return operator.attrgetter(path)(request)


def refusal(form: str, values: dict[str, Any], config: ModelConfig = CONFIG) -> RequestError:
    with pytest.raises(RequestError) as caught:
        parse(form, values, config)
    assert caught.value.code is ErrorCode.INVALID_ARG
    assert "\n" not in caught.value.message
    return caught.value


def forms(value: Any) -> list[str]:
    """The places that can hold such a value: a request parameter cannot be a list."""
    return ["tensor", "json"] if isinstance(value, list) else ["tensor", "json", "parameter"]


GOOD = [
    pytest.param(form, row, value, becomes, id=f"{row.name}={str(value)[:20]}-{form}")
    for row in ROWS
    for value, becomes in row.pairs
    for form in forms(value)
]
BAD = [
    pytest.param(form, row, value, id=f"{row.name}={str(value)[:20]}-{form}")
    for row in ROWS
    for value in row.bad
    for form in forms(value)
]
FORMS = pytest.mark.parametrize("form", ["tensor", "json", "parameter"])


@pytest.mark.parametrize(("form", "row", "value", "becomes"), GOOD)
def test_a_value_of_the_contract_arrives(form: str, row: Row, value: Any, becomes: Any) -> None:
    assert attribute_of(parse(form, {**row.beside, row.name: value}), row.attribute) == becomes


@pytest.mark.parametrize(("form", "row", "value"), BAD)
def test_a_value_outside_the_contract_is_refused_by_its_name(form: str, row: Row, value: Any) -> None:
    error = refusal(form, {**row.beside, row.name: value})
    assert error.parameter == row.name
    assert error.message.startswith(row.name + " ")


@pytest.mark.parametrize(
    "row", [row for row in ROWS if row.name != "seed"], ids=[row.name for row in ROWS if row.name != "seed"]
)
def test_the_default_where_nothing_is_given(row: Row) -> None:
    assert attribute_of(parse("tensor", {}), row.attribute) == row.default


ALIASES = [(alias, item.name) for item in INPUTS for alias in item.aliases] + list(JSON_ALIASES.items())
ALIASES.remove(("guided_decoding", "structured_outputs"))  # see below


@pytest.mark.parametrize(("alias", "name"), ALIASES)
def test_an_alias_does_what_its_name_does(alias: str, name: str) -> None:
    row = next(row for row in ROWS if row.name == name)
    attribute = {"return_logprobs": "return_logprobs_json"}.get(alias, row.attribute)
    for value, becomes in row.pairs:
        assert attribute_of(parse("json", {**row.beside, alias: value}), attribute) == becomes


@pytest.mark.parametrize(
    ("alias", "values"),
    [
        ("stop", {"stop": ["x" * 1025]}),
        ("stop", {"stop": [f"s{n}" for n in range(65)]}),
        ("min_length", {"min_length": 5, "max_tokens": 4}),
        ("n", {"n": 3, "beam_width": 2}),
        ("min_length", {"min_length": -1}),
        ("n", {"n": 0}),
        ("random_seed", {"random_seed": 2**64}),
        ("streaming", {"streaming": "perhaps"}),
        ("return_logprobs", {"return_logprobs": "perhaps"}),
        ("stop", {"stop": 5}),
    ],
)
def test_a_refusal_uses_the_name_that_the_client_used(alias: str, values: dict[str, Any]) -> None:
    error = refusal("json", values)
    assert error.parameter == alias
    assert error.message.startswith(alias + " ")


def test_every_input_of_the_contract_has_its_row_here() -> None:
    assert {row.name for row in ROWS} | PROMPT_ROWS == {item.name for item in INPUTS}


# -- the prompt ------------------------------------------------------------------------------------------------


@FORMS
def test_each_kind_of_prompt(form: str) -> None:
    assert parse(form, {"text_input": "é"}).text == "é"
    assert parse(form, {"messages": "[]"}).messages == b"[]"
    if form != "parameter":
        assert parse(form, {"input_ids": [1, 2]}).input_ids == (1, 2)


@pytest.mark.parametrize(
    "values",
    [
        {"text_input": "a", "messages": "[]"},
        {"text_input": "a", "input_ids": [1]},
        {"messages": "[]", "input_ids": [1]},
        {"text_input": "a", "messages": "[]", "input_ids": [1]},
    ],
)
def test_two_prompts_are_refused(values: dict[str, Any]) -> None:
    message = refusal("tensor", values).message
    assert all(name in message for name in values)
    assert "exactly one" in message


def test_no_prompt_is_refused_with_the_names_to_choose_from() -> None:
    with pytest.raises(RequestError) as caught:
        parse_request(RawRequest({"max_tokens": [4]}), CONFIG, NO_DEFAULTS)
    assert all(name in caught.value.message for name in ("text_input", "messages", "input_ids"))


@pytest.mark.parametrize(
    ("values", "name"),
    [
        ({"text_input": ""}, "text_input"),
        ({"text_input": "a\0b"}, "text_input"),
        ({"messages": ""}, "messages"),
        ({"messages": "[\0]"}, "messages"),
        ({"input_ids": []}, "input_ids"),
    ],
)
def test_an_empty_prompt_or_a_nul_is_refused(values: dict[str, Any], name: str) -> None:
    assert refusal("tensor", values).parameter == name


def test_a_prompt_that_is_not_utf8_is_refused() -> None:
    with pytest.raises(RequestError, match=r"text_input is not UTF-8 text \(byte 2 "):
        parse_request(RawRequest({"text_input": [b"ab\xff"]}), CONFIG, NO_DEFAULTS)


def test_a_batch_of_two_is_refused() -> None:
    with pytest.raises(RequestError, match="text_input has 2 values"):
        parse_request(RawRequest({"text_input": [b"a", b"b"]}), CONFIG, NO_DEFAULTS)


@pytest.mark.parametrize("values", [{"text_input": "é" * 9}, {"messages": "é" * 9}, {"input_ids": [1] * 5}])
def test_an_over_long_prompt_is_refused_before_any_work(values: dict[str, Any]) -> None:
    error = refusal("tensor", values, ModelConfig(max_prompt_bytes=16))
    assert error.parameter == next(iter(values))


# -- several parameters together -------------------------------------------------------------------------------


def test_precedence_is_tensor_then_json_then_parameter() -> None:
    tensors = {"text_input": [b"hi"], "max_tokens": [1], "sampling_parameters": [b'{"max_tokens": 2, "top_k": 20}']}
    request = parse_request(RawRequest(tensors, {"max_tokens": 3, "top_k": 30, "seed": 9}), CONFIG, NO_DEFAULTS)
    assert (request.max_tokens, request.top_k, request.seed) == (1, 20, 9)


def test_an_unknown_name_is_refused_whatever_else_is_right() -> None:
    assert "max_tokens" in refusal("json", {"max_tokenz": 4}).message


def test_the_model_lowers_max_tokens_without_a_word() -> None:
    assert parse("tensor", {"max_tokens": 500}, ModelConfig(max_tokens_limit=100)).max_tokens == 100
    assert parse("tensor", {}, ModelConfig(max_tokens_limit=100)).max_tokens == 100
    assert parse("tensor", {}, ModelConfig(default_max_tokens=7)).max_tokens == 7


def test_min_tokens_may_reach_max_tokens_but_not_exceed_it() -> None:
    assert parse("tensor", {"max_tokens": 4, "min_tokens": 4}).min_tokens == 4
    assert refusal("tensor", {"max_tokens": 4, "min_tokens": 5}).parameter == "min_tokens"


def test_a_seed_that_is_not_given_is_fresh_for_each_request() -> None:
    assert len({parse("tensor", {}).seed for _ in range(8)}) == 8


@pytest.mark.parametrize("seed", [2**53 + 1, 2**63, 2**64 - 1])
def test_a_large_seed_arrives_exactly_through_json(seed: int) -> None:
    assert parse("json", {"seed": seed}).seed == seed


def test_who_narrows_the_choice_without_a_temperature_wants_sampling() -> None:
    for values in ({"top_p": 0.9}, {"top_k": 40}, {"min_p": 0.1}):
        assert parse("tensor", values).temperature == 1.0
        assert parse("tensor", {**values, "temperature": 0.0}).temperature == 0.0
    for values in ({"top_p": 1.0}, {"top_k": 1}, {"top_k": 0}, {"min_p": 0.0}, {"seed": 3}):
        assert parse("tensor", values).temperature == 0.0


def test_defaults_of_generation_config_are_the_weakest() -> None:
    defaults = GenerationDefaults(temperature=0.6, top_p=0.9, top_k=50, min_p=0.02, repetition_penalty=1.1)
    request = parse("tensor", {}, defaults=defaults)
    assert (request.temperature, request.top_p, request.top_k, request.min_p, request.repetition_penalty) == (
        0.6,
        0.9,
        50,
        0.02,
        1.1,
    )
    request = parse(
        "json", {"temperature": 0, "top_p": 1, "top_k": -1, "min_p": 0, "repetition_penalty": 1}, defaults=defaults
    )
    assert (request.temperature, request.top_p, request.top_k, request.min_p, request.repetition_penalty) == (
        0.0,
        1.0,
        0,
        0.0,
        1.0,
    )


def test_the_models_echo_parameter_is_the_default_of_the_request() -> None:
    quiet, loud = ModelConfig(), ModelConfig(exclude_input_in_output=False)
    assert parse("tensor", {}, loud).echo_prompt
    assert not parse("tensor", {"exclude_input_in_output": True}, loud).echo_prompt
    assert parse("tensor", {"exclude_input_in_output": False}, quiet).echo_prompt


@pytest.mark.parametrize("values", [{}, {"exclude_input_in_output": False}])
def test_a_stream_has_no_prompt_before_it_unless_the_model_says_so(values: dict[str, Any]) -> None:
    loud = ModelConfig(exclude_input_in_output=False)
    assert not parse("tensor", {"stream": True, **values}, loud).echo_prompt
    assert parse(
        "tensor", {"stream": True, **values}, ModelConfig(exclude_input_in_output=False, stream_echo=True)
    ).echo_prompt
    assert not parse("tensor", {"stream": True}, ModelConfig(stream_echo=True)).echo_prompt


@FORMS
@pytest.mark.parametrize("top_p", [0, 0.0, -1, "0"])
def test_a_top_p_of_nothing_is_not_given_in_tensorrt_llms_shape(form: str, top_p: Any) -> None:
    """llama-index and NVIDIA's own clients send 0 with every request; NVIDIA's backend resets it."""
    defaults = GenerationDefaults(temperature=0.6, top_p=0.9)
    assert parse(form, {"top_p": top_p}, batched=True).top_p == 1.0
    assert parse(form, {"top_p": top_p}, batched=True).temperature == 0.0, "and asks for no sampling"
    assert parse(form, {"top_p": top_p}, defaults=defaults, batched=True).top_p == 0.9
    assert refusal(form, {"top_p": top_p}).parameter == "top_p", "vLLM refuses it"


@pytest.mark.parametrize("form", ["json", "parameter"])
@pytest.mark.parametrize(("name", "default"), VLLM_DEFAULTS.items())
def test_a_key_of_vllms_is_taken_at_its_default_and_refused_by_name_else(name: str, default: Any, form: str) -> None:
    plain = parse(form, {"seed": 1})
    for value in (default, None, str(default).lower() if isinstance(default, bool) else default):
        assert parse(form, {"seed": 1, name: value}) == plain
    others: list[Any] = [not default, str(not default).lower()] if isinstance(default, bool) else [7, "x"]
    for value in [*others, {"5": 1.0}]:
        with pytest.raises(RequestError) as caught:
            parse(form, {name: value})
        assert caught.value.code is ErrorCode.UNSUPPORTED
        assert caught.value.parameter == name
        assert caught.value.message.startswith(f"{name} is not supported")


def test_a_key_of_vllms_says_its_default() -> None:
    with pytest.raises(RequestError, match=r"logit_bias .* vLLM's default \(null\)"):
        parse("json", {"logit_bias": {"5": 1}})
    assert parse("json", {"logit_bias": {}, "allowed_token_ids": []}).top_p == 1.0
    with pytest.raises(RequestError, match=r"detokenize .* vLLM's default \(true\)"):
        parse("json", {"detokenize": False})


def test_best_of() -> None:
    assert parse("json", {"n": 2, "best_of": 5}).best_of == 5
    assert parse("json", {"n": 2}).best_of == 2
    assert parse("json", {"best_of": 3}).top_logprobs == 0, (
        "choosing the best needs the chosen tokens' log-probabilities"
    )
    assert refusal("json", {"n": 3, "best_of": 2}).parameter == "best_of"
    assert refusal("json", {"best_of": 3, "stream": True}).parameter == "best_of"
    assert refusal("json", {"best_of": 3, "beam_width": 3}).parameter == "best_of"


def test_beams() -> None:
    request = parse("tensor", {"beam_width": 4, "num_return_sequences": 4, "length_penalty": 0.5})
    assert (request.beam_width, request.num_sequences, request.length_penalty) == (4, 4, 0.5)
    assert refusal("tensor", {"beam_width": 2, "num_return_sequences": 3}).parameter == "num_return_sequences"


@pytest.mark.parametrize(
    ("values", "computed", "in_json", "as_tensors"),
    [
        ({}, -1, False, False),
        ({"logprobs": 0}, 0, True, False),
        ({"logprobs": 3}, 3, True, False),
        ({"return_log_probs": True}, 0, True, True),
        ({"return_logprobs": True}, 0, True, False),
        ({"logprobs": 3, "return_log_probs": True}, 3, True, True),
        ({"logprobs": 3, "return_logprobs": True}, 3, True, False),
        ({"logprobs": 3, "return_logprobs": False}, -1, False, False),
        ({"logprobs": 3, "return_log_probs": False}, -1, False, False),
        ({"logprobs": False}, -1, False, False),
        ({"logprobs": "false"}, -1, False, False),
        ({"logprobs": None}, -1, False, False),
        ({"logprobs": False, "return_logprobs": False}, -1, False, False),
        ({"logprobs": False, "return_logprobs": True}, 0, True, False),
        ({"return_cumulative_logprob": True}, 0, False, False),
        ({"logprobs": 3, "return_logprobs": False, "return_cumulative_logprob": True}, 0, False, False),
    ],
)
def test_which_log_probabilities_are_wanted(
    values: dict[str, Any], computed: int, in_json: bool, as_tensors: bool
) -> None:
    """`return_logprobs` and the JSON output are vLLM's; `return_log_probs` and the tensors are TensorRT-LLM's."""
    request = parse("json", values)
    found = (request.top_logprobs, request.return_logprobs_json, request.return_log_probs)
    assert found == (computed, in_json, as_tensors)


def test_logprobs_true_is_no_number() -> None:
    assert refusal("json", {"logprobs": True}).parameter == "logprobs"


@pytest.mark.parametrize(
    ("structured", "guide"),
    [
        ({"json": {"type": "object"}}, Guide("json_schema", '{"type": "object"}')),
        ({"json": '{"type": "object"}'}, Guide("json_schema", '{"type": "object"}')),
        ({"regex": "a+"}, Guide("regex", "a+")),
        ({"choice": ["yes", "no"]}, Guide("choice", '["yes", "no"]')),
        ({"grammar": "root ::= x"}, Guide("ebnf_grammar", "root ::= x")),
        ({"json_object": True}, Guide("json", "")),
        ({"json": None, "regex": "a"}, Guide("regex", "a")),
    ],
)
def test_structured_outputs_in_vllms_form(structured: dict[str, Any], guide: Guide) -> None:
    assert parse("json", {"structured_outputs": structured}).guide == guide
    assert parse("json", {"structured_outputs": json.dumps(structured)}).guide == guide, "vLLM's backend wants a string"


UNSET_NOW = {
    "json": None,
    "regex": None,
    "choice": None,
    "grammar": None,
    "json_object": None,
    "disable_fallback": False,
    "disable_any_whitespace": False,
    "disable_additional_properties": False,
    "whitespace_pattern": None,
    "structural_tag": None,
    "_backend": None,
    "_backend_was_auto": False,
}
UNSET_THEN = {
    "json": None,
    "regex": None,
    "choice": None,
    "grammar": None,
    "json_object": None,
    "backend": None,
    "backend_was_auto": False,
    "disable_fallback": False,
    "disable_any_whitespace": False,
    "disable_additional_properties": False,
    "whitespace_pattern": None,
    "structural_tag": None,
}


@pytest.mark.parametrize(
    ("name", "unset"),
    [("structured_outputs", UNSET_NOW), ("guided_decoding", UNSET_THEN)],
    ids=["25.11 and later", "25.05 to 25.10"],
)
@pytest.mark.parametrize("written", [json.dumps, dict], ids=["string", "object"])
def test_a_named_tool_of_tritons_front_end(name: str, unset: dict[str, Any], written: Any) -> None:
    """It sends every field of vLLM's dataclass, in a string, with one of them set."""
    schema = {"type": "object", "properties": {"city": {"type": "string"}}}
    guide = Guide("json_schema", json.dumps(schema))
    assert parse("json", {name: written({**unset, "json": schema})}).guide == guide
    assert parse("json", {name: written({**unset, "json": json.dumps(schema)})}).guide == guide
    assert refusal("json", {name: written(unset)}).message.startswith(f"{name} must have exactly one of json, ")
    two = refusal("json", {name: written({**unset, "json": schema, "regex": "a"})})
    assert two.message.endswith("but has json and regex")


@pytest.mark.parametrize("name", ["structured_outputs", "guided_decoding"])
@pytest.mark.parametrize(
    "field", [{"whitespace_pattern": " ?"}, {"disable_any_whitespace": True}, {"_backend": "xgrammar"}]
)
def test_a_way_of_compiling_that_we_lack_is_refused_by_name(name: str, field: dict[str, Any]) -> None:
    with pytest.raises(RequestError, match=next(iter(field))) as caught:
        parse("json", {name: {"regex": "a+", **field}})
    assert caught.value.code is ErrorCode.UNSUPPORTED
    assert caught.value.parameter == name


def test_the_old_and_the_new_name_exclude_each_other() -> None:
    refusal("json", {"structured_outputs": {"regex": "a"}, "guided_decoding": {"regex": "a"}})


@pytest.mark.parametrize(
    "structured",
    [
        {},
        {"json": {}, "regex": "a"},
        {"xml": "a"},
        {"regex": 5},
        {"regex": 0},
        {"grammar": ["x"]},
        {"json_object": False},
        {"regex": "x" * 65537},
        "x",
        "[]",
        "",
        '{"regex": 5}',
        3,
    ],
)
def test_structured_outputs_that_are_none(structured: Any) -> None:
    assert refusal("json", {"structured_outputs": structured}).parameter == "structured_outputs"


def test_a_guide_and_structured_outputs_exclude_each_other() -> None:
    refusal("json", {**GUIDE, "structured_outputs": {"regex": "a"}})


TYPE, TEXT = "guided_decoding_guide_type", "guided_decoding_guide"
SCHEMA = '{"type": "object"}'
NEEDS_TEXT = ["json_schema", "regex", "ebnf_grammar", "choice"]
COMBINATIONS: list[tuple[str | None, str | None, Guide | str | None]] = [  # type, guide, what comes of it or the fault
    *((kind, text, None) for kind in (None, "") for text in (None, "")),
    *((kind, SCHEMA, TYPE) for kind in (None, "")),
    *(("json", text, Guide("json", "")) for text in (None, "")),
    ("json", SCHEMA, Guide("json_schema", SCHEMA)),
    ("json", "{", Guide("json_schema", "{")),  # refused by whoever reads the schema, as with json_schema
    *((kind, None, TEXT) for kind in NEEDS_TEXT),
    *((kind, text, Guide(kind, text)) for kind in NEEDS_TEXT for text in ("", SCHEMA)),
    *(("xml", text, TYPE) for text in (None, "", SCHEMA)),
]


@pytest.mark.parametrize("place", ["tensor", "json", "parameter"])
@pytest.mark.parametrize(("kind", "text", "found"), COMBINATIONS)
def test_every_combination_of_type_and_guide(
    place: str, kind: str | None, text: str | None, found: Guide | str | None
) -> None:
    given = {name: value for name, value in ((TYPE, kind), (TEXT, text)) if value is not None}
    if isinstance(found, str):
        assert refusal(place, given).parameter == found
    else:
        assert parse(place, given).guide == found


def test_half_a_guide_is_refused() -> None:
    assert refusal("tensor", {"guided_decoding_guide": "a+"}).parameter == "guided_decoding_guide_type"
    assert refusal("tensor", {"guided_decoding_guide_type": "regex"}).parameter == "guided_decoding_guide"
    assert parse("tensor", {"guided_decoding_guide_type": "json"}).guide == Guide("json", "")


@pytest.mark.parametrize("kind", ["json", "json_schema", "regex", "ebnf_grammar", "choice"])
def test_an_unknown_kind_of_guide_is_answered_with_the_known_ones(kind: str) -> None:
    assert kind in refusal("tensor", {"guided_decoding_guide_type": "xml", "guided_decoding_guide": "x"}).message


def test_at_most_64_stop_strings() -> None:
    assert len(parse("tensor", {"stop_words": [f"s{n}" for n in range(64)]}).stops) == 64
    assert refusal("tensor", {"stop_words": [f"s{n}" for n in range(65)]}).parameter == "stop_words"


@pytest.mark.parametrize(
    ("own", "timeout_us", "default", "deadline"),
    [
        (None, 0, 0, 0),
        (None, 0, 500, 500),
        (100, 0, 500, 100),
        (None, 200_000, 500, 200),
        (None, 900_000, 500, 500),
        (100, 50_000, 0, 50),
        (100, 1, 0, 1),
        (None, 1500, 0, 2),
    ],
)
def test_the_soonest_deadline_counts(own: int | None, timeout_us: int, default: int, deadline: int) -> None:
    parameters = {} if own is None else {"deadline_ms": own}
    raw_ = RawRequest({"text_input": [b"hi"]}, parameters, timeout_us)
    assert parse_request(raw_, ModelConfig(default_deadline_ms=default), NO_DEFAULTS).deadline_ms == deadline


def test_what_only_json_knows() -> None:
    assert set(JSON_ONLY) == {"best_of", "stop_token_ids", "structured_outputs"}
    assert parse("json", {"stop_token_ids": [3, 4]}).stop_token_ids == (3, 4)


# -- anything at all -------------------------------------------------------------------------------------------

SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10)
ANYTHING = SCALARS | st.lists(SCALARS, max_size=3) | st.dictionaries(st.text(max_size=5), SCALARS, max_size=2)
NAMES = st.sampled_from(
    [item.name for item in INPUTS] + list(JSON_ALIASES) + list(JSON_ONLY) + ["streaming", "min_length"]
)


@given(st.dictionaries(NAMES, ANYTHING, max_size=6))
@budget(400)
def test_anything_becomes_a_request_or_one_clear_sentence(values: dict[str, Any]) -> None:
    refused: RequestError | None = None
    try:
        parse("parameter", values)
    except RequestError as error:
        refused = error
    if refused is not None:
        assert refused.code is ErrorCode.INVALID_ARG
        assert refused.parameter
        assert "\n" not in refused.message
