"""What a dialect asks of a model, and what comes back."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec


@dataclasses.dataclass(frozen=True, slots=True)
class ModelRequest:
    """One prompt for one model. Exactly one of `text`, `messages` (JSON) and `token_ids` is given.

    `options` are the model's own parameters (docs/requests.md), as they go into `sampling_parameters`. Of several
    servers, requests of one `affinity` go to the same, as long as it is not crowded.
    """

    model: str
    text: str | None = None
    messages: bytes | None = None
    token_ids: Sequence[int] | None = None
    tools: bytes | None = None
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    sequences: int = 1
    deadline_s: float | None = None
    affinity: str = ""


class CallDelta(msgspec.Struct, gc=False):
    """What is new of one tool call; id and name once, in its first delta."""

    index: int
    id: str
    name: str
    arguments: str


class Event(msgspec.Struct):
    """One response of the model: something new of one sequence.

    `finish` is empty until the sequence's end. Counts of tokens are those of this response.
    """

    choice: int
    text: str = ""
    reasoning: str = ""
    calls: tuple[CallDelta, ...] = ()
    finish: str = ""
    stop_reason: str = ""
    prompt: int = 0  # which of the request's prompts it belongs to
    prompt_tokens: int = 0
    cached_tokens: int | None = None
    tokens: int = 0
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[dict[str, Any], ...] = ()  # one per token: {id: {logprob, decoded_token, bytes}}
    info: str = ""  # the output model_info
    last: bool = False  # nothing of its request comes after it


class Usage(msgspec.Struct):
    """Tokens of a whole answer; each prompt counts once."""

    prompt: dict[int, int] = msgspec.field(default_factory=dict)
    cached: dict[int, int] = msgspec.field(default_factory=dict)
    completion: int = 0

    def add(self, event: Event) -> None:
        """Count one event."""
        if event.prompt_tokens:
            self.prompt[event.prompt] = event.prompt_tokens
        if event.cached_tokens is not None:
            self.cached[event.prompt] = event.cached_tokens
        self.completion += event.tokens

    @property
    def prompt_tokens(self) -> int:
        """Of all prompts."""
        return sum(self.prompt.values())
