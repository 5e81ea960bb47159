"""OpenAI's /v1/completions."""

from __future__ import annotations

from typing import Any

from inflight_gateway.core.errors import invalid, unsupported
from inflight_gateway.core.events import Event, ModelRequest, Usage
from inflight_gateway.core.models import Model
from inflight_gateway.wire.chat import stream_fields
from inflight_gateway.wire.choices import Choices
from inflight_gateway.wire.fields import Fields
from inflight_gateway.wire.openai import Chunks, Plan, encoder, head, tokens_of, usage
from inflight_gateway.wire.sampling import IGNORED, MAX_CHOICES, REFUSED, options_of

DEFAULT_MAX_TOKENS = 16  # OpenAI's
MAX_PROMPTS = 64


def parse(body: dict[str, Any], model: Model) -> Plan:
    """One request of one or several prompts. Raises `GatewayError`."""
    fields = Fields(body)
    fields.ignore(("model", *IGNORED))
    fields.refuse((*REFUSED, "suffix"))
    prompts = prompts_of(fields.raw("prompt"))
    given = fields.whole("max_tokens", 0, 2**31 - 1)  # 0: the prompt's tokens are counted, and echoed where asked for
    if given is None:
        given = fields.whole("n_predict", 0, 2**31 - 1)
    options, count = options_of(fields, model, DEFAULT_MAX_TOKENS if given is None else given)
    if len(prompts) * count > MAX_CHOICES:
        raise invalid("n", f"times the number of prompts may be at most {MAX_CHOICES}")
    best = fields.whole("best_of", 1, MAX_CHOICES)
    if best is not None and best != count:
        raise unsupported("best_of", "is supported only where it equals n; leave it out")
    special = fields.flag("add_special_tokens")
    if special is not None:
        options["add_special_tokens"] = special
    top = fields.raw("logprobs")
    logprobs = top is not None and top is not False
    if logprobs:
        top = fields.whole("logprobs", 0, 20) if top is not True else 0
        options |= {"return_log_probs": True, "return_token_ids": given != 0}
        if top:
            options["logprobs"] = top
    echo = fields.flag("echo") or False
    if echo and logprobs:
        raise unsupported("echo", "with logprobs needs log-probabilities of the prompt, which the model does not give")
    if echo and any(not isinstance(prompt, str) for prompt in prompts):
        raise unsupported("echo", "needs a prompt of text")
    want_ids = fields.flag("return_token_ids") or False
    if want_ids:
        options["return_token_ids"] = given != 0  # else they would be the prompt's
    named_by_id = fields.flag("return_tokens_as_token_ids") or False
    stream, include_usage, usage_always = stream_fields(fields)
    requests = [
        ModelRequest(
            model.triton_name,
            text=prompt if isinstance(prompt, str) else None,
            token_ids=None if isinstance(prompt, str) else prompt,
            options=options,
            sequences=count,
        )
        for prompt in prompts
    ]
    echoed = [prompt if echo and isinstance(prompt, str) else "" for prompt in prompts for _ in range(count)]
    renderer = Completion(
        model, echoed, include_usage, usage_always, (top or 0) if logprobs else None, want_ids, named_by_id
    )
    return Plan(requests, renderer, stream, fields.unknown(), model.id)


def prompts_of(value: Any) -> list[str | list[int]]:
    """A prompt, a list of prompts, token ids, or a list of those."""
    if isinstance(value, str):
        prompts: list[Any] = [value]
    elif isinstance(value, list) and value and not isinstance(value[0], str | list):
        prompts = [token_ids(value)]
    else:
        prompts = [one if isinstance(one, str) else token_ids(one) for one in value] if isinstance(value, list) else []
    if not prompts or not all(isinstance(one, str) or one for one in prompts):
        raise invalid("prompt", "must be a string, a list of strings, a list of token ids or a list of such lists")
    if len(prompts) > MAX_PROMPTS:
        raise invalid("prompt", f"has {len(prompts)} prompts; at most {MAX_PROMPTS} are allowed")
    if any(isinstance(one, str) and ("\0" in one or not one) for one in prompts):
        raise invalid("prompt", "is empty or holds a NUL character")
    return prompts


