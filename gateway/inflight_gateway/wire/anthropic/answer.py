"""An answer as Anthropic's clients read it: blocks of content, streamed or whole; and its errors."""

from __future__ import annotations

import dataclasses
import secrets
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import msgspec

from inflight_gateway.core.errors import GatewayError, Kind
from inflight_gateway.core.events import Event, Usage
from inflight_gateway.core.models import Model
from inflight_gateway.wire.dialect import Dialect, event, in_its_words
from inflight_gateway.wire.openai import encoder

OVERLOADED = 529
# OpenAI's names of fields → Anthropic's.
NAMES: Final[Mapping[str, str]] = {
    "prompt": "messages",
    "stop": "stop_sequences",
    "response_format": "output_config.format",
    "chat_template_kwargs": "thinking",
    "reasoning_effort": "output_config.effort",
}
_STATUSES: Final[Mapping[Kind, tuple[int, str]]] = {
    Kind.NO_KEY: (401, "authentication_error"),
    Kind.NO_MODEL: (404, "not_found_error"),
    Kind.NO_ROUTE: (404, "not_found_error"),
    Kind.TOO_LARGE: (413, "request_too_large"),
    Kind.BUSY: (429, "rate_limit_error"),
    Kind.CANCELLED: (499, "api_error"),
    Kind.INTERNAL: (500, "api_error"),
    Kind.OVERLOADED: (OVERLOADED, "overloaded_error"),
    Kind.RESTARTING: (OVERLOADED, "overloaded_error"),
    Kind.DRAINING: (OVERLOADED, "overloaded_error"),
    Kind.DOWN: (OVERLOADED, "overloaded_error"),
    Kind.DEADLINE: (504, "timeout_error"),
}
_REASONS: Final[Mapping[str, str]] = {"length": "max_tokens", "tool_calls": "tool_use"}


def refused(error: GatewayError, request_id: str) -> tuple[int, dict[str, Any]]:
    """Status and body of an error."""
    error = in_its_words(error, NAMES)
    status, kind = _STATUSES.get(error.kind, (error.kind.status, "invalid_request_error"))
    return status, {"type": "error", "error": {"type": kind, "message": error.message}, "request_id": request_id}


DIALECT: Final = Dialect(
    refused, lambda error, request_id, _: event("error", refused(error, request_id)[1]), b"request-id"
)


@dataclasses.dataclass(slots=True)
class _Block:
    """One block: text, thinking, or tool_use of the call with that number."""

    place: int
    kind: str
    call: int
    id: str = ""
    name: str = ""
    text: list[str] = dataclasses.field(default_factory=list)

    def begun(self) -> dict[str, Any]:
        """As its first event has it: empty."""
        if self.kind == "tool_use":
            return {"type": "tool_use", "id": self.id, "name": self.name, "input": {}}
        if self.kind == "thinking":
            return {"type": "thinking", "thinking": "", "signature": ""}
        return {"type": "text", "text": ""}

    def whole(self) -> dict[str, Any] | None:
        """All of it; None of a call whose arguments no reader takes: cut off, or nested without end."""
        text = "".join(self.text)
        if self.kind != "tool_use":
            return self.begun() | {self.kind: text}
        written = text.encode() or b"{}"
        try:
            msgspec.json.decode(written)
        except (msgspec.DecodeError, RecursionError):
            return None
        return self.begun() | {"input": msgspec.Raw(written)}  # as the model wrote it, however deep


_DELTAS: Final[Mapping[str, tuple[str, str]]] = {
    "text": ("text_delta", "text"),
    "thinking": ("thinking_delta", "thinking"),
    "tool_use": ("input_json_delta", "partial_json"),
}


