"""OpenAI's /v1/chat/completions."""

from __future__ import annotations

from typing import Any

from inflight_gateway.core.errors import invalid, unsupported
from inflight_gateway.core.events import CallDelta, Event, ModelRequest, Usage
from inflight_gateway.core.models import Model
from inflight_gateway.wire.choices import Choices
from inflight_gateway.wire.effort import template_kwargs
from inflight_gateway.wire.fields import Fields
from inflight_gateway.wire.openai import Chunks, Plan, encoder, head, tokens_of, usage
from inflight_gateway.wire.sampling import IGNORED, REFUSED, options_of

MAX_MESSAGES = 4096


def parse(body: dict[str, Any], model: Model) -> Plan:
    """One chat request. Raises `GatewayError`."""
    fields = Fields(body)
    fields.ignore(("model", *IGNORED))
    fields.refuse((*REFUSED, "echo"))
    messages = fields.raw("messages")
    if not isinstance(messages, list) or not messages:
        raise invalid("messages", "must be a list of at least one message")
    if len(messages) > MAX_MESSAGES:
        raise invalid("messages", f"has {len(messages)} entries; at most {MAX_MESSAGES} are allowed")
    modalities = fields.raw("modalities")
    if modalities not in (None, ["text"]):
        raise unsupported("modalities", "may be text alone")
    first = fields.whole("max_completion_tokens", 1, 2**31 - 1)
    second = fields.whole("max_tokens", 1, 2**31 - 1)
    third = fields.whole("n_predict", 1, 2**31 - 1)
    given = [one for one in (first, second, third) if one is not None]
    options, count = options_of(fields, model, given[0] if given else None)
    options["add_special_tokens"] = bool(fields.flag("add_special_tokens"))
    for name in ("add_generation_prompt", "continue_final_message"):
        flag = fields.flag(name)
        if flag is not None:
            options[name] = flag
    kwargs = template_kwargs(fields, model, fields.object("chat_template_kwargs") or {})
    if kwargs:
        options["chat_template_kwargs"] = encoder.encode(kwargs).decode()
    documents = fields.raw("documents")
    if documents:
        options["documents"] = encoder.encode(documents).decode()
    logprobs = fields.flag("logprobs") or False
    top = fields.whole("top_logprobs", 0, 20)
    if top and not logprobs:
        raise invalid("top_logprobs", "needs logprobs true; set it as well")
    if logprobs:
        options |= {"return_log_probs": True, "return_token_ids": True}
        if top:
            options["logprobs"] = top
    want_ids = fields.flag("return_token_ids") or False
    if want_ids:
        options["return_token_ids"] = True
    named_by_id = fields.flag("return_tokens_as_token_ids") or False
    show_thoughts = fields.flag("include_reasoning") is not False
    if model.info.reasoning_format != "none":
        options["reasoning"] = True
    tools = _tools(fields, options)
    stream, include_usage, usage_always = stream_fields(fields)
    if tools and not stream and options.get("tool_choice") not in (None, "none", "auto"):
        options["return_model_info"] = True  # it says what the guide of the call leaves out of the tools' schemas
    request = ModelRequest(
        model.triton_name,
        messages=encoder.encode(messages),
        tools=encoder.encode(tools) if tools else None,
        options=options,
        sequences=count,
    )
    top_of = (top or 0) if logprobs else None
    renderer = Chat(model, count, include_usage, usage_always, top_of, want_ids, show_thoughts, named_by_id)
    return Plan((request,), renderer, stream, fields.unknown(), model.id)


def stream_fields(fields: Fields) -> tuple[bool, bool, bool]:
    """Whether to stream, whether to end with usage, and whether every chunk has it (vLLM)."""
    stream = fields.flag("stream") or False
    wanted = Fields(fields.object("stream_options") or {})
    include, always = wanted.flag("include_usage") or False, wanted.flag("continuous_usage_stats") or False
    return stream, include, always and include


