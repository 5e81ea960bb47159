"""One streamed answer put together again from its responses. Pure: no connection, no clock, no printing."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

_TOTALS = ("cumulative_logprob", "cum_log_probs")  # one running total per sequence: the last one counts
_PER_TOKEN = ("output_ids", "output_log_probs")  # one element per new token of the response


@dataclass(frozen=True, slots=True)
class Response:
    """One response of a stream: when it came (`time.perf_counter`), its outputs as flat lists, whether it is final."""

    at: float
    outputs: Mapping[str, list[Any]]
    final: bool

    def texts(self) -> list[str]:
        """The elements of text_output."""
        return [text.decode("utf-8", "replace") for text in self.outputs.get("text_output", [])]

    def tokens(self) -> int:
        """Tokens in this response, of all sequences; 0 unless return_num_output_tokens was asked for."""
        return int(sum(self.outputs.get("num_output_tokens", [])))


@dataclass(slots=True)
class Timeline:
    """Times of one answer, in seconds of `time.perf_counter`, with the tokens that came at each."""

    sent: float
    arrivals: list[tuple[float, int]] = field(default_factory=list)  # (time, tokens) of each response with tokens

    def add(self, response: Response) -> None:
        """Note a response."""
        if response.tokens():
            self.arrivals.append((response.at, response.tokens()))

    @property
    def tokens(self) -> int:
        """Tokens so far."""
        return sum(tokens for _, tokens in self.arrivals)

    @property
    def ttft(self) -> float | None:
        """Seconds to the first token."""
        return self.arrivals[0][0] - self.sent if self.arrivals else None

    @property
    def latency(self) -> float | None:
        """Seconds to the last token."""
        return self.arrivals[-1][0] - self.sent if self.arrivals else None

    @property
    def tokens_per_s(self) -> float | None:
        """Tokens after the first response per second since it; for an answer in one piece, all tokens over all time."""
        if not self.arrivals:
            return None
        first, last = self.arrivals[0], self.arrivals[-1]
        if last[0] > first[0]:
            return (self.tokens - first[1]) / (last[0] - first[0])
        return self.tokens / (last[0] - self.sent)


@dataclass(slots=True)
class SequenceAnswer:
    """What came for one sequence."""

    text: str = ""
    finish_reason: str = ""
    stop_reason: str = ""
    num_output_tokens: int = 0
    outputs: dict[str, Any] = field(default_factory=dict)  # the other outputs that the request asked for

    def to_json(self) -> dict[str, Any]:
        """Under the outputs' own names."""
        return {
            "text_output": self.text,
            "finish_reason": self.finish_reason,
            "stop_reason": self.stop_reason,
            "num_output_tokens": self.num_output_tokens,
            **self.outputs,
        }


class Answer:
    """All sequences of one request, and what came once for all of them."""

    def __init__(self, sent: float) -> None:
        """`sent`: when the request left, in seconds of `time.perf_counter`."""
        self.timeline = Timeline(sent)
        self.sequences: dict[int, SequenceAnswer] = {}
        self.outputs: dict[str, Any] = {}

    def add(self, response: Response) -> str:
        """Take a response; returns the new text of the first sequence."""
        self.timeline.add(response)
        outputs = dict(response.outputs)
        texts = response.texts()
        outputs.pop("text_output", None)
        indices = outputs.pop("sequence_index", list(range(len(texts))))
        reasons = outputs.pop("finish_reason", [b""] * len(texts))
        stops = outputs.pop("stop_reason", [b""] * len(texts))
        counts = outputs.pop("num_output_tokens", [0] * len(texts))
        token = 0
        for place, index in enumerate(indices):
            sequence = self.sequences.setdefault(index, SequenceAnswer())
            sequence.text += texts[place]
            sequence.finish_reason = reasons[place].decode() or sequence.finish_reason
            sequence.stop_reason = stops[place].decode() or sequence.stop_reason
            sequence.num_output_tokens += counts[place]
            upto = token + counts[place] if len(indices) > 1 else None
            _add_outputs(sequence.outputs, outputs, place, slice(token, upto))
            token += counts[place]
        for name, values in outputs.items():
            if name not in (*_TOTALS, *_PER_TOKEN, "logprobs") and values:
                self.outputs[name] = values[0]
        return "".join(text for index, text in zip(indices, texts, strict=True) if index == 0)

    def to_json(self) -> dict[str, Any]:
        """Everything; times in seconds."""
        return {
            "sequences": [self.sequences[index].to_json() for index in sorted(self.sequences)],
            "time_to_first_token_s": self.timeline.ttft,
            "latency_s": self.timeline.latency,
            "tokens_per_s": self.timeline.tokens_per_s,
            **self.outputs,
        }


def _add_outputs(kept: dict[str, Any], outputs: Mapping[str, list[Any]], place: int, tokens: slice) -> None:
    """Add one sequence's share: element `place` of what is per sequence, `tokens` of what is per token."""
    for name in _TOTALS:
        if name in outputs:
            kept[name] = outputs[name][place]
    for name in _PER_TOKEN:
        if name in outputs:
            kept.setdefault(name, []).extend(outputs[name][tokens])
    if "logprobs" in outputs:
        kept.setdefault("logprobs", []).extend(json.loads(outputs["logprobs"][place]))
