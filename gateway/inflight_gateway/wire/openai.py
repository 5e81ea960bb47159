"""What OpenAI's chat and completions share: heads of answers, usage, errors, log-probabilities, events."""

from __future__ import annotations

import dataclasses
import secrets
import time
from collections.abc import Sequence
from typing import Any

import msgspec

from inflight_gateway.core.errors import GatewayError
from inflight_gateway.core.events import Event, ModelRequest, Usage
from inflight_gateway.core.models import Model

encoder = msgspec.json.Encoder()
DONE = b"data: [DONE]\n\n"
LEAST_LOGPROB = -9999.0  # minus infinity is no JSON


@dataclasses.dataclass(frozen=True, slots=True)
class Plan:
    """One client's request, parsed."""

    requests: Sequence[ModelRequest]
    renderer: Any  # Chat or Completion
    stream: bool
    ignored: Sequence[str]
    model: str


def head(prefix: str, kind: str, model: Model) -> dict[str, Any]:
    """What every object of one answer begins with."""
    return {
        "id": f"{prefix}-{secrets.token_hex(12)}",
        "object": kind,
        "created": int(time.time()),
        "model": model.id,
        "system_fingerprint": f"inflight-{model.info.release}-{model.info.engine}-{model.info.engine_version}",
    }


def usage(counted: Usage) -> dict[str, Any]:
    """OpenAI's usage. Reused tokens are told where the engine knows them; those of thoughts nobody counts."""
    found: dict[str, Any] = {
        "prompt_tokens": counted.prompt_tokens,
        "completion_tokens": counted.completion,
        "total_tokens": counted.prompt_tokens + counted.completion,
    }
    if counted.cached:
        found["prompt_tokens_details"] = {"cached_tokens": sum(counted.cached.values())}
    return found


def error_body(error: GatewayError) -> dict[str, Any]:
    """OpenAI's form of an error."""
    said = {"message": error.message, "type": error.kind.type, "param": error.param, "code": error.kind.code}
    return {"error": said}


class Chunks:
    """The chunks of one streamed answer, and its end. `counted` is the answer's usage, as far as it has come."""

    def __init__(self, begins: dict[str, Any], counted: Usage, include_usage: bool, usage_always: bool) -> None:
        """`begins`: what every chunk begins with. The usage is told at the end, or besides in every chunk."""
        self._begin = b"data: " + encoder.encode(begins)[:-1] + b',"choices":['
        self._counted = counted
        self._at_end, self._always = include_usage, usage_always

    def of(self, choice: bytes) -> bytes:
        """The chunk that says this of a choice; `choice` lacks its closing brace."""
        said = self._begin + choice + b"}]"
        return said + (self._usage() if self._always else b"}\n\n")

    def end(self) -> bytes:
        """The end of a stream."""
        return self._begin + b"]" + self._usage() + DONE if self._at_end else DONE

    def _usage(self) -> bytes:
        return b',"usage":' + encoder.encode(usage(self._counted)) + b"}\n\n"


def sse(value: Any) -> bytes:
    """One event."""
    return b"data: " + encoder.encode(value) + b"\n\n"


def tokens_of(event: Event, top: int, named_by_id: bool = False) -> list[tuple[dict[str, Any], list[dict[str, Any]]]]:
    """Per token of the event: what is said of it, and of the `top` likeliest tokens. `named_by_id`: tokens are called
    "token_id:7", as in vLLM, so that two of one text can be told apart.
    """
    found = []
    for token_id, said in zip(event.token_ids, event.logprobs, strict=False):
        chosen = _entry(str(token_id), said.get(str(token_id), {}), named_by_id)
        others = [_entry(other, one, named_by_id) for other, one in said.items()]
        found.append((chosen, others[:top]))
    return found


def _entry(token_id: str, said: dict[str, Any], named_by_id: bool) -> dict[str, Any]:
    number = said.get("logprob")
    logprob = LEAST_LOGPROB if number is None else max(float(number), LEAST_LOGPROB)
    token = said.get("decoded_token") or ""
    known = said.get("bytes")  # told where the text is not all of it
    return {
        "token": f"token_id:{token_id}" if named_by_id else token,
        "logprob": logprob,
        "bytes": list(token.encode()) if known is None else known,
    }
