"""The three places of a value and the two shapes, for the table-driven tests of this folder."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.harness.grpc_client import GrpcClient, Pending

FORMS = ("tensor", "json", "parameter")
SHAPES = {"llm": False, "llm_batched": True}  # model → whether its tensors are [1, n]
PROMPT = "The lazy dog"
CHAT_TEMPLATE = (
    "{% if tools %}{{ tools | tojson }}{% endif %}{% for document in documents or [] %}{{ document.text }}{% endfor %}"
    "{{ style | default('') }}{% for message in messages %}<{{ message.role }}>{{ message.content }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
PROMPTS = {"text_input", "messages", "input_ids"}


def forms_of(value: Any) -> tuple[str, ...]:
    """The places that can hold such a value: a request parameter is no list."""
    return FORMS[:2] if isinstance(value, list) else FORMS


def ask(
    client: GrpcClient, values: dict[str, Any], form: str = "tensor", model: str = "llm", **tensors: Any
) -> Pending:
    """Send one request with `values` in one of the three forms (`tensors` are always tensors), and wait for its end."""
    return start(client, values, form, model, **tensors).result()


def start(
    client: GrpcClient, values: dict[str, Any], form: str = "tensor", model: str = "llm", **tensors: Any
) -> Pending:
    """The same without waiting."""
    inputs = dict(tensors)
    parameters: dict[str, Any] = {}
    if not PROMPTS & (set(values) | set(inputs)):
        inputs["text_input"] = PROMPT
    if form == "tensor":
        inputs |= values
    elif form == "json":
        inputs["sampling_parameters"] = json.dumps(values)
    else:
        parameters = dict(values)
    batched = SHAPES.get(model, False)
    return client.send(client.build(model=model, batched=batched, parameters=parameters, **inputs))


def is_refused_elsewhere(item: pytest.Item) -> bool:
    """Whether it is about a row that an engine refuses which lacks guides, adapters and the like, as others do not."""
    values = item.callspec.params.values() if isinstance(item, pytest.Function) and hasattr(item, "callspec") else ()
    return any(getattr(value, "refused", None) for value in values)
