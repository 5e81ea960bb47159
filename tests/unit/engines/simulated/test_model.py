"""What the simulated engine models: KV blocks and their reuse, admission, drafts, and the time a step takes."""

from __future__ import annotations

import hashlib
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from inflight.engines.base import Capability, EngineRefusal, EngineRequest, FinishReason, SamplingParams
from inflight.engines.simulated.batch import InflightBatch
from inflight.engines.simulated.cache import BlockPool, Lease, block_keys
from inflight.engines.simulated.cost import SimulatedOptions, Work, capabilities, step_seconds
from inflight.engines.simulated.tokens import Answer, Vocabulary
from tests.unit.machines.strategies import budget, engine_request

pytestmark = pytest.mark.fast

WORDS = Vocabulary(range(2, 1000), 1)
SIZE = 8


class HandClock:
    """Time that passes only when somebody sleeps."""

    def __init__(self) -> None:
        self.seconds = 100.0

    def now(self) -> float:
        return self.seconds

    def sleep(self, seconds: float) -> None:
        self.seconds += seconds


def batch_of(clock: HandClock | None = None, places: int = 8, **options: Any) -> InflightBatch:
    values = {"block_size": SIZE, "blocks": 64, "real_time": clock is not None, **options}
    return InflightBatch(WORDS, SimulatedOptions(**values), places, clock or HandClock())


def answers(batch: InflightBatch) -> dict[int, list[int]]:
    """Step until all is quiet; the tokens of each request's first sequence."""
    found: dict[int, list[int]] = {}
    while batch.stats().blocks_used or batch._waiting:
        for output in batch.step(0.0):
            if not output.sequence_index:
                found.setdefault(output.request_id, []).extend(output.token_ids)
    return found


def salted(request_id: int, salt: str | None, prompt: list[int], max_tokens: int = 4) -> EngineRequest:
    sampling = SamplingParams(max_tokens=max_tokens)
    return EngineRequest(request_id=request_id, token_ids=prompt, sampling=sampling, cache_salt=salt)


def test_answers_are_the_walk_of_one_generator_however_long() -> None:
    request = engine_request(1, token_ids=[3, 4], max_tokens=700)
    material = repr(([3, 4], 0, 0)).encode()
    place = int.from_bytes(hashlib.sha256(material).digest()[:8], "little")
    expected = []
    for _ in range(700):
        place = (place * 6364136223846793005 + 1442695040888963407) % 2**64
        expected.append(int(WORDS.tokens[(place >> 33) % len(WORDS.tokens)]))
    answer = Answer(request, 0, WORDS, 0)
    assert list(answer.ids) == expected
    assert answer.first(300) == expected[:300]


def test_a_stop_token_counts_only_after_min_tokens() -> None:
    plain = list(Answer(engine_request(1, max_tokens=900), 0, WORDS, 0).ids)
    stop = plain[300]
    places = [place + 1 for place, token in enumerate(plain) if token == stop]
    for least in (0, places[0], 300):
        answer = Answer(engine_request(1, max_tokens=900, min_tokens=least, stop_token_ids=(stop,)), 0, WORDS, 0)
        after = [place for place in places if place > least]
        assert (answer.length, answer.finish) == (
            (after[0], FinishReason.STOP) if after else (900, FinishReason.LENGTH)
        )


def test_equal_beginnings_are_read_once() -> None:
    batch = batch_of(chunk_tokens=SIZE)
    prompt = list(range(10, 10 + 4 * SIZE))
    batch.add(salted(1, None, prompt))
    assert [len(batch.step(0.0)) for _ in range(4)] == [0, 0, 0, 1]
    batch.add(salted(2, None, [*prompt[: 3 * SIZE], 5, 6]))
    assert {output.request_id for output in batch.step(0.0)} == {1, 2}
    assert batch.stats().reused_tokens_total == 3 * SIZE
    # 4 blocks of the prompt and one of the answer, and one of the second: three of its four are the same.
    assert batch.stats().blocks_used == 4 + 1 + 1