def token_ids(value: Any) -> list[int] | None:
    """Token ids; whole numbers may be written as 7.0, as in any JSON. None: it is no list of them."""
    if not isinstance(value, list):
        return None
    found = [int(one) if isinstance(one, float) and one.is_integer() else one for one in value]
    return found if all(type(one) is int and 0 <= one < 2**31 for one in found) else None


class _Choice:
    __slots__ = ("finish", "logprobs", "offset", "stop_reason", "text", "token_ids")

    def __init__(self, echo: str) -> None:
        self.text = [echo]
        self.finish = ""
        self.stop_reason = ""
        self.offset = 0
        self.logprobs: dict[str, list[Any]] = _no_logprobs()
        self.token_ids: list[int] = []


class Completion:
    """Renders one answer, streamed or whole."""

    def __init__(
        self,
        model: Model,
        echoed: list[str],
        include_usage: bool,
        usage_always: bool,
        logprobs: int | None,
        ids: bool,
        named_by_id: bool,
    ) -> None:
        self._head = head("cmpl", "text_completion", model)
        self._choices = Choices(_Choice(echo) for echo in echoed)
        self._logprobs, self._ids, self._named_by_id = logprobs, ids, named_by_id
        self.usage = Usage()
        self._chunks = Chunks(self._head, self.usage, include_usage, usage_always)

    def chunks(self, event: Event) -> bytes:
        """What one event adds to a stream."""
        self.usage.add(event)
        choice = self._choices.of(event)
        text = "".join(choice.text) + event.text
        choice.text = []
        logprobs = self._logprobs_of(choice, event)
        ids = event.token_ids if self._ids else ()
        if not text and not event.finish and logprobs is None and not ids:
            return b""
        choice.finish = choice.finish or event.finish
        said = b'{"index":%d,"text":%b,"logprobs":%b,"finish_reason":%b,"stop_reason":%b' % (
            event.choice, encoder.encode(text), encoder.encode(logprobs), encoder.encode(event.finish or None),
            encoder.encode(event.stop_reason or None),
        )  # fmt: skip
        if ids:
            said += b',"token_ids":' + encoder.encode(ids)
        return self._chunks.of(said)

    def end(self) -> bytes:
        """The end of a stream in which every choice has come to its own."""
        self._choices.require_finished()
        return self._chunks.end()

    def push(self, event: Event) -> None:
        """Take one event of a whole answer."""
        self.usage.add(event)
        choice = self._choices.of(event)
        choice.text.append(event.text)
        found = self._logprobs_of(choice, event)
        for key, values in (found or {}).items():
            choice.logprobs[key] += values
        if self._ids:
            choice.token_ids += event.token_ids
        if event.finish:
            choice.finish, choice.stop_reason = event.finish, event.stop_reason

    def whole(self) -> bytes:
        """The whole answer."""
        self._choices.require_finished()
        choices = [
            {
                "index": number,
                "text": "".join(choice.text),
                "logprobs": choice.logprobs if self._logprobs is not None else None,
                "finish_reason": choice.finish,
                "stop_reason": choice.stop_reason or None,
                **({"token_ids": choice.token_ids} if self._ids else {}),
            }
            for number, choice in enumerate(self._choices)
        ]
        return encoder.encode({**self._head, "choices": choices, "usage": usage(self.usage)})

    def _logprobs_of(self, choice: _Choice, event: Event) -> dict[str, list[Any]] | None:
        if self._logprobs is None or not event.token_ids:
            return None
        found = _no_logprobs()
        for said, top in tokens_of(event, self._logprobs, self._named_by_id):
            found["tokens"].append(said["token"])
            found["token_logprobs"].append(said["logprob"])
            found["top_logprobs"].append({one["token"]: one["logprob"] for one in top})
            found["text_offset"].append(choice.offset)
            choice.offset += len(bytes(said["bytes"]).decode(errors="replace"))
        return found


def _no_logprobs() -> dict[str, list[Any]]:
    return {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
