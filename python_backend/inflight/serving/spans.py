"""A request that has ended as spans, in the words of OpenTelemetry's conventions for generative AI. Pure.

Triton's span of a model ends when `execute()` returns, long before the answer does. Below it hangs one span for the
whole request, and below that one for each part of it:

    text_completion llm    arrival ──────────────────────────────▶ end
      queue                arrival ─▶ start in the engine
      prefill                         start ─▶ first token
      decode                                   first ─▶ last token
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from inflight.serving.ended import OK, Ended

Value = bool | int | float | str | tuple[str, ...]
PROVIDER = "inflight"


@dataclasses.dataclass(frozen=True, slots=True)
class Span:
    """One span. Times are Unix time in ns; `error` is a word, empty where all went well."""

    name: str
    start_ns: int
    end_ns: int
    attributes: Mapping[str, Value] = dataclasses.field(default_factory=dict)
    error: str = ""


def spans_of(model: str, ended: Ended, to_unix_ns: int) -> tuple[Span, ...]:
    """The request's own span, then its parts; `to_unix_ns` is added to the monotonic times."""
    timing, end_ns = ended.timing, ended.ended_ns
    borders = [("queue", timing.arrival_ns, timing.scheduled_ns)]
    if timing.scheduled_ns:
        borders.append(("prefill", timing.scheduled_ns, timing.first_token_ns))
    if timing.first_token_ns:
        borders.append(("decode", timing.first_token_ns, timing.last_token_ns))
    parts = [
        Span(name, start + to_unix_ns, max(start, stop or end_ns) + to_unix_ns)
        for name, start, stop in borders
        if ended.operation
    ]
    name = f"{ended.operation} {model}" if ended.operation else f"refused {model}"
    error = "" if ended.status == OK else ended.status
    whole = Span(name, timing.arrival_ns + to_unix_ns, end_ns + to_unix_ns, _attributes(model, ended), error)
    return whole, *parts


def how_many(ended: Ended) -> int:
    """The spans that `spans_of` makes."""
    timing = ended.timing
    return 1 + (1 + bool(timing.scheduled_ns) + bool(timing.first_token_ns) if ended.operation else 0)


def _attributes(model: str, ended: Ended) -> dict[str, Value]:
    found: dict[str, Value] = {
        "gen_ai.provider.name": PROVIDER,
        "gen_ai.request.model": model,
        "gen_ai.response.id": ended.identity.id,
        **ended.asked,
    }
    if ended.operation:
        found["gen_ai.operation.name"] = ended.operation
        found["gen_ai.usage.input_tokens"] = ended.input_tokens
        found["gen_ai.usage.output_tokens"] = ended.output_tokens
    if ended.finish:
        found["gen_ai.response.finish_reasons"] = (ended.finish,)
    if ended.timing.first_token_ns:
        first_s = (ended.timing.first_token_ns - ended.timing.arrival_ns) / 1e9
        found["gen_ai.response.time_to_first_chunk"] = first_s
    if ended.status != OK:
        found["error.type"] = ended.status
    return found
