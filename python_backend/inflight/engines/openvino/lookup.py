"""Prompt lookup on OpenVINO: a second pipeline that guesses tokens by finding the answer's end in what came before.

OpenVINO GenAI's lookup cannot be switched off for a request, and knows neither beams nor a prefix cache that gives the
same tokens twice. So it has a pipeline of its own, with KV blocks for one sequence, which takes a greedy request that
comes while nothing else runs; everything else goes to the ordinary one.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import openvino_genai

from inflight.engines.base import EngineRequest

LEAST_GAIN = 1.1  # tokens a step; steps that check guesses take longer, by a twentieth where few are found
LEAST_STEPS = 16  # fewer say nothing
MOST_PAUSE = 32


class Payoff:
    """Whether guessing pays. Each answer in a row that gained nothing doubles the number of requests left alone."""

    def __init__(self) -> None:
        self._left_alone = 0
        self._in_vain = 0

    def is_due(self) -> bool:
        """Whether the next request should be guessed at; to be asked once for each that could be."""
        if self._left_alone:
            self._left_alone -= 1
            return False
        return True

    def ended(self, tokens: int, steps: int) -> None:
        """An answer of so many tokens took so many steps."""
        if steps < LEAST_STEPS:
            return
        if tokens >= LEAST_GAIN * steps:
            self._in_vain = 0
        else:
            self._in_vain += 1
            self._left_alone = min(2**self._in_vain, MOST_PAUSE)


def can_be_guessed_at(request: EngineRequest) -> bool:
    """Greedy, one sequence, nothing that asks for more than the likeliest token."""
    wanted = request.sampling
    return (
        wanted.temperature == 0.0
        and (wanted.beam_width, wanted.num_sequences) == (1, 1)
        and (wanted.repetition_penalty, wanted.presence_penalty, wanted.frequency_penalty) == (1.0, 0.0, 0.0)
        and wanted.logprobs < 0
        and wanted.min_tokens == 0
        and request.guide is None
    )


def ask_for_guesses(config: Any, tokens: int, ngram: int) -> None:
    """Make an OpenVINO generation config one for the lookup pipeline: it needs both figures in every request."""
    config.num_assistant_tokens = tokens
    config.max_ngram_size = ngram


def load_lookup(
    folder: Path, properties: dict[str, Any], max_seq_len: int, tokens: int, block_size: int, max_batched_tokens: int
) -> Any:
    """The pipeline, with room for one sequence of `max_seq_len` tokens and for the guesses beyond its end.

    `tokens` are those of a guess. Raises RuntimeError as OpenVINO does.
    """
    scheduler = openvino_genai.SchedulerConfig()
    scheduler.num_kv_blocks = math.ceil((max_seq_len + 2 * tokens) / block_size) + 1
    scheduler.max_num_seqs = 1
    scheduler.max_num_batched_tokens = max_batched_tokens
    scheduler.dynamic_split_fuse = True
    scheduler.enable_prefix_caching = False
    return openvino_genai.ContinuousBatchingPipeline(
        str(folder), scheduler, "CPU", {**properties, "prompt_lookup": True}
    )
