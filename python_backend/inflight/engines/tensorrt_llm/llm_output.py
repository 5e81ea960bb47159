"""What tensorrt_llm.LLM says of a request, as outputs of ours. No thread, no clock, no call of TensorRT-LLM's.

LLM tells a sequence's finish reason only when the whole request is done, and then cuts stop tokens off unless told not
to (`_handle_sequence` in tensorrt_llm.executor.result). So a sequence ends here where its own tokens say so: at a stop
token, or at `max_tokens`; what LLM says decides the rest.
"""

from __future__ import annotations

import dataclasses
import enum
from typing import Any, NamedTuple

from inflight.engines.base import EngineOutput, EngineRefusal, EngineRequest, FinishReason
from inflight.engines.refusals import refused_late
from inflight.engines.tensorrt_llm.sampling import Stops

_FINISH = {
    "stop": FinishReason.STOP,
    "length": FinishReason.LENGTH,
    "timeout": FinishReason.DEADLINE,
    "cancelled": FinishReason.CANCELLED,
}


class Sampler(enum.Enum):
    """Which sampler a model of the PyTorch flow runs; the value is TensorRT-LLM's name for it.

    TRTLLM is the C++ decoder: all penalties, of log-probabilities the chosen token's alone, and `end_id` itself is not
    in the output. TORCH gives the likeliest tokens as well, and the end token. ONE_MODEL is that of drafts made inside
    the model: the end token, no penalties, and a log-probability that is asked for ends the worker.
    """

    TRTLLM = "TRTLLMSampler"
    TORCH = "TorchSampler"
    ONE_MODEL = "one-model speculation"


class Piece(NamedTuple):
    """What one sequence has gained since the last look. `finish` and `logprobs` are LLM's. `cached` is how many tokens
    of the prompt were in the cache: told once, of the first sequence, by releases that know it.
    """

    sequence: int
    ids: list[int]
    finish: str | None
    logprobs: Any
    cached: int | None = None


@dataclasses.dataclass(slots=True)
class LiveRequest:
    """A request in LLM. `made` counts the tokens passed on, by sequence; `ended` holds the sequences that have ended.

    `output` is LLM's, written and read by the loop's thread alone; `seen` counts what it has copied of each sequence.
    """

    request: EngineRequest
    stops: Stops
    output: Any = None
    cancelled: bool = False
    seen: dict[int, int] = dataclasses.field(default_factory=dict)
    made: dict[int, int] = dataclasses.field(default_factory=dict)
    ended: set[int] = dataclasses.field(default_factory=set)

    @property
    def done(self) -> bool:
        """Whether every sequence has had its end."""
        return len(self.ended) == self.request.sampling.num_sequences

    def advance(self, piece: Piece, sampler: Sampler, block_size: int) -> EngineOutput | None:
        """Count what came; None where there is nothing to pass on. `block_size` is that of the KV cache, in tokens.
        Raises `EngineRefusal`.
        """
        sampling = self.request.sampling
        if piece.sequence in self.ended or piece.sequence >= sampling.num_sequences:
            return None
        before = self.made.get(piece.sequence, 0)
        ids, logprobs, reason = piece.ids, piece.logprobs, None
        stop = self.stops.first(ids, before, sampling.min_tokens)
        room = sampling.max_tokens - before
        if stop and stop <= room:
            ids, reason = ids[:stop], FinishReason.STOP
        elif len(ids) >= room:
            ids, reason = ids[:room], FinishReason.LENGTH
        elif piece.finish is not None:
            reason = _FINISH.get(piece.finish, FinishReason.STOP)
            if reason is FinishReason.STOP:
                ids = [*ids, *self._left_out(sampler)]
        self.made[piece.sequence] = before + len(ids)
        if not ids and reason is None:
            return None
        output = self._said(piece.sequence, ids, logprobs, reason)
        if self.request.perf_metrics and piece.cached is not None:
            output.reused_blocks = piece.cached // block_size
        return output

    def end(self, index: int, sampler: Sampler, context: int) -> EngineOutput:
        """The end of a sequence of which LLM told none with the request's. `context` is prompt plus answer."""
        made = self.made.get(index, 0)
        if self.cancelled:
            return self._said(index, [], None, FinishReason.CANCELLED)
        left_out = self._left_out(sampler)
        if left_out and len(self.request.token_ids) + made < context:
            self.made[index] = made + len(left_out)
            return self._said(index, left_out, None, FinishReason.STOP)
        return self._said(index, [], None, FinishReason.LENGTH)

    def failed(self, why: str | EngineRefusal) -> list[EngineOutput]:
        """An error, for the log or for the client, for every sequence that has not ended."""
        left = [index for index in range(self.request.sampling.num_sequences) if index not in self.ended]
        self.ended.update(left)
        number = self.request.request_id
        if isinstance(why, EngineRefusal):
            return [refused_late(why, number, index) for index in left]
        return [EngineOutput(number, index, [], error=why) for index in left]

    def _left_out(self, sampler: Sampler) -> list[int]:
        """The end token that the sequence has had and its output lacks."""
        end = self.stops.end_id
        return [end] if sampler is Sampler.TRTLLM and end is not None else []

    def _said(self, index: int, ids: list[int], entries: Any, reason: FinishReason | None) -> EngineOutput:
        chosen, top, ranks = log_probabilities(ids, entries, self.request.sampling.logprobs)
        if reason is not None:
            self.ended.add(index)
        return EngineOutput(self.request.request_id, index, ids, reason, logprobs=chosen, top_logprobs=top, ranks=ranks)


def snapshot(live: LiveRequest) -> list[Piece]:
    """What LLM's output has gained: it is changed in place, so this runs where it is read.

    Beams change their past, so that they are passed on when all is done.
    """
    if live.request.sampling.beam_width > 1 and not live.output.finished:
        return []
    found = []
    for output in live.output.outputs:
        begin = live.seen.get(output.index, 0)
        ids = [int(token) for token in output.token_ids[begin:]]
        live.seen[output.index] = begin + len(ids)
        entries = list(output.logprobs[begin:]) if output.logprobs else None
        # Each response overwrites it, whichever sequence that is about: it is read with the first one's first tokens.
        cached = getattr(live.output, "cached_tokens", None) if output.index == 0 and ids and not begin else None
        found.append(Piece(output.index, ids, output.finish_reason, entries, cached))
    return found


def log_probabilities(
    ids: list[int], entries: Any, wanted: int
) -> tuple[list[float] | None, list[dict[int, float]] | None, list[int] | None]:
    """(of the chosen tokens, of the likeliest ones, ranks of the chosen); entries are {token: Logprob} or numbers.

    Raises `EngineRefusal`.
    """
    if wanted < 0 or not entries:
        return None, None, None
    chosen, top, ranks = [], [], []
    for token, entry in zip(ids, entries, strict=False):
        if isinstance(entry, (int, float)):
            chosen.append(float(entry))
            top.append({token: float(entry)})
            continue
        if token not in entry:
            raise EngineRefusal(
                "cannot be told of every sampled token: this release of TensorRT-LLM gives none of a token beyond the "
                "likeliest ones; leave it out, or ask with temperature 0",
                "logprobs",
            )
        chosen.append(float(entry[token].logprob))
        if entry[token].rank is not None:
            ranks.append(int(entry[token].rank))
        values = {int(other): float(value.logprob) for other, value in entry.items()}
        ranked = sorted(values.items(), key=lambda item: -item[1])
        top.append(dict(ranked[:wanted]))
    return chosen, top if wanted > 0 and top else None, ranks if len(ranks) == len(chosen) else None
