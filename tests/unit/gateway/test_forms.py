"""Bodies of any form in the further dialects: taken or refused in the client's words, never an error of ours."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inflight_gateway.core.errors import GatewayError
from inflight_gateway.core.events import Event
from inflight_gateway.core.models import Model, ModelInfo
from inflight_gateway.http import routes

INFO = ModelInfo(
    release="1", engine="e", context=100, reasoning_format="think", template_variables=("enable_thinking",)
)
MODEL = Model("llm", "llm", False, frozenset(), INFO, None, 1, "llm/1/engine")
TURN = [{"role": "user", "content": "hi"}]
WORDS = [
    "user", "assistant", "text", "tool_use", "tool_result", "function", "function_call", "message",
    "function_call_output", "reasoning", "json_schema", "enabled", "disabled", "allowed_tools",
    "output_text", "input_text", "thinking",
]  # fmt: skip
KEYS = [
    "role", "content", "type", "text", "name", "id", "input", "tool_use_id", "call_id", "arguments",
    "output", "schema", "parameters", "format", "value", "tools", "mode", "function", "effort",
    "budget_tokens", "is_error", "thinking",
]  # fmt: skip
FINITE = st.floats(allow_nan=False, allow_infinity=False)
LEAVES = (
    st.none() | st.booleans() | st.integers(-3, 2**64) | FINITE | st.text("ab\0", max_size=3) | st.sampled_from(WORDS)
)
ANY = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=4)
)
BODIES: dict[str, tuple[dict[str, Any], str]] = {
    "/v1/responses": (
        {"input": "a"},
        "input instructions tools tool_choice text reasoning include top_logprobs max_output_tokens truncation"
        " previous_response_id metadata stream",
    ),
    "/v1/messages": (
        {"messages": TURN, "max_tokens": 5},
        "messages system tools tool_choice thinking output_config stop_sequences top_k max_tokens temperature stream",
    ),
    "/v1/messages/count_tokens": ({"messages": TURN}, "messages system tools tool_choice thinking"),
    "/": ({"inputs": "a"}, "inputs parameters stream"),
    "/chat_tokenize": ({"messages": TURN}, "messages tools"),
}
TGI = [
    "grammar", "stop", "seed", "top_n_tokens", "details", "adapter_id", "typical_p", "best_of", "do_sample",
    "max_new_tokens", "truncate",
]  # fmt: skip


@pytest.mark.parametrize(
    ("path", "field", "value"),
    [
        ("/v1/messages", "tool_choice", {"type": []}),
        ("/v1/messages", "messages", [{"role": [], "content": "a"}]),
        ("/v1/responses", "input", [{"role": [], "content": "a"}]),
        ("/v1/responses", "input", [{"type": []}]),
        ("/v1/responses", "tool_choice", []),
    ],
)
def test_a_word_that_is_a_list_is_refused(path: str, field: str, value: Any) -> None:
    with pytest.raises(GatewayError):
        routes.ANSWERED[path].parse({"model": "llm", **BODIES[path][0], field: value}, MODEL)


@pytest.mark.parametrize("path", BODIES)
@settings(max_examples=25)  # 3,000 were run once
@given(data=st.data())
def test_no_form_of_a_field_ends_in_an_error_of_ours(path: str, data: st.DataObject) -> None:
    base, fields = BODIES[path]
    names = data.draw(st.lists(st.sampled_from(fields.split()), min_size=1, max_size=3, unique=True))
    body = {"model": "llm", **base, **{name: data.draw(ANY, name) for name in names}}
    endpoint = routes.ANSWERED[path]
    try:
        found = endpoint.parse(body, MODEL)
    except GatewayError as error:
        status, said = endpoint.dialect.refused(error, "id")
        found = None
    if found is None:
        assert 400 <= status < 500
        json.dumps(said)
        return
    found.renderer.push(Event(0, "a", finish="stop"))
    json.loads(found.renderer.whole())
    assert all(isinstance(name, str) for name in found.ignored)


@given(st.dictionaries(st.sampled_from(TGI), ANY, max_size=3))
def test_no_form_of_tgis_parameters_ends_in_an_error_of_ours(parameters: dict[str, Any]) -> None:
    with contextlib.suppress(GatewayError):
        routes.ANSWERED["/generate_stream"].parse({"inputs": "a", "parameters": parameters}, MODEL)
