"""An answer of /v1/responses: items, streamed as named events or whole; and the errors within."""

from __future__ import annotations

import dataclasses
import secrets
import time
from collections.abc import Mapping
from typing import Any, Final

from inflight_gateway.core.errors import GatewayError, Kind
from inflight_gateway.core.events import Event, Usage
from inflight_gateway.core.models import Model
from inflight_gateway.wire import dialect
from inflight_gateway.wire.openai import encoder, error_body, tokens_of

# OpenAI's names of fields in chat → in responses.
NAMES: Final[Mapping[str, str]] = {
    "prompt": "input",
    "messages": "input",
    "max_tokens": "max_output_tokens",
    "response_format": "text.format",
    "logprobs": "top_logprobs",
    "chat_template_kwargs": "reasoning.effort",
    "reasoning_effort": "reasoning.effort",
}
# What an answer repeats of its request, and what it says where that left it open.
_ECHOED: Final[Mapping[str, Any]] = {
    "instructions": None, "max_output_tokens": None, "max_tool_calls": None, "metadata": {},
    "parallel_tool_calls": True, "reasoning": {"effort": None, "summary": None}, "temperature": None,
    "text": {"format": {"type": "text"}},
    "tool_choice": "auto", "tools": [], "top_logprobs": 0, "top_p": None, "truncation": "disabled",
    "service_tier": None, "prompt_cache_key": None, "safety_identifier": None,
}  # fmt: skip
_ECHOED_IF_GIVEN: Final = ("user",)  # what may not be null there


@dataclasses.dataclass(slots=True)
class _Item:
    """One item of the output, while it comes."""

    place: int
    kind: str  # message, reasoning or function_call
    call: int
    id: str
    call_id: str = ""
    name: str = ""
    text: list[str] = dataclasses.field(default_factory=list)
    logprobs: list[dict[str, Any]] = dataclasses.field(default_factory=list)

    def part(self, text: str) -> dict[str, Any]:
        """The one part of its content."""
        if self.kind == "reasoning":
            return {"type": "reasoning_text", "text": text}
        return {"type": "output_text", "text": text, "annotations": [], "logprobs": self.logprobs if text else []}

    def said(self, status: str) -> dict[str, Any]:
        """As it is now; `status`: in_progress (it has nothing yet), completed or incomplete."""
        text, empty = "".join(self.text), status == "in_progress"
        found: dict[str, Any] = {"id": self.id, "type": self.kind, "status": status}
        if self.kind == "function_call":
            arguments = "" if empty else text or "{}"
            return found | {"call_id": self.call_id, "name": self.name, "arguments": arguments}
        content = [] if empty else [self.part(text)]
        if self.kind == "reasoning":
            return found | {"summary": [], "content": content}
        return found | {"role": "assistant", "content": content}


_PREFIXES: Final = {"message": "msg", "reasoning": "rs", "function_call": "fc"}


