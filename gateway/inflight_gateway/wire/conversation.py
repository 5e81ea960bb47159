"""A conversation in OpenAI's form as the model takes it: what dialects that translate into that form share."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from inflight_gateway.core.events import ModelRequest
from inflight_gateway.core.models import Model
from inflight_gateway.wire.openai import encoder


@dataclasses.dataclass(frozen=True, slots=True)
class Tools:
    """Tools in the form of OpenAI's chat; `choice` None: the model's own default."""

    declared: Sequence[Mapping[str, Any]] = ()
    choice: str | Mapping[str, Any] | None = None
    parallel: bool | None = None


def request_of(
    model: Model, messages: Sequence[Mapping[str, Any]], tools: Tools, options: Mapping[str, Any], stream: bool
) -> ModelRequest:
    """The request. Without tools a choice asks for nothing, unless it wants a call, which the model refuses. Of a whole
    answer the model says what a guide left out of the tools: that stands in a header.
    """
    more: dict[str, Any] = {"add_special_tokens": False}
    if tools.choice is not None and (tools.declared or tools.choice not in ("none", "auto")):
        choice = tools.choice
        more["tool_choice"] = choice if isinstance(choice, str) else encoder.encode(choice).decode()
        if tools.declared and not stream and choice not in ("none", "auto"):
            more["return_model_info"] = True
    if tools.declared and tools.parallel is not None:
        more["parallel_tool_calls"] = tools.parallel
    if model.info.reasoning_format != "none":
        more["reasoning"] = True
    return ModelRequest(
        model.triton_name,
        messages=encoder.encode(messages),
        tools=encoder.encode(tools.declared) if tools.declared else None,
        options=more | dict(options),
    )
