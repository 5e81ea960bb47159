"""vLLM's /tokenize: the model itself counts."""

from __future__ import annotations

from typing import Any

from inflight_gateway.core.errors import invalid
from inflight_gateway.core.events import Event, ModelRequest, Usage
from inflight_gateway.core.models import Model
from inflight_gateway.wire.fields import Fields
from inflight_gateway.wire.openai import Plan, encoder


def parse(body: dict[str, Any], model: Model) -> Plan:
    """A prompt or messages. Raises `GatewayError`."""
    fields = Fields(body)
    fields.ignore(("model", "return_token_strs"))
    prompt, messages = fields.text("prompt", 1 << 24), fields.raw("messages")
    if (prompt is None) == (messages is None):
        raise invalid("prompt", "or messages must be given, and only one of them")
    options: dict[str, Any] = {"max_tokens": 0, "return_token_ids": True}
    for name in ("add_special_tokens", "add_generation_prompt", "continue_final_message"):
        flag = fields.flag(name)
        if flag is not None:
            options[name] = flag
    if messages is not None:
        options.setdefault("add_special_tokens", False)
        kwargs = fields.object("chat_template_kwargs")
        if kwargs:
            options["chat_template_kwargs"] = encoder.encode(kwargs).decode()
    tools = fields.raw("tools")
    request = ModelRequest(
        model.triton_name,
        text=prompt,
        messages=None if messages is None else encoder.encode(messages),
        tools=encoder.encode(tools) if tools and messages is not None else None,
        options=options,
    )
    return Plan((request,), _Tokens(model.info.context), False, fields.unknown(), model.id)


class _Tokens:
    def __init__(self, context: int) -> None:
        self._context = context
        self._ids: list[int] = []
        self.usage = Usage()

    def push(self, event: Event) -> None:
        self.usage.add(event)
        self._ids += event.token_ids

    def whole(self) -> bytes:
        said = {"count": len(self._ids), "max_model_len": self._context, "tokens": self._ids, "token_strs": None}
        return encoder.encode(said)
