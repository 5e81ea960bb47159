"""What there is to tell of a request that has ended: who it was, how it ended, when what happened. Pure."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from inflight.answer.stream import Stream, Timing
from inflight.engines.base import FinishReason
from inflight.errors import ErrorCode
from inflight.identity import Identity

OK = "ok"
_FINISHES = frozenset({reason.value for reason in FinishReason} - {FinishReason.CANCELLED.value}) | {"tool_calls"}


@dataclasses.dataclass(frozen=True, slots=True)
class Ended:
    """One request. `outcome` is the finish reason of its first sequence or an `ErrorCode`'s value; times are monotonic,
    in ns. `asked` are a few of its parameters under gen_ai's names; never anything of its prompt or its answer.
    `engine_number` is what the engine calls it; 0 where it was not read.
    """

    identity: Identity
    outcome: str
    timing: Timing
    ended_ns: int
    input_tokens: int = 0
    output_tokens: int = 0
    operation: str = ""  # chat, text_completion, or empty where it was not read
    asked: Mapping[str, bool | int | float] = dataclasses.field(default_factory=dict)
    engine_number: int = 0

    @property
    def status(self) -> str:
        """`OK`, or the error's code."""
        return OK if self.outcome in _FINISHES else self.outcome or ErrorCode.INTERNAL.value

    @property
    def finish(self) -> str:
        """Why the answer ended; empty where an error came in its place."""
        return self.outcome if self.status == OK else ""


def ended_stream(stream: Stream, engine_number: int, now_ns: int) -> Ended:
    """The end of a request that was read."""
    request = stream.request
    asked: dict[str, bool | int | float] = {
        "gen_ai.request.stream": request.stream,
        "gen_ai.request.max_tokens": request.max_tokens,
        "gen_ai.request.temperature": request.temperature,
        "gen_ai.request.top_p": request.top_p,
        "gen_ai.request.top_k": request.top_k,
        "gen_ai.request.choice.count": request.num_sequences,
    }
    return Ended(
        stream.identity,
        stream.outcome,
        stream.timing,
        now_ns,
        stream.num_input_tokens,
        stream.output_tokens,
        "chat" if request.messages is not None else "text_completion",
        asked,
        engine_number,
    )
