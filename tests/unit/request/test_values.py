"""Where a value may stand, which place wins, how each kind is read; test_request.py has what each parameter takes."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from inflight.errors import ErrorCode, RequestError
from inflight.request.contract import ELSEWHERE, INPUTS, JSON_ALIASES
from inflight.request.values import Values
from tests.unit.machines.strategies import budget

pytestmark = pytest.mark.fast


def values(tensors: dict[str, list[Any]] | None = None, json_: Any = None, /, **parameters: Any) -> Values:
    given_ = dict(tensors or {})
    if json_ is not None:
        given_["sampling_parameters"] = [json_ if isinstance(json_, bytes) else json.dumps(json_).encode()]
    return Values(given_, parameters)


def refusal(act: Any) -> RequestError:
    with pytest.raises(RequestError) as caught:
        act()
    error = caught.value
    assert error.code is ErrorCode.INVALID_ARG
    assert error.parameter
    assert "\n" not in error.message
    assert len(error.message) < 500
    return error


def test_a_tensor_beats_json_and_json_beats_a_request_parameter() -> None:
    assert values({"max_tokens": [1]}, {"max_tokens": 2}, max_tokens=3).integer("max_tokens", 9, 0) == 1
    assert values(None, {"max_tokens": 2}, max_tokens=3).integer("max_tokens", 9, 0) == 2
    assert values(None, None, max_tokens=3).integer("max_tokens", 9, 0) == 3
    assert values().integer("max_tokens", 9, 0) == 9


def test_sampling_parameters_may_be_a_request_parameter_itself() -> None:
    assert values(None, None, sampling_parameters='{"max_tokens": 2}', max_tokens=3).integer("max_tokens", 9, 0) == 2


def test_null_in_json_means_not_given() -> None:
    found = values(None, {"max_tokens": None, "stop": None}, max_tokens=3)
    assert found.integer("max_tokens", 9, 0) == 3
    assert not found.given("stop_words")


ALIASES = [(alias, item.name) for item in INPUTS for alias in item.aliases]


@pytest.mark.parametrize(("alias", "name"), [*ALIASES, *JSON_ALIASES.items()])
def test_an_alias_is_the_name(alias: str, name: str) -> None:
    assert values(None, {alias: 1}).given(name)
    assert values(None, None, **{alias: 1}).given(name)


@pytest.mark.parametrize(("alias", "name"), [*ALIASES, *JSON_ALIASES.items()])
@pytest.mark.parametrize("places", ["both in json", "both as parameters", "json and parameter", "parameter and json"])
def test_a_name_and_its_alias_together_are_refused_wherever_they_stand(alias: str, name: str, places: str) -> None:
    both: dict[str, tuple[Any, dict[str, Any]]] = {
        "both in json": ({alias: 1, name: 1}, {}),
        "both as parameters": (None, {alias: 1, name: 1}),
        "json and parameter": ({alias: 1}, {name: 1}),
        "parameter and json": ({name: 1}, {alias: 1}),
    }
    in_json, parameters = both[places]
    error = refusal(lambda: values(None, in_json, **parameters))
    assert alias in error.message
    assert name in error.message


@pytest.mark.parametrize(("alias", "name"), ALIASES)
def test_a_name_and_its_alias_as_tensors_are_refused(alias: str, name: str) -> None:
    assert {alias, name} <= set(refusal(lambda: values({alias: [1], name: [1]})).message.replace(";", "").split())


def test_an_unknown_name_is_refused_with_the_nearest_known_one() -> None:
    error = refusal(values(None, {"max_token": 4}).refuse_unknown)
    assert error.parameter == "max_token"
    assert "sampling_parameters" in error.message
    assert "did you mean max_tokens?" in error.message
    error = refusal(values(None, None, temprature=1.0).refuse_unknown)
    assert "did you mean temperature?" in error.message
    assert "request parameter" in error.message


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("max_new_tokens", "max_tokens"),
        ("maxTokens", "max_tokens"),
        ("repetition_penality", "repetition_penalty"),
        ("stop_sequences", "stop_words"),
        ("num_beams", "beam_width"),
        ("exclude_input_from_output", "exclude_input_in_output"),
        *ELSEWHERE.items(),
    ],
)
def test_a_hint_names_what_was_meant(name: str, meant: str) -> None:
    assert f"(did you mean {meant}?)" in refusal(values(None, {name: 1}).refuse_unknown).message


@pytest.mark.parametrize(
    "name",
    [
        "include_output_text",
        "output_mode",
        "prompt_scores",
        "allowed_tokens",
        "spaces_between_tokens",
        "num_tokens",
        "return_context_logits",
        "timeout_ms",
        "lora_task_id",
    ],
)
def test_a_name_that_is_merely_similar_gets_no_hint(name: str) -> None:
    assert "did you mean" not in refusal(values(None, {name: 1}).refuse_unknown).message


def test_hints_are_names_of_ours_for_names_that_are_not() -> None:
    ours = {name for item in INPUTS for name in (item.name, *item.aliases)} | set(JSON_ALIASES)
    assert set(ELSEWHERE.values()) <= ours
    assert not set(ELSEWHERE) & ours


@pytest.mark.parametrize(
    "name",
    [name.replace("_", "-") for item in INPUTS for name in (item.name, *item.aliases) if "_" in name],
)
def test_a_parameter_with_hyphens_for_underscores_is_refused_by_its_name(name: str) -> None:
    for spelt in (name, name.title()):
        error = refusal(values(None, None, **{spelt: 3}).refuse_unknown)
        assert error.parameter == spelt
        assert f"(did you mean {name.replace('-', '_')}?)" in error.message


@pytest.mark.parametrize("name", ["x-max-tokens", "stop-", "content-type", "seed-x", "user-agent", "x-stream"])
def test_any_other_name_with_a_hyphen_is_a_forwarded_header(name: str) -> None:
    values(None, None, **{name: "3"}).refuse_unknown()


def test_a_header_that_is_spelt_like_an_input_acts_as_one() -> None:
    """A trap, documented: proxies that forward such a header set the parameter."""
    assert values(None, None, max_tokens="3").integer("max_tokens", 9, 1) == 3


def test_a_number_is_the_same_in_every_place() -> None:
    tensor = [float(np.float32(0.7))]
    found = {
        values({"top_p": tensor}).number("top_p", 1.0),
        values(None, {"top_p": 0.7}).number("top_p", 1.0),
        values(None, None, top_p=0.7).number("top_p", 1.0),
    }
    assert len(found) == 1
    refusal(lambda: values(None, {"top_p": 1e-60}).number("top_p", 1.0, above=0.0))  # 0 to any engine
    refusal(lambda: values(None, {"top_p": 1e60}).number("top_p", 1.0, most=1.0))


def test_an_unknown_name_is_refused_even_with_null() -> None:
    refusal(values(None, {"guidance": None}).refuse_unknown)


def test_a_very_long_unknown_name_is_not_echoed_whole() -> None:
    refusal(values(None, {"x" * 100_000: 1}).refuse_unknown)


def test_sampling_parameters_do_not_nest() -> None:
    refusal(lambda: values(None, {"sampling_parameters": "{}"}).refuse_unknown())


@pytest.mark.parametrize(
    "name",
    [
        "priority",
        "timeout",
        "triton_enable_empty_final_response",
        "sequence_id",
        "x-request-id",
        "traceparent",
        "headers",
    ],
)
def test_what_triton_and_proxies_add_is_let_through(name: str) -> None:
    values(None, None, **{name: 1}).refuse_unknown()


def test_but_not_inside_sampling_parameters() -> None:
    refusal(values(None, {"priority": 1}).refuse_unknown)


@pytest.mark.parametrize("items", [[], [1, 2]])
def test_a_tensor_of_one_value_must_have_one(items: list[int]) -> None:
    error = refusal(lambda: values({"max_tokens": items}))
    assert error.parameter == "max_tokens"


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"{", "not valid JSON"),
        (b"[1]", "JSON object"),
        (b"3", "JSON object"),
        (b'"x"', "JSON object"),
        (b"null", "JSON object"),
        (b"{'max_tokens': 1}", "not valid JSON"),
        (b'{"max_tokens": NaN}', "not valid JSON"),
        (b'{"max_tokens": 1} x', "not valid JSON"),
        (b'{"\xff": 1}', "not valid JSON"),
        (b'{"stop": "\\ud800"}', "not valid JSON"),
        (b"[" * 1_000_000, "not valid JSON"),
        (b'{"a":' * 100_000, "not valid JSON"),
        (b" " * ((1 << 20) + 1), "larger than"),
    ],
)
def test_broken_json_is_refused_by_name(data: bytes, says: str) -> None:
    error = refusal(lambda: values(None, data))
    assert error.parameter == "sampling_parameters"
    assert says in error.message


@pytest.mark.parametrize("data", [b"", b"  ", b"{}"])
def test_empty_json_says_nothing(data: bytes) -> None:
    found = values(None, data)
    found.refuse_unknown()
    assert not found.given("max_tokens")


@pytest.mark.parametrize("parameter", [3, 2.5, True])
def test_sampling_parameters_of_another_type_are_refused(parameter: Any) -> None:
    assert refusal(lambda: values(None, None, sampling_parameters=parameter)).parameter == "sampling_parameters"


@pytest.mark.parametrize(
    ("value", "number"),
    [(16, 16), ("16", 16), (b"16", 16), (16.0, 16), ("-1", -1), (-1, -1), (2**31 - 1, 2**31 - 1)],
)
def test_whole_numbers(value: Any, number: int) -> None:
    assert values(None, None, max_tokens=value).integer("max_tokens", 9, -5) == number


@pytest.mark.parametrize(
    "value",
    ["", "x", "1.5", 1.5, True, False, [1], {"a": 1}, b"\xff", "9" * 5000, "1e3", float("inf"), float("nan"), 1e300],
)
def test_what_is_no_whole_number(value: Any) -> None:
    assert "max_tokens" in refusal(lambda: values(None, None, max_tokens=value).integer("max_tokens", 9, -5)).message


@pytest.mark.parametrize("value", ["1_000", "١٦", "1_0"])
def test_python_spellings_of_numbers_are_no_numbers(value: str) -> None:
    refusal(lambda: values(None, None, max_tokens=value).integer("max_tokens", 9, -5))
    refusal(lambda: values(None, None, top_p=value).number("top_p", 1.0))


@pytest.mark.parametrize(("value", "number"), [(0.7, 0.7), ("0.7", 0.7), (b"0.7", 0.7), (1, 1.0), ("1e-1", 0.1)])
def test_numbers(value: Any, number: float) -> None:
    assert values(None, None, temperature=value).number("temperature", 9.0) == np.float32(number)


@pytest.mark.parametrize(
    "value", ["", "x", True, [0.5], b"\xff", "nan", "inf", float("nan"), float("-inf"), 10**400, "1" * 65]
)
def test_what_is_no_finite_number(value: Any) -> None:
    assert "temperature" in refusal(lambda: values(None, None, temperature=value).number("temperature", 9.0)).message


@pytest.mark.parametrize(
    ("value", "truth"),
    [
        (True, True),
        (False, False),
        (1, True),
        (0, False),
        ("true", True),
        ("False", False),
        ("1", True),
        (b"true", True),
    ],
)
def test_truth_values(value: Any, truth: bool) -> None:
    assert values(None, None, stream=value).boolean("stream", not truth) is truth


@pytest.mark.parametrize("value", ["yes", "", 2, -1, 0.5, [True], b"\xff"])
def test_what_is_no_truth_value(value: Any) -> None:
    refusal(lambda: values(None, None, stream=value).boolean("stream", False))


@pytest.mark.parametrize("value", [b"\xff\xfe", "\ud800", 5, ["a"], {"a": 1}, True])
def test_what_is_no_text(value: Any) -> None:
    assert refusal(lambda: values(None, None, lora_name=value).text("lora_name", 99)).parameter == "lora_name"


def test_a_text_is_limited_in_bytes_not_characters() -> None:
    assert values(None, None, lora_name="éé").text("lora_name", 4) == "éé"
    refusal(lambda: values(None, None, lora_name="éé").text("lora_name", 3))


@pytest.mark.parametrize("value", [b"", b"a\0b", b"\xff", b"\xed\xa0\x80"])
def test_a_prompt_is_text_without_nul_and_not_empty(value: bytes) -> None:
    assert refusal(lambda: values({"text_input": [value]}).prompt_text("text_input", 99)).parameter == "text_input"


def test_lists_of_strings() -> None:
    assert values({"stop_words": [b"a", "é".encode()]}).texts("stop_words") == ["a", "é"]
    assert values(None, {"stop": "a"}).texts("stop_words") == ["a"]
    assert values(None, {"stop": ["a", "b"]}).texts("stop_words") == ["a", "b"]
    assert values().texts("stop_words") == []
    assert refusal(lambda: values(None, {"stop": ["a", 3]}).texts("stop_words")).parameter == "stop"
    refusal(lambda: values(None, {"stop": {"a": 1}}).texts("stop_words"))
    refusal(lambda: values(None, {"stop": 5}).texts("stop_words"))


def test_lists_of_whole_numbers() -> None:
    assert values({"input_ids": [1, 2]}).integers("input_ids") == (1, 2)
    assert values(None, {"stop_token_ids": 7}).integers("stop_token_ids") == (7,)
    assert values(None, {"stop_token_ids": ["7", 8.0]}).integers("stop_token_ids") == (7, 8)
    for bad in ([1.5], ["x"], [True], [None], "12", {"a": 1}, True):
        refusal(lambda bad=bad: values(None, {"stop_token_ids": bad}).integers("stop_token_ids"))


def test_the_message_uses_the_name_that_the_client_used() -> None:
    error = refusal(lambda: values(None, {"n": 0}).integer("num_return_sequences", 1, 1))
    assert error.parameter == "n"
    assert error.message.startswith("n ")


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.binary(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
NAMES = st.sampled_from([item.name for item in INPUTS] + list(JSON_ALIASES)) | st.text(max_size=12)


@given(
    tensors=st.dictionaries(NAMES, st.lists(JSON_VALUES, max_size=3), max_size=3),
    parameters=st.dictionaries(NAMES, JSON_VALUES, max_size=4),
)
@budget(300)
def test_nothing_but_a_refusal_ever_comes_out(tensors: dict[str, list[Any]], parameters: dict[str, Any]) -> None:
    try:
        found = Values(tensors, parameters)
        found.refuse_unknown()
    except RequestError:
        return
    for name in parameters:
        for read in (
            lambda name: found.integer(name, 0, 0),
            lambda name: found.number(name, 0.0),
            lambda name: found.boolean(name, False),
            lambda name: found.text(name, 10),
            found.texts,
            found.integers,
            found.is_false,
        ):
            with contextlib.suppress(RequestError):
                read(name)  # type: ignore[no-untyped-call]
