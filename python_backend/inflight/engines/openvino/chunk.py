"""How many tokens one step takes where `max_batched_tokens` does not say.

Prompts are computed in chunks, and whoever is being answered gets no token before the chunk is done: on two cores
without VNNI 512 tokens of a model of 1.17 billion parameters take seven seconds. Larger chunks are a tenth faster at
most (docs/benchmarks/README.md, "The chunk of a prompt"), so a chunk is what takes about `STEP_S`, within bounds. Where
wide products are cut (`build_engine.openvino.narrow`) more than `CUT` rows take a seventh to a quarter
longer each.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from inflight.model.operations import operations_per_token

STEP_S = 0.3
LEAST, MOST = 128, 512  # tokens: with fewer, products of matrices lose a seventh; more gain nothing
ROUND = 32  # tokens of a KV block
PROMPT_ROOM = 64  # tokens for prompts in a step in which `max_running` answers get theirs
CUT, CUT_ROOM = 80, 16  # instead of LEAST and PROMPT_ROOM, where wide products are cut
# Operations a second and core in prompts, measured: 32-bit numbers with AVX2 (Zen 3), 8-bit ones with VNNI (Zen 5).
WIDE, NARROW = 75e9, 270e9


def tokens_per_step(
    config: Mapping[str, Any], cores: int, integers: bool, max_running: int, *, cut: bool = False
) -> int:
    """The most tokens of one step on so many cores, `integers` as `processor.multiplies_integers` says, `cut` as
    engine.json does of wide products.
    """
    rate = cores * (NARROW if integers else WIDE) / operations_per_token(config)
    if cut and not integers and rate * STEP_S < LEAST:
        return max(CUT, max_running + CUT_ROOM)
    tokens = min(max(rate * STEP_S, LEAST), MOST)
    return -(-int(max(tokens, max_running + PROMPT_ROOM)) // ROUND) * ROUND
