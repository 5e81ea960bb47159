"""vLLM's /tokenize and /detokenize: the model itself knows its tokens."""

from __future__ import annotations

from typing import Any

from inflight_gateway.core.errors import invalid, unsupported
from inflight_gateway.core.events import Event, ModelRequest, Usage
from inflight_gateway.core.models import Model
from inflight_gateway.wire.completion import token_ids
from inflight_gateway.wire.dialect import OPENAI, Dialect, in_its_words
from inflight_gateway.wire.fields import Fields
from inflight_gateway.wire.openai import Plan, encoder, error_body


def parse(body: dict[str, Any], model: Model) -> Plan:
    """A prompt or messages. Raises `GatewayError`."""
    fields = Fields(body)
    fields.ignore(("model",))
    if fields.flag("return_token_strs"):
        raise unsupported("return_token_strs", "is not supported; /detokenize has the text of tokens")
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


def parse_tokens(body: dict[str, Any], model: Model) -> Plan:
    """Token ids, whose text is asked for. Raises `GatewayError`."""
    fields = Fields(body)
    fields.ignore(("model",))
    ids = token_ids(fields.raw("tokens"))
    if ids is None:
        raise invalid("tokens", "must be a list of token ids")
    # A whole answer of no tokens that begins with its prompt; special tokens are shown, as in vLLM.
    options = {"max_tokens": 0, "stream": False, "exclude_input_in_output": False, "skip_special_tokens": False}
    request = ModelRequest(model.triton_name, token_ids=ids, options=options)
    return Plan((request,) if ids else (), _Text(), False, fields.unknown(), model.id)


# Whoever asks for a text calls the prompt's tokens by this name.
_NAMES = {"prompt": "tokens"}
OF_TOKENS = Dialect(lambda error, _: (error.kind.status, error_body(in_its_words(error, _NAMES))), OPENAI.broken)


class _Text:
    def __init__(self) -> None:
        self._text: list[str] = []
        self.usage = Usage()

    def push(self, event: Event) -> None:
        self.usage.add(event)
        self._text.append(event.text)

    def whole(self) -> bytes:
        return encoder.encode({"prompt": "".join(self._text)})


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
