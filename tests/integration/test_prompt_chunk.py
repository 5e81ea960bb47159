"""A long prompt is computed in the chunks that nobody set, and in those that somebody did."""

from __future__ import annotations

import json
import os
from typing import Any

import pytest

from inflight.engines.openvino import chunk
from inflight.engines.openvino.engine import OpenVinoEngine
from inflight_tools.common.layout import ENGINE
from tests.doubles.stand_in import request

pytestmark = pytest.mark.server

PROMPT = list(range(1000, 2100))
RUNNING = 4


@pytest.mark.parametrize("option", [0, 96])
def test_a_prompt_takes_as_many_steps_as_it_has_chunks(option: int) -> None:
    options: dict[str, Any] = {"max_seq_len": 2048, "kv_cache_gb": 0.25, "max_batched_tokens": option}
    engine = OpenVinoEngine(ENGINE, options, RUNNING)
    try:
        engine.add(request(1, PROMPT, max_tokens=2, stop_token_ids=()))
        steps = 1
        while not engine.step(0.0):
            steps += 1
            assert steps < 1000
    finally:
        engine.close()
    config = json.loads((ENGINE / "config.json").read_text(encoding="utf-8"))
    cores = len(os.sched_getaffinity(0))
    tokens = option or chunk.tokens_per_step(config, cores, chunk.multiplies_integers(), RUNNING)
    assert steps == -(-len(PROMPT) // tokens)
