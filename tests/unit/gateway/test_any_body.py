"""Whatever JSON a client sends, every dialect reads it or refuses it in its own words: nothing else is ever raised."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import inflight_gateway.wire as wire
from inflight_gateway.core.errors import GatewayError
from inflight_gateway.core.models import Model, ModelInfo
from inflight_gateway.http.routes import ANSWERED
from inflight_gateway.wire.fields import decode

MODEL = Model("llm", "llm", False, frozenset(), ModelInfo(engine="e", context=100, chat=True), None, 1, "llm/1/engine")


def names() -> list[str]:
    """Every word in the dialects' code: the fields that they know, and what those may be."""
    found = set()
    for path in Path(wire.__path__[0]).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.isidentifier():
                found.add(node.value)
    return sorted(found)


WORDS = st.sampled_from(names())
ODD = st.sampled_from([0, -1, 1, 2, 7.0, 0.5, -0.0, 1e-300, 1e300, 2**31, 2**63, 2**64, 10**30, "", "\0", "{", "é🙂"])
LEAVES = st.none() | st.booleans() | ODD | WORDS | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5)
VALUES = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=4), max_leaves=12
)
TEXT = st.sampled_from(["hi", [{"type": "text", "text": "hi"}]])
MESSAGES = st.lists(
    st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant", "system"]), "content": TEXT | VALUES}),
    min_size=1,
    max_size=3,
)
# What an endpoint cannot do without, well or odd.
NEEDED = {
    "/v1/chat/completions": {"messages": MESSAGES},
    "/v1/messages": {"messages": MESSAGES, "max_tokens": st.just(5) | VALUES},
    "/v1/messages/count_tokens": {"messages": MESSAGES},
    "/chat_tokenize": {"messages": MESSAGES},
    "/v1/completions": {"prompt": st.just("hi") | st.just([[1, 2]]) | VALUES},
    "/v1/tokenize": {"prompt": st.just("hi") | VALUES},
    "/v1/detokenize": {"tokens": st.just([1, 2]) | VALUES},
    "/v1/responses": {"input": st.just("hi") | MESSAGES | VALUES},
}
INPUTS = {"inputs": st.just("hi") | VALUES, "parameters": st.dictionaries(WORDS, VALUES, max_size=3)}


@pytest.mark.parametrize("path", sorted(ANSWERED))
@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_any_object_is_read_or_refused(path: str, data: st.DataObject) -> None:
    body: dict[str, Any] = data.draw(st.dictionaries(WORDS, VALUES, max_size=4))
    body |= data.draw(st.fixed_dictionaries(NEEDED.get(path, INPUTS)))
    refusal = None
    try:
        plan = ANSWERED[path].parse(decode(msgspec.json.encode(body)), MODEL)
    except GatewayError as error:
        refusal = error
    if refusal is not None:
        status, said = ANSWERED[path].dialect.refused(refusal, "id")
        assert 400 <= status < 500, refusal
        assert msgspec.json.encode(said)
        return
    for request in plan.requests:
        msgspec.json.encode(request.options)
        assert request.sequences >= 1