def _tools(fields: Fields, options: dict[str, Any]) -> list[Any]:
    tools = fields.raw("tools") or []
    if not isinstance(tools, list):
        raise invalid("tools", "must be a list of tools")
    choice = fields.raw("tool_choice")
    parallel = fields.flag("parallel_tool_calls")
    for place, tool in enumerate(tools):
        if isinstance(tool, dict) and tool.get("type") not in (None, "function"):
            raise unsupported(f"tools[{place}].type", "must be function; other tools are not supported")
    if isinstance(choice, dict) and choice.get("type") == "allowed_tools":
        allowed = choice.get("allowed_tools")
        allowed = allowed if isinstance(allowed, dict) else choice
        listed = allowed.get("tools")
        names = (
            [_name(one) or one.get("name") for one in listed or [] if isinstance(one, dict)]
            if isinstance(listed, list)
            else []
        )
        tools = [one for one in tools if isinstance(_name(one), str) and _name(one) in names]
        choice = allowed.get("mode", "auto")
    if choice is not None and not isinstance(choice, str | dict):
        raise invalid("tool_choice", "must be none, auto, required or an object that names a tool")
    if choice is not None and (tools or choice not in ("none", "auto")):
        options["tool_choice"] = choice if isinstance(choice, str) else encoder.encode(choice).decode()
    if tools and parallel is not None:
        options["parallel_tool_calls"] = parallel
    return tools


def _name(tool: Any) -> Any:
    """What a tool in OpenAI's form is called; None for what has no such form."""
    function = tool.get("function") if isinstance(tool, dict) else None
    return function.get("name") if isinstance(function, dict) else None


class _Choice:
    __slots__ = ("begun", "calls", "finish", "logprobs", "reasoning", "stop_reason", "text", "token_ids")

    def __init__(self) -> None:
        self.begun = False
        self.text: list[str] = []
        self.reasoning: list[str] = []
        self.calls: dict[int, CallDelta] = {}
        self.finish = ""
        self.stop_reason = ""
        self.logprobs: list[dict[str, Any]] = []
        self.token_ids: list[int] = []

    def delta(self, call: CallDelta) -> dict[str, Any]:
        """What is new of a call, in OpenAI's form. Clients append whatever a delta has to what they know: id, type and
        name are there once for each call, whatever the model repeats.
        """
        known = self.calls.get(call.index)
        if known is not None:
            known.arguments += call.arguments
            return {"index": call.index, "function": {"arguments": call.arguments}}
        self.calls[call.index] = CallDelta(call.index, call.id, call.name, call.arguments)
        function = {"name": call.name, "arguments": call.arguments}
        return {"index": call.index, "id": call.id, "type": "function", "function": function}

    def without_arguments(self) -> list[CallDelta]:
        """The deltas that make whole calls without arguments valid JSON: some clients run no tool for "". A call that
        was cut stays as it is.
        """
        if self.finish != "tool_calls":
            return []
        return [CallDelta(index, "", "", "{}") for index, call in sorted(self.calls.items()) if not call.arguments]


