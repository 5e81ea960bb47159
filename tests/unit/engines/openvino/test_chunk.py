"""How long a step is that nobody set: by the model and the processor, within bounds."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inflight.engines.openvino.chunk import (
    CUT,
    CUT_ROOM,
    LEAST,
    MOST,
    PROMPT_ROOM,
    ROUND,
    tokens_per_step,
)
from tests.unit.model.test_operations import LLAMA_8B, QWEN3_30B_A3B, SMOLLM2

pytestmark = pytest.mark.fast


def test_a_large_model_on_few_cores_has_the_least_and_a_small_one_on_many_the_most() -> None:
    assert tokens_per_step(LLAMA_8B, 2, False, 16) == LEAST
    assert tokens_per_step(SMOLLM2, 16, True, 16) == MOST


def test_where_wide_products_are_cut_a_step_has_the_rows_that_cost_least() -> None:
    assert tokens_per_step(LLAMA_8B, 2, False, 16, cut=True) == CUT
    assert tokens_per_step(LLAMA_8B, 2, False, 256, cut=True) == 256 + CUT_ROOM
    assert tokens_per_step(LLAMA_8B, 2, True, 16, cut=True) == tokens_per_step(LLAMA_8B, 2, True, 16)
    assert tokens_per_step(SMOLLM2, 2, False, 16, cut=True) == tokens_per_step(SMOLLM2, 2, False, 16)


@given(cores=st.integers(1, 256), integers=st.booleans(), running=st.integers(1, 2000))
def test_bounds(cores: int, integers: bool, running: int) -> None:
    for config in (LLAMA_8B, SMOLLM2, QWEN3_30B_A3B):
        tokens = tokens_per_step(config, cores, integers, running)
        assert tokens % ROUND == 0
        assert max(LEAST, running + PROMPT_ROOM) <= tokens < max(MOST, running + PROMPT_ROOM) + ROUND
        assert tokens <= tokens_per_step(config, cores + 1, integers, running)
        assert tokens <= tokens_per_step(config, cores, True, running)
