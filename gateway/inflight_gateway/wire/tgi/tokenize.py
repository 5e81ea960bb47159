"""TGI's /tokenize and /chat_tokenize: the model's own tokens, each with its text and place."""

from __future__ import annotations

import codecs
from typing import Any

from inflight_gateway.core.errors import invalid
from inflight_gateway.core.events import Event, ModelRequest, Usage
from inflight_gateway.core.models import Model
from inflight_gateway.wire.conversation import Tools, request_of
from inflight_gateway.wire.fields import Fields
from inflight_gateway.wire.openai import Plan, encoder

_COUNT = {"max_tokens": 0, "stream": False, "return_token_ids": True, "return_log_probs": True}


def parse(body: dict[str, Any], model: Model) -> Plan:
    """A text. Raises `GatewayError`."""
    fields = Fields(body)
    fields.ignore(("model", "parameters", "stream"))
    inputs = fields.text("inputs", 1 << 24)
    if not inputs:
        raise invalid("inputs", "must be a text that is not empty")
    special = fields.flag("add_special_tokens")
    options = dict(_COUNT) if special is None else {**_COUNT, "add_special_tokens": special}
    request = ModelRequest(model.triton_name, text=inputs, options=options)
    return Plan((request,), _Tokens(templated=False), False, fields.unknown(), model.id)


def parse_chat(body: dict[str, Any], model: Model) -> Plan:
    """Messages, as the model's template writes them. Raises `GatewayError`."""
    fields = Fields(body)
    fields.ignore(("model",))
    messages, tools = fields.raw("messages"), fields.raw("tools") or []
    if not isinstance(messages, list) or not messages:
        raise invalid("messages", "must be a list of at least one message")
    if not isinstance(tools, list):
        raise invalid("tools", "must be a list of tools")
    options = {**_COUNT, "exclude_input_in_output": False, "skip_special_tokens": False}
    request = request_of(model, messages, Tools(tools), options | {"reasoning": False}, stream=True)
    return Plan((request,), _Tokens(templated=True), False, fields.unknown(), model.id)


class _Tokens:
    def __init__(self, templated: bool) -> None:
        self._templated = templated
        self._tokens: list[dict[str, Any]] = []
        self._text: list[str] = []
        self._place = 0
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self.usage = Usage()

    def push(self, event: Event) -> None:
        """Take one event."""
        self.usage.add(event)
        self._text.append(event.text)
        for token_id, said in zip(event.token_ids, event.logprobs, strict=False):
            known = said.get(str(token_id), {})
            text = self._decoder.decode(bytes(known.get("bytes") or ()))
            stop = self._place + len(text)
            self._tokens.append({"id": token_id, "text": text, "start": self._place, "stop": stop})
            self._place = stop

    def whole(self) -> bytes:
        """The answer."""
        if not self._templated:
            return encoder.encode(self._tokens)
        return encoder.encode({"tokenize_response": self._tokens, "templated_text": "".join(self._text)})
