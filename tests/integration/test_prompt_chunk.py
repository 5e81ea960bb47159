"""A long prompt is computed in the chunks that nobody set, and in those that somebody did."""

from __future__ import annotations

import json
import os
from typing import Any

import pytest

from inflight import processor
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
    tokens = option or chunk.tokens_per_step(config, cores, processor.multiplies_integers(), RUNNING)
    assert steps == -(-len(PROMPT) // tokens)


def test_prompts_are_computed_in_the_order_in_which_they_came() -> None:
    """Those of whole blocks as well: that their blocks are computed beforehand took them their place."""
    options: dict[str, Any] = {"max_seq_len": 1024, "kv_cache_gb": 0.25, "max_batched_tokens": 128}
    engine = OpenVinoEngine(ENGINE, options, 8)
    first: dict[int, int] = {}  # the step in which it had its first token
    try:
        for number in range(6):
            engine.add(request(number, list(range(1000 * number + 1000, 1000 * number + 1128)), max_tokens=32))
        for step in range(100):
            for output in engine.step(0.0):
                first.setdefault(output.request_id, step)
    finally:
        engine.close()
    assert list(first) == list(range(6))
    assert first[0] <= 2, first
    assert first[5] >= first[0] + 4, first