def test_who_asks_is_told_how_many_blocks_were_reused_before_the_first_token() -> None:
    batch = batch_of()
    prompt = list(range(3 * SIZE))
    found = []
    for request_id in (1, 2, 3):
        asked = engine_request(request_id, token_ids=prompt, max_tokens=4, num_sequences=2)
        batch.add(msgspec.structs.replace(asked, perf_metrics=request_id < 3))
        outputs = [output for _ in range(12) for output in batch.step(0.0)]
        told = [output for output in outputs if output.reused_blocks is not None]
        assert not told or outputs.index(told[0]) < next(i for i, output in enumerate(outputs) if output.token_ids)
        found.append([(output.sequence_index, output.reused_blocks) for output in told])
    assert found == [[(0, 0)], [(0, 3)], []]


def test_a_prompt_that_is_wholly_known_still_computes_its_last_token() -> None:
    batch = batch_of(chunk_tokens=SIZE)
    for request_id in (1, 2):
        batch.add(salted(request_id, None, list(range(3 * SIZE))))
        answers(batch)
    assert batch.stats().reused_tokens_total == 3 * SIZE - 1


@pytest.mark.parametrize(
    ("salts", "options", "reused"),
    [
        (("a", "a"), {}, 2 * SIZE),
        (("a", "b"), {}, 0),
        (("a", None), {}, 0),
        ((None, None), {"prefix_caching": False}, 0),
    ],
)
def test_reuse_stays_among_equal_salts(salts: tuple[str | None, ...], options: dict[str, Any], reused: int) -> None:
    batch = batch_of(**options)
    for request_id, salt in enumerate(salts):
        batch.add(salted(request_id, salt, list(range(2 * SIZE + 3))))
        answers(batch)
    assert batch.stats().reused_tokens_total == reused


def test_the_next_turn_of_a_chat_reuses_the_answer() -> None:
    batch = batch_of()
    prompt = list(range(SIZE + 3))
    batch.add(salted(1, None, prompt, max_tokens=2 * SIZE))
    answer = answers(batch)[1]
    batch.add(salted(2, None, [*prompt, *answer, 7, 7]))
    answers(batch)
    # All but the answer's last token were computed; whole blocks count.
    assert batch.stats().reused_tokens_total == (len(prompt) + len(answer) - 1) // SIZE * SIZE


def test_the_least_recently_used_blocks_give_way() -> None:
    batch = batch_of(blocks=6)
    first, second, third = ([start] * (2 * SIZE + 1) for start in (3, 4, 5))
    for request_id, prompt in enumerate([first, second, first, third]):  # the third does not fit beside both others
        batch.add(salted(request_id, None, prompt, max_tokens=1))
        answers(batch)
    before = batch.stats().reused_tokens_total
    assert before == 2 * SIZE
    batch.add(salted(8, None, first, max_tokens=1))
    answers(batch)
    assert batch.stats().reused_tokens_total == 4 * SIZE
    batch.add(salted(9, None, second, max_tokens=1))
    answers(batch)
    assert batch.stats().reused_tokens_total < 6 * SIZE


def test_sequences_of_one_request_share_its_prompt() -> None:
    batch = batch_of(chunk_tokens=SIZE)
    batch.add(engine_request(1, token_ids=list(range(3 * SIZE)), max_tokens=4, num_sequences=3))
    assert [len(batch.step(0.0)) for _ in range(3)] == [0, 0, 3]
    assert batch.stats().blocks_used == 3 + 3
    assert batch.stats().reused_tokens_total == 0


def test_nothing_starts_that_might_not_fit_and_nothing_overtakes() -> None:
    batch = batch_of(blocks=10)
    for request_id, length in ((1, 5 * SIZE), (2, 6 * SIZE), (3, SIZE)):
        batch.add(salted(request_id, None, [request_id] * 2, max_tokens=length - 2))
    batch.step(0.0)
    assert len(batch._waiting) == 2
    assert set(answers(batch)) == {1, 2, 3}
    with pytest.raises(EngineRefusal) as refused:
        batch.add(salted(4, None, [1], max_tokens=10 * SIZE))
    assert refused.value.parameter == "max_tokens"
    assert batch.step(0.0) == []


