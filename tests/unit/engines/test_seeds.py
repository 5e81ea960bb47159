"""Seeds of 64 bits on engines that take fewer: equal ones stay equal, others differ."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inflight.engines.base import EngineRequest, SamplingParams
from inflight.engines.openvino.sequence import generation_config
from inflight.engines.simulated.tokens import Answer, Vocabulary
from inflight.engines.vllm.sampling import sampling_values
from tests.unit.machines.strategies import budget

pytestmark = pytest.mark.fast

EDGES = [0, 1, 2, 2**31, 2**32 - 1, 2**32, 2**32 + 1, 2**33, 2**62, 2**63 - 1, 2**63, 2**63 + 1, 2**64 - 2, 2**64 - 1]
SEEDS = st.sampled_from(EDGES) | st.integers(0, 2**64 - 1)


def folded(seed: int, bits: int, index: int = 0) -> int:
    return SamplingParams(max_tokens=1, seed=seed).folded_seed_of(index, bits)


def asked(seed: int) -> EngineRequest:
    sampling = SamplingParams(max_tokens=40, temperature=1.0, seed=seed, num_sequences=3)
    return EngineRequest(request_id=1, token_ids=[3, 4], sampling=sampling)


@pytest.mark.parametrize("bits", [32, 63])
def test_the_edges_of_64_bits_differ(bits: int) -> None:
    found = [folded(seed, bits) for seed in EDGES]
    assert len(set(found)) == len(EDGES)
    assert len({value % 2**32 for value in found}) == len(EDGES), "torch looks at no more on a CPU"
    assert all(0 <= value < 2**bits for value in found)


def test_what_fits_stays_what_it_is() -> None:
    for seed in (0, 1, 77, 2**32 - 1):
        assert folded(seed, 32) == folded(seed, 63) == seed


@given(SEEDS, SEEDS)
@budget(300)
def test_seeds_that_share_a_half_differ(one: int, other: int) -> None:
    same_high = (one >> 32 << 32) | other % 2**32
    same_low = (other >> 32 << 32) | one % 2**32
    for twin in (same_high, same_low):
        assert (folded(one, 32) == folded(twin, 32)) == (one == twin)


def test_random_seeds_meet_no_more_often_than_chance() -> None:
    chance = random.Random(0)
    found = {folded(chance.getrandbits(64), 32) for _ in range(20_000)}
    assert len(found) >= 20_000 - 3  # 0.05 pairs are expected


def test_every_engine_tells_them_apart() -> None:
    vocabulary = Vocabulary(range(10, 500), 1)
    answers = {tuple(Answer(asked(seed), index, vocabulary, 0).ids) for seed in EDGES for index in range(3)}
    assert len(answers) == 3 * len(EDGES), "seed 0 is one as well"
    openvino = {generation_config(asked(seed), 0, frozenset({2}))[0].rng_seed for seed in EDGES}
    assert len({seed % 2**32 for seed in openvino}) == len(EDGES)
    vllm = {sampling_values(asked(seed), 0, (2,))["seed"] for seed in EDGES}
    assert len({seed % 2**32 for seed in vllm}) == len(EDGES)
    assert max(vllm) < 2**63
