"""An answer as TGI's clients read it: a text with details, or one event per token; and its errors."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Final

from inflight_gateway.core.errors import GatewayError, Kind
from inflight_gateway.core.events import Event, Usage
from inflight_gateway.core.models import Model
from inflight_gateway.wire.dialect import Dialect, in_its_words
from inflight_gateway.wire.openai import encoder
from inflight_gateway.wire.tgi.tokens import Token, TokenTexts

# OpenAI's names of fields → TGI's.
NAMES: Final[Mapping[str, str]] = {
    "prompt": "inputs",
    "max_tokens": "max_new_tokens",
    "response_format": "grammar",
    "logprobs": "top_n_tokens",
}
_STATUSES: Final[Mapping[Kind, tuple[int, str]]] = {
    Kind.INVALID: (422, "validation"),
    Kind.UNSUPPORTED: (422, "validation"),
    Kind.TOO_LONG: (422, "validation"),
    Kind.BUSY: (429, "overloaded"),
    Kind.OVERLOADED: (429, "overloaded"),
    Kind.RESTARTING: (503, "overloaded"),
    Kind.DRAINING: (503, "overloaded"),
    Kind.DOWN: (503, "overloaded"),
    Kind.INTERNAL: (424, "generation"),
    Kind.DEADLINE: (504, "generation"),
}
_REASONS: Final[Mapping[str, str]] = {"length": "length", "stop": "eos_token"}


def refused(error: GatewayError, _request_id: str) -> tuple[int, dict[str, Any]]:
    """Status and body of an error."""
    error = in_its_words(error, NAMES)
    status, kind = _STATUSES.get(error.kind, (error.kind.status, "validation"))
    before = "Input validation error: " if status == 422 else ""
    return status, {"error": before + error.message, "error_type": kind}


def broken(error: GatewayError, request_id: str, _renderer: Any) -> bytes:
    """The event that ends a stream which has no end of its own."""
    body = refused(error, request_id)[1]
    if error.kind in (Kind.INTERNAL, Kind.DOWN):
        body["error_type"] = "incomplete_generation_stream"
    return b"data:" + encoder.encode(body) + b"\n\n"


@dataclasses.dataclass(frozen=True, slots=True)
class Asked:
    """How the answer is to look. `echo`: the prompt, where the text is to begin with it."""

    details: bool
    top: bool
    echo: str
    seed: int | None
    listed: bool
    characters: int


class Generation:
    """Renders one answer, streamed or whole."""

    def __init__(self, model: Model, asked: Asked) -> None:
        self._asked = asked
        self._engine = model.info.engine
        self._tokens = TokenTexts(asked.top)
        self._all: list[tuple[Token, list[Token]]] = []
        self._held: tuple[Token, list[Token]] | None = None  # the last one so far: it may be the answer's last
        self._index = 0
        self._text: list[str] = [asked.echo]
        self._finish = self._stop = ""
        self.usage = Usage()

    def chunks(self, event: Event) -> bytes:
        """What one event adds to a stream: an event for each of its tokens, but for the very last."""
        found = self._take(event)
        if event.finish and found:
            self._held = found.pop()
        return b"".join(self._one(*token) for token in found)

    def end(self) -> bytes:
        """The last token, with the whole text."""
        self._require_end()
        token, others = self._held or (Token(0, "", 0.0, special=True), [])
        details: dict[str, Any] | None = None
        if self._asked.details:
            details = self._ended() | {"input_length": self.usage.prompt_tokens}
        return self._one(token, others, "".join(self._text), details)

    def push(self, event: Event) -> None:
        """Take one event of a whole answer."""
        self._all += self._take(event)

    def whole(self) -> bytes:
        """The whole answer."""
        self._require_end()
        said: dict[str, Any] = {"generated_text": "".join(self._text)}
        if self._asked.details:
            details = self._ended() | {"prefill": [], "tokens": [token for token, _ in self._all]}
            if self._asked.top:
                details["top_tokens"] = [others for _, others in self._all]
            said["details"] = details
        return encoder.encode([said] if self._asked.listed else said)

    def headers(self, seconds: float | None) -> dict[str, str]:
        """What TGI tells in headers: `seconds` since the request came, None where the answer only begins."""
        said = {"x-compute-type": self._engine, "x-compute-characters": str(self._asked.characters)}
        if seconds is not None:
            milliseconds = str(round(seconds * 1000))
            said |= {"x-compute-time": f"{seconds:.3f}", "x-total-time": milliseconds}
            said |= {"x-prompt-tokens": str(self.usage.prompt_tokens), "x-generated-tokens": str(self.usage.completion)}
            said["x-time-per-token"] = str(round(seconds * 1000 / max(1, self.usage.completion)))
        return said

    def _take(self, event: Event) -> list[tuple[Token, list[Token]]]:
        if event.choice:
            raise GatewayError(Kind.INTERNAL, "the model answered with a sequence that nobody asked for")
        self.usage.add(event)
        self._text.append(event.text)
        if event.finish:
            self._finish, self._stop = event.finish, event.stop_reason
        return list(self._tokens.push(event))

    def _one(
        self, token: Token, others: list[Token], text: str | None = None, details: dict[str, Any] | None = None
    ) -> bytes:
        self._index += 1
        said: dict[str, Any] = {"index": self._index, "token": token}
        if self._asked.top:
            said["top_tokens"] = others
        return b"data:" + encoder.encode(said | {"generated_text": text, "details": details}) + b"\n\n"

    def _require_end(self) -> None:
        if not self._finish:
            raise GatewayError(Kind.INTERNAL, "the model ended its answer without saying why")

    def _ended(self) -> dict[str, Any]:
        stopped = self._finish == "stop" and self._stop
        reason = "stop_sequence" if stopped else _REASONS.get(self._finish, "eos_token")
        return {"finish_reason": reason, "generated_tokens": self.usage.completion, "seed": self._asked.seed}


def headers(renderer: Any, seconds: float | None) -> Mapping[str, str]:
    """The headers of an answer."""
    return renderer.headers(seconds) if isinstance(renderer, Generation) else {}


DIALECT: Final = Dialect(refused, broken, headers=headers)
