"""Every cell of the column openvino of docs/engines.md, asked of the real engine."""

from __future__ import annotations

import pytest

from inflight.engines.base import Capability, Engine
from inflight.engines.openvino.engine import OpenVinoEngine
from inflight_tools.common.layout import ENGINE
from tests.doubles.stand_in import collect, request
from tests.harness.capability_cells import Asker, check_column

pytestmark = pytest.mark.server

STEP = 64  # tokens
PROMPT = list(range(1000, 1000 + 8 * STEP + 5))


def steps_before_an_answer(engine: Engine, request_id: int) -> int:
    """Steps until the first token of an answer to `PROMPT`."""
    engine.add(request(request_id, PROMPT, max_tokens=2, stop_token_ids=()))
    steps = 1
    while not engine.step(0.0):
        steps += 1
        assert steps < 1000
    collect(engine, {(request_id, 0)})
    return steps


def tokens_a_step(engine: Engine, request_id: int) -> float:
    """Of an answer to a prompt that repeats itself."""
    engine.add(request(request_id, [1000, 1001, 1002, 1003] * 16, max_tokens=64, stop_token_ids=()))
    tokens, steps = 0, 0
    while tokens < 64:
        tokens += sum(len(output.token_ids) for output in engine.step(0.0))
        steps += 1
        assert steps < 1000
    return tokens / steps


def test_openvino() -> None:
    options = {"max_seq_len": 1024, "kv_cache_gb": 0.25, "max_batched_tokens": STEP}
    engine = OpenVinoEngine(ENGINE, options, 4)

    def holds(capability: Capability, engine: Engine) -> bool:
        if capability is Capability.PREFIX_CACHE:
            first, again = (steps_before_an_answer(engine, 900 + number) for number in range(2))
            assert (first >= len(PROMPT) // STEP, again <= 2) == (True, True), (first, again)
        if capability is Capability.SPECULATIVE:
            assert (tokens_a_step(engine, 950) > 1.5) == (capability in engine.info.capabilities)
        return capability in engine.info.capabilities

    def configured(capability: Capability) -> Engine:
        assert capability is Capability.SPECULATIVE, f"no option of the OpenVINO engine gives {capability.value}"
        return OpenVinoEngine(ENGINE, {**options, "speculative": "ngram"}, 4)

    try:
        assert check_column("openvino", Asker(ENGINE), engine, configured, holds) == []
    finally:
        engine.close()