class Message:
    """Renders one answer, streamed or whole."""

    def __init__(self, model: Model, stops: Sequence[str], thoughts: bool) -> None:
        self._id = f"msg_{secrets.token_hex(12)}"
        self._model, self._stops, self._thoughts = model.id, stops, thoughts
        self._blocks: list[_Block] = []
        self._begun = False
        self._finish = self._stop = ""
        self.usage = Usage()

    def chunks(self, answer: Event) -> bytes:
        """What one event adds to a stream."""
        said: list[bytes] = []
        self.usage.add(answer)
        if not self._begun:
            self._begun = True
            message = self._head() | {"content": [], "stop_reason": None, "stop_sequence": None}
            said.append(event("message_start", {"message": message | {"usage": self._usage()}}))
        for block, text, new in self._pieces(answer):
            if new:
                said.append(self._stopped(block.place - 1))
                said.append(event("content_block_start", {"index": block.place, "content_block": block.begun()}))
            if text:
                kind, name = _DELTAS[block.kind]
                said.append(event("content_block_delta", {"index": block.place, "delta": {"type": kind, name: text}}))
        return b"".join(said)

    def end(self) -> bytes:
        """The end of a stream."""
        reason, sequence = self._ended()
        delta = {"stop_reason": reason, "stop_sequence": sequence}
        last = event("message_delta", {"delta": delta, "usage": self._usage()})
        return self._stopped(len(self._blocks) - 1) + last + event("message_stop", {})

    def push(self, answer: Event) -> None:
        """Take one event of a whole answer."""
        self.usage.add(answer)
        for _ in self._pieces(answer):
            pass

    def whole(self) -> bytes:
        """The whole answer."""
        reason, sequence = self._ended()
        content = [said for said in (block.whole() for block in self._blocks) if said is not None]
        ended = {"content": content, "stop_reason": reason, "stop_sequence": sequence, "usage": self._usage()}
        return encoder.encode(self._head() | ended)

    def _pieces(self, answer: Event) -> Iterator[tuple[_Block, str, bool]]:
        """What an event adds to which block, and whether that block is new."""
        if answer.choice:
            raise GatewayError(Kind.INTERNAL, "the model answered with a sequence that nobody asked for")
        if answer.finish:
            self._finish, self._stop = answer.finish, answer.stop_reason
        if answer.reasoning and self._thoughts:
            yield self._piece("thinking", -1, answer.reasoning)
        if answer.text:
            yield self._piece("text", -1, answer.text)
        for call in answer.calls:
            yield self._piece("tool_use", call.index, call.arguments, call.id, call.name)

    def _piece(self, kind: str, call: int, text: str, id_: str = "", name: str = "") -> tuple[_Block, str, bool]:
        last = self._blocks[-1] if self._blocks else None
        new = last is None or (last.kind, last.call) != (kind, call)
        if last is None or new:
            last = _Block(len(self._blocks), kind, call, f"toolu_{id_.removeprefix('call_')}", name)
            self._blocks.append(last)
        last.text.append(text)
        return last, text, new

    def _stopped(self, place: int) -> bytes:
        return event("content_block_stop", {"index": place}) if place >= 0 else b""

    def _ended(self) -> tuple[str, str | None]:
        if not self._finish:
            raise GatewayError(Kind.INTERNAL, "the model ended its answer without saying why")
        if self._finish == "stop" and self._stop in self._stops:
            return "stop_sequence", self._stop
        return _REASONS.get(self._finish, "end_turn"), None

    def _head(self) -> dict[str, Any]:
        return {"id": self._id, "type": "message", "role": "assistant", "model": self._model}

    def _usage(self) -> dict[str, Any]:
        """Tokens that were in the cache do not count as input here."""
        cached = sum(self.usage.cached.values())
        found: dict[str, Any] = {"input_tokens": self.usage.prompt_tokens - cached}
        if self.usage.cached:
            found["cache_read_input_tokens"] = cached
        return found | {"output_tokens": self.usage.completion}


class Count:
    """Renders the number of a prompt's tokens."""

    def __init__(self) -> None:
        self.usage = Usage()

    def push(self, answer: Event) -> None:
        """Take one event."""
        self.usage.add(answer)

    def whole(self) -> bytes:
        """The answer."""
        return encoder.encode({"input_tokens": self.usage.prompt_tokens})
