"""How much a model is to think, in the words that its own chat template has for it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from inflight_gateway.core.errors import invalid
from inflight_gateway.core.models import Model
from inflight_gateway.wire.fields import Fields

EFFORTS: Final = ("none", "minimal", "low", "medium", "high", "xhigh", "max")
SWITCHES: Final = ("enable_thinking", "thinking")


def template_kwargs(fields: Fields, model: Model, given: Mapping[str, Any]) -> dict[str, Any]:
    """What the client `given` for the template, and OpenAI's `reasoning_effort` beside it: as it is where the template
    reads that, and as thinking or not where it reads such a switch; what the client says itself stands. A template that
    reads neither leaves the field to those that are ignored. Raises `GatewayError`.
    """
    read = [name for name in ("reasoning_effort", *SWITCHES) if name in model.info.template_variables]
    if not read:
        return dict(given)
    effort = fields.text("reasoning_effort")
    if effort is None:
        return dict(given)
    if effort not in EFFORTS:
        raise invalid("reasoning_effort", "must be one of " + ", ".join(EFFORTS))
    return {name: effort if name == "reasoning_effort" else effort != "none" for name in read} | dict(given)