class Response:
    """Renders one answer, streamed or whole."""

    def __init__(self, model: Model, echoed: Mapping[str, Any], logprobs: int | None) -> None:
        """`echoed`: the request's fields. `logprobs`: how many likeliest tokens are told; None: nothing of the kind."""
        self._head: dict[str, Any] = {
            "id": f"resp_{secrets.token_hex(12)}", "object": "response", "created_at": int(time.time()),
            "model": model.id, "background": False, "store": False, "previous_response_id": None,
            **{name: default if echoed.get(name) is None else echoed[name] for name, default in _ECHOED.items()},
            **{name: echoed[name] for name in _ECHOED_IF_GIVEN if echoed.get(name) is not None},
        }  # fmt: skip
        self._logprobs = logprobs
        self._items: list[_Item] = []
        self._number = 0
        self._finish = ""
        self._thought = 0  # tokens that came with thoughts alone
        self.usage = Usage()

    def chunks(self, event: Event) -> bytes:
        """What one event adds to a stream."""
        said: list[bytes] = []
        if not self._number:
            begun = self._response("in_progress", [])
            said += [
                self._event("response.created", response=begun),
                self._event("response.in_progress", response=begun),
            ]
        for item, text, logprobs, new in self._take(event):
            if new:
                said.append(self._done(item.place - 1, "completed") if item.place else b"")
                said.append(self._added(item))
            if text:
                said.append(self._delta(item, text, logprobs))
        return b"".join(said)

    def end(self) -> bytes:
        """The end of a stream."""
        status = self._status()
        last = self._done(len(self._items) - 1, status) if self._items else b""
        return last + self._event(f"response.{status}", response=self._ended(status))

    def push(self, event: Event) -> None:
        """Take one event of a whole answer."""
        self._take(event)

    def whole(self) -> bytes:
        """The whole answer."""
        return encoder.encode(self._ended(self._status()))

    def broken(self, error: GatewayError) -> bytes:
        """The end of a stream that has none of its own. An event `error` follows: OpenAI's clients raise at that."""
        code, message = error.kind.code or "server_error", error.message
        failed = self._response("failed", self._output("incomplete")) | {"error": {"code": code, "message": message}}
        said = self._event("response.failed", response=failed)
        return said + self._event("error", code=code, message=message, param=error.param, **error_body(error))

    def _take(self, event: Event) -> list[tuple[_Item, str, list[dict[str, Any]], bool]]:
        """What an event adds to which item, and whether that is new."""
        if event.choice:
            raise GatewayError(Kind.INTERNAL, "the model answered with a sequence that nobody asked for")
        self.usage.add(event)
        self._finish = event.finish or self._finish
        self._thought += event.tokens if event.reasoning and not event.text else 0
        found = []
        if event.reasoning:
            found.append(self._piece("reasoning", -1, event.reasoning, []))
        if event.text:
            told: list[dict[str, Any]] = []
            if self._logprobs is not None:
                told = [{**chosen, "top_logprobs": top} for chosen, top in tokens_of(event, self._logprobs)]
            found.append(self._piece("message", -1, event.text, told))
        for call in event.calls:
            found.append(self._piece("function_call", call.index, call.arguments, [], call.id, call.name))
        return found

    def _piece(
        self, kind: str, call: int, text: str, logprobs: list[dict[str, Any]], call_id: str = "", name: str = ""
    ) -> tuple[_Item, str, list[dict[str, Any]], bool]:
        last = self._items[-1] if self._items else None
        new = last is None or (last.kind, last.call) != (kind, call)
        if last is None or new:
            id_ = f"{_PREFIXES[kind]}_{secrets.token_hex(12)}"
            last = _Item(len(self._items), kind, call, id_, call_id, name)
            self._items.append(last)
        last.text.append(text)
        last.logprobs += logprobs
        return last, text, logprobs, new

    def _added(self, item: _Item) -> bytes:
        said = self._event("response.output_item.added", output_index=item.place, item=item.said("in_progress"))
        if item.kind == "function_call":
            return said
        return said + self._event("response.content_part.added", **_place(item), part=item.part(""))

    def _delta(self, item: _Item, text: str, logprobs: list[dict[str, Any]]) -> bytes:
        if item.kind == "function_call":
            return self._event(
                "response.function_call_arguments.delta", item_id=item.id, output_index=item.place, delta=text
            )
        if item.kind == "reasoning":
            return self._event("response.reasoning_text.delta", **_place(item), delta=text)
        return self._event("response.output_text.delta", **_place(item), delta=text, logprobs=logprobs)

    def _done(self, place: int, status: str) -> bytes:
        item = self._items[place]
        said, text = item.said(status), "".join(item.text)
        if item.kind == "function_call":
            where = {"item_id": item.id, "output_index": place}
            done = b""
            if not text:  # clients that join deltas have no arguments yet
                done = self._delta(item, said["arguments"], [])
            done += self._event(
                "response.function_call_arguments.done", **where, name=item.name, arguments=said["arguments"]
            )
        else:
            if item.kind == "reasoning":
                done = self._event("response.reasoning_text.done", **_place(item), text=text)
            else:
                done = self._event("response.output_text.done", **_place(item), text=text, logprobs=item.logprobs)
            done += self._event("response.content_part.done", **_place(item), part=item.part(text))
        return done + self._event("response.output_item.done", output_index=place, item=said)

    def _event(self, kind: str, **values: Any) -> bytes:
        number, self._number = self._number, self._number + 1
        return dialect.event(kind, {"sequence_number": number, **values})

    def _status(self) -> str:
        if not self._finish:
            raise GatewayError(Kind.INTERNAL, "the model ended its answer without saying why")
        return "incomplete" if self._finish == "length" else "completed"

    def _output(self, status: str) -> list[dict[str, Any]]:
        """All items; `status` is that of the last one."""
        last = len(self._items) - 1
        return [item.said(status if item.place == last else "completed") for item in self._items]

    def _ended(self, status: str) -> dict[str, Any]:
        counted = self.usage
        usage = {
            "input_tokens": counted.prompt_tokens,
            "input_tokens_details": {"cached_tokens": sum(counted.cached.values()), "cache_write_tokens": 0},
            "output_tokens": counted.completion,
            "output_tokens_details": {"reasoning_tokens": self._thought},
            "total_tokens": counted.prompt_tokens + counted.completion,
        }
        found = self._response(status, self._output(status)) | {"usage": usage}
        if status == "completed":
            found["completed_at"] = int(time.time())
        return found | {"incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None}

    def _response(self, status: str, output: list[dict[str, Any]]) -> dict[str, Any]:
        more = {"status": status, "output": output, "error": None, "incomplete_details": None}
        return {**self._head, **more}


def _place(item: _Item) -> dict[str, Any]:
    return {"item_id": item.id, "output_index": item.place, "content_index": 0}


def _refused(error: GatewayError, _request_id: str) -> tuple[int, Mapping[str, Any]]:
    return error.kind.status, error_body(dialect.in_its_words(error, NAMES))


def _broken(error: GatewayError, _request_id: str, renderer: Any) -> bytes:
    error = dialect.in_its_words(error, NAMES)
    return renderer.broken(error) if isinstance(renderer, Response) else dialect.event("error", error_body(error))


DIALECT: Final = dialect.Dialect(_refused, _broken)