@pytest.mark.parametrize("rate", [0.0, 0.5, 1.0])
def test_drafts_change_the_pace_and_not_the_tokens(rate: float) -> None:
    plain, drafting = batch_of(), batch_of(draft_tokens=3, acceptance_rate=rate)
    for batch in (plain, drafting):
        batch.add(engine_request(1, token_ids=[9, 8, 7], max_tokens=400))
    expected = answers(plain)
    steps, found = 0, []
    while outputs := drafting.step(0.0):
        steps += 1
        found += outputs[0].token_ids
        assert len(outputs[0].token_ids) <= 4
    assert found == expected[1]
    stats = drafting.stats()
    assert stats.accepted_tokens_total == 400 - steps
    assert stats.draft_tokens_total in range(3 * (steps - 4) + 1, 3 * steps + 1)
    expected_steps = {0.0: 400, 0.5: 400 / 1.875, 1.0: 100}[rate]  # (1 − rate⁴) / (1 − rate) tokens a step
    assert steps == pytest.approx(expected_steps, rel=0.1)


def test_capabilities_follow_the_options() -> None:
    assert Capability.PREFIX_CACHE in capabilities(SimulatedOptions())
    assert Capability.PREFIX_CACHE not in capabilities(SimulatedOptions(prefix_caching=False))
    assert Capability.SPECULATIVE not in capabilities(SimulatedOptions())
    assert Capability.SPECULATIVE in capabilities(SimulatedOptions(draft_tokens=1))


def test_a_step_takes_the_longer_of_memory_and_arithmetic_and_what_comes_on_top() -> None:
    work = Work(prefilled=1000, decoding=10, verified=10, context=20_000, pairs=500_000)
    linear = SimulatedOptions(step_ms=4.0, prefill_us_per_token=3.0, decode_us_per_sequence=50.0)
    assert step_seconds(linear, work) == pytest.approx(4e-3 + 3e-3 + 0.5e-3)
    roofline = SimulatedOptions(
        step_ms=4.0, prefill_us_per_token=0.0, decode_us_per_sequence=0.0, context_ns_per_token=100.0,
        compute_us_per_token=5.0, attention_ps_per_pair=2000.0, overhead_ms=1.0,
    )  # fmt: skip
    assert step_seconds(roofline, work) == pytest.approx(max(4e-3 + 2e-3, 1010 * 5e-6 + 1e-3) + 1e-3)
    assert step_seconds(roofline, Work(decoding=10, verified=10, context=20_000)) == pytest.approx(7e-3)


def test_modelled_time_passes_on_the_clock() -> None:
    clock = HandClock()
    costs: dict[str, Any] = {"step_ms": 10.0, "prefill_us_per_token": 100.0, "decode_us_per_sequence": 1000.0}
    batch = batch_of(clock, **costs, context_ns_per_token=1e6, chunk_tokens=30, blocks=0)
    batch.add(engine_request(1, prompt_tokens=50, max_tokens=2))
    expected = [10 + 3.0, 10 + 2.0 + 1.0 + 50.0, 10 + 1.0 + 51.0]  # milliseconds
    for milliseconds in expected:
        began = clock.now()
        batch.step(0.0)
        assert clock.now() - began == pytest.approx(milliseconds / 1000)
    before = clock.now()
    assert batch.step(0.0) == []
    assert clock.now() == before


@st.composite
def prompts(draw: st.DrawFn) -> list[int]:
    """Short prompts that often begin alike."""
    return draw(st.sampled_from([1, 2])) * [5] + draw(st.lists(st.integers(0, 1), min_size=1, max_size=9))


@given(st.lists(st.tuples(prompts(), st.integers(0, 6), st.booleans(), st.booleans()), min_size=1, max_size=12))
@budget(60)
def test_blocks_are_conserved(visits: list[tuple[list[int], int, bool, bool]]) -> None:
    """Any order of opening, growing, publishing and closing: what is held is what the leases hold, and all fits."""
    pool = BlockPool(30)
    leases: list[Lease] = []
    for prompt, more, publishes, leaves in visits:
        lease = pool.open(block_keys(prompt, 2, 0), -(-len(prompt) // 2))
        assert lease.blocks == -(-len(prompt) // 2)
        pool.grow(lease, more)
        if publishes:
            pool.publish(lease)
        leases.append(lease)
        if leaves:
            pool.close(leases.pop(0))
        while sum(each.blocks for each in leases) > 15:  # a visit takes at most 12 of the other 15
            pool.close(leases.pop(0))
        shared = {key for each in leases for key in each.keys[: each.held]}
        assert pool.used == len(shared) + sum(each.private for each in leases)
        assert pool.used + pool.idle <= 30
    for lease in leases:
        pool.close(lease)
    assert pool.used == 0
