"""Guides before any process: limits that cost nothing, and combinations that no engine can honour."""

from __future__ import annotations

import json
from typing import Any

import pytest

from inflight.engines.base import EngineInfo, Guide
from inflight.errors import ErrorCode, RequestError
from inflight.grammar.prepare import prepare
from inflight.guides.beforehand import check_combination, check_limits
from inflight.model.parameters import ModelConfig
from inflight.request.defaults import GenerationDefaults
from inflight.request.parse import RawRequest, parse_request

pytestmark = pytest.mark.fast

INFO = EngineInfo(
    name="openvino",
    version="1",
    vocab_size=100,
    max_seq_len=100,
    max_running=4,
    block_size=32,
    blocks_total=100,
    stop_token_ids=(2,),
    capabilities=frozenset(),
)


@pytest.mark.parametrize(
    ("kind", "text", "words"),
    [
        ("regex", "\ud800", "surrogate"),
        ("json_schema", '{"const": "\\ud800"}', "surrogate"),
        ("json_schema", '{"\\udfff": 1}', "surrogate"),
        ("choice", '["\\ud800"]', "surrogate"),
        ("choice", json.dumps(["a"] * 1_001), "1,000"),
        ("choice", "[]", "at least one"),
        ("choice", '["a", ""]', "at least one character"),
        ("json_schema", '{"a": ' * 200 + "1" + "}" * 200, "64 levels"),
        ("json_schema", "[" * 30_000, "deep"),
        ("json_schema", json.dumps({"enum": list(range(30_000))}), "20,000 values"),
        ("json_schema", "[]", "JSON object"),
        ("json_schema", "{", "not JSON"),
        ("json_schema", "", "not JSON"),
        ("choice", "", "not JSON"),
    ],
)
def test_limits(kind: str, text: str, words: str) -> None:
    with pytest.raises(RequestError, match=words) as caught:
        check_limits(Guide(kind, text))
    assert caught.value.code is ErrorCode.INVALID_ARG
    assert caught.value.message.startswith("guided_decoding_guide ")


@pytest.mark.parametrize("text", ['["a", "a"]', '["a", "ab", "a"]', '["a"]'])
def test_choices_may_repeat(text: str) -> None:
    check_limits(Guide("choice", text))
    assert prepare("choice", text) == prepare("choice", json.dumps(sorted(set(json.loads(text)))))


@pytest.mark.parametrize(("text", "fine"), [("{", False), ("{}", True)])
def test_a_schema_behind_the_type_json_is_read(text: str, fine: bool) -> None:
    guide = request(guided_decoding_guide=[text]).guide
    if fine:
        check_limits(guide)
    else:
        with pytest.raises(RequestError, match="guided_decoding_guide is not JSON"):
            check_limits(guide)


def request(**values: Any) -> Any:
    tensors = {"text_input": ["x"], "guided_decoding_guide_type": ["json"], **values}
    return parse_request(RawRequest(tensors), ModelConfig(), GenerationDefaults())


@pytest.mark.parametrize(("name", "value"), [("beam_width", 2), ("ignore_eos", True), ("min_tokens", 3)])
def test_combinations_that_no_engine_can_honour(name: str, value: Any) -> None:
    check_combination(request(), INFO)
    with pytest.raises(RequestError, match=name) as caught:
        check_combination(request(**{name: [value]}), INFO)
    assert caught.value.code is ErrorCode.UNSUPPORTED
    assert caught.value.parameter == name