class Chat:
    """Renders one chat answer, streamed or whole."""

    def __init__(
        self,
        model: Model,
        count: int,
        include_usage: bool,
        usage_always: bool,
        logprobs: int | None,
        ids: bool,
        thoughts: bool,
        named_by_id: bool,
    ) -> None:
        self._head = head("chatcmpl", "chat.completion", model)
        self._choices = Choices(_Choice() for _ in range(count))
        self._logprobs, self._ids, self._thoughts, self._named_by_id = logprobs, ids, thoughts, named_by_id
        self.usage = Usage()
        begins = self._head | {"object": "chat.completion.chunk"}
        self._chunks = Chunks(begins, self.usage, include_usage, usage_always)

    def chunks(self, event: Event) -> bytes:
        """What one event adds to a stream."""
        self.usage.add(event)
        choice = self._choices.of(event)
        said: list[bytes] = []
        if not choice.begun:
            choice.begun = True
            said.append(self._event(event.choice, b'{"role":"assistant","content":""}'))
        if event.reasoning and self._thoughts:
            said.append(self._event(event.choice, b'{"reasoning_content":' + encoder.encode(event.reasoning) + b"}"))
        logprobs = self._logprobs_of(event)
        if event.text or logprobs or (self._ids and event.token_ids):
            delta = b'{"content":' + encoder.encode(event.text) + b"}"
            said.append(self._event(event.choice, delta, logprobs=logprobs, ids=event.token_ids if self._ids else ()))
        for call in event.calls:
            said.append(self._event(event.choice, encoder.encode({"tool_calls": [choice.delta(call)]})))
        if event.finish:
            choice.finish = event.finish
            for call in choice.without_arguments():
                said.append(self._event(event.choice, encoder.encode({"tool_calls": [choice.delta(call)]})))
            said.append(self._event(event.choice, b"{}", finish=event.finish, stop=event.stop_reason))
        return b"".join(said)

    def end(self) -> bytes:
        """The end of a stream in which every choice has come to its own."""
        self._choices.require_finished()
        return self._chunks.end()

    def push(self, event: Event) -> None:
        """Take one event of a whole answer."""
        self.usage.add(event)
        choice = self._choices.of(event)
        choice.text.append(event.text)
        choice.reasoning.append(event.reasoning)
        for call in event.calls:
            choice.delta(call)
        if self._ids:
            choice.token_ids += event.token_ids
        if self._logprobs is not None:
            choice.logprobs += self._tokens_of(event)
        if event.finish:
            choice.finish, choice.stop_reason = event.finish, event.stop_reason
            for call in choice.without_arguments():
                choice.delta(call)

    def whole(self) -> bytes:
        """The whole answer."""
        self._choices.require_finished()
        choices = [self._whole(number, choice) for number, choice in enumerate(self._choices)]
        return encoder.encode({**self._head, "choices": choices, "usage": usage(self.usage)})

    def _whole(self, number: int, choice: _Choice) -> dict[str, Any]:
        text, thoughts = "".join(choice.text), "".join(choice.reasoning)
        message: dict[str, Any] = {"role": "assistant", "content": text, "refusal": None}
        if thoughts and self._thoughts:
            message["reasoning_content"] = thoughts
        if choice.calls:
            message["content"] = text or None
            message["tool_calls"] = [_whole_call(call) for _, call in sorted(choice.calls.items())]
        found: dict[str, Any] = {
            "index": number,
            "message": message,
            "logprobs": {"content": choice.logprobs, "refusal": None} if self._logprobs is not None else None,
            "finish_reason": choice.finish,
            "stop_reason": choice.stop_reason or None,
        }
        if self._ids:
            found["token_ids"] = choice.token_ids
        return found

    def _logprobs_of(self, event: Event) -> bytes:
        if self._logprobs is None or not event.token_ids:
            return b""
        return encoder.encode({"content": self._tokens_of(event), "refusal": None})

    def _tokens_of(self, event: Event) -> list[dict[str, Any]]:
        tokens = tokens_of(event, self._logprobs or 0, self._named_by_id)
        return [{**said, "top_logprobs": top} for said, top in tokens]

    def _event(
        self, index: int, delta: bytes, *, finish: str = "", stop: str = "", logprobs: bytes = b"", ids: Any = ()
    ) -> bytes:
        said = b'{"index":%d,"delta":%b,"logprobs":%b,"finish_reason":%b' % (
            index, delta, logprobs or b"null", encoder.encode(finish or None),
        )  # fmt: skip
        if stop:
            said += b',"stop_reason":' + encoder.encode(stop)
        if ids:
            said += b',"token_ids":' + encoder.encode(ids)
        return self._chunks.of(said)


def _whole_call(call: CallDelta) -> dict[str, Any]:
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
