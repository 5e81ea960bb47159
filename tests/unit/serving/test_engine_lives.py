"""Invariant 9 over an engine's restart: its totals begin at 0 in each life, the metrics go on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inflight.backend.model import Backend
from inflight.engine_process import frames
from inflight.engines.base import Capability, EngineInfo, EngineStats
from inflight.model.parameters import ModelConfig
from inflight.serving.observation import EngineLives
from tests.unit.machines.strategies import budget
from tests.unit.machines.tokenizer_kinds import write_folder

pytestmark = pytest.mark.fast

INFO = EngineInfo(
    name="fake",
    version="1",
    vocab_size=1000,
    max_seq_len=100,
    max_running=4,
    block_size=16,
    blocks_total=0,
    stop_token_ids=(1,),
    capabilities=frozenset({Capability.SPECULATIVE}),
)


class Page:
    """A metrics page: what Triton would show."""

    def __init__(self) -> None:
        self.values: dict[tuple[str, str], float] = {}

    def add(self, name: str, labels: Mapping[str, str], amount: float) -> None:
        """Increase a counter."""
        key = (name, next(iter(labels.values()), ""))
        self.values[key] = self.values.get(key, 0.0) + amount

    def set(self, name: str, labels: Mapping[str, str], value: float) -> None:
        """Set a gauge."""
        self.values[name, next(iter(labels.values()), "")] = value


def outputs(reused: int | None, drafted: int | None = 0, accepted: int = 0, used: int = 0) -> frames.Outputs:
    stats = EngineStats(
        blocks_used=used, reused_tokens_total=reused, draft_tokens_total=drafted, accepted_tokens_total=accepted
    )
    return frames.Outputs([], stats)


@pytest.fixture
def backend(tmp_path: Path) -> Backend:
    """One whose engine never starts: the test says what it says."""
    write_folder(tmp_path / "engine", "byte_level")
    return Backend(ModelConfig(engine="simulated"), tmp_path)


def test_a_life_that_follows_counts_on_from_the_one_before(backend: Backend) -> None:
    page, link = Page(), Any
    backend.export_metrics(page)
    counters = [
        ("inflight_prefix_cache_hit_tokens_total", ""),
        ("inflight_speculative_tokens_total", "draft"),
        ("inflight_speculative_tokens_total", "accepted"),
    ]

    def counted() -> list[float]:
        backend._observation.flush()
        return [page.values[key] for key in counters]

    backend.on_engine_up(link, INFO)  # type: ignore[arg-type]
    backend.on_outputs(outputs(400, 50, 20))
    backend.on_outputs(outputs(1000, 100, 40, used=7))
    assert counted() == [1000, 100, 40]
    backend.on_engine_down("the engine was lost")
    assert counted() == [1000, 100, 40]
    assert page.values["nv_trt_llm_kv_cache_block_metrics", "used"] == 0
    backend.on_outputs(outputs(1001, 101, 41))  # read before the link was closed, and nobody's any more
    backend.on_engine_up(link, INFO)  # type: ignore[arg-type]
    assert counted() == [1000, 100, 40]
    backend.on_outputs(outputs(900, 10, 4))
    assert counted() == [1900, 110, 44]
    backend.on_outputs(outputs(1300, 10, 4))
    assert counted() == [2300, 110, 44]


def test_a_life_that_ends_between_two_flushes_is_counted(backend: Backend) -> None:
    page = Page()
    backend.export_metrics(page)
    for reused in (300, 500, 200):
        backend.on_engine_up(Any, INFO)  # type: ignore[arg-type]
        backend.on_outputs(outputs(reused))
        backend.on_engine_down("the engine was lost")
    backend._observation.flush()
    assert page.values["inflight_prefix_cache_hit_tokens_total", ""] == 1000


def test_what_the_engine_does_not_know_is_not_there(backend: Backend) -> None:
    """Neither before its first word nor after its end."""
    page = Page()
    backend.export_metrics(page)

    def shown() -> set[str]:
        backend._observation.flush()
        return {name for name, _ in page.values}

    unknown = {"inflight_prefix_cache_hit_tokens_total", "inflight_speculative_tokens_total"}
    backend.on_engine_up(Any, INFO)  # type: ignore[arg-type]
    assert not unknown & shown()
    backend.on_outputs(outputs(None, None))
    assert not unknown & shown()
    backend.on_engine_down("the engine was lost")
    assert not unknown & shown()


_COUNTS = st.none() | st.integers(0, 10)
_LIVES = st.lists(st.lists(st.tuples(_COUNTS, _COUNTS, st.integers(0, 10)), max_size=4), max_size=5)


@given(_LIVES)
@budget(200)
def test_totals_never_fall_and_are_the_sum_of_the_lives(lives: list[list[tuple[Any, Any, int]]]) -> None:
    known, before, expected = EngineLives(), EngineStats(), [0, 0, 0]
    for life in lives:
        known.began()
        totals: list[int | None] = [None, None, 0]
        for growths in life:
            totals = [
                total if growth is None else (total or 0) + growth
                for total, growth in zip(totals, growths, strict=True)
            ]
            known.said(
                EngineStats(
                    blocks_used=3,
                    reused_tokens_total=totals[0],
                    draft_tokens_total=totals[1],
                    accepted_tokens_total=totals[2] or 0,
                )
            )
            now = known.stats()
            for name in ("reused_tokens_total", "draft_tokens_total", "accepted_tokens_total"):
                assert (getattr(now, name) or 0) >= (getattr(before, name) or 0)
            before = now
        known.ended()
        assert known.stats().blocks_used == 0
        expected = [sum_ + (total or 0) for sum_, total in zip(expected, totals, strict=True)]
    stats = known.stats()
    found = [stats.reused_tokens_total or 0, stats.draft_tokens_total or 0, stats.accepted_tokens_total]
    assert found == expected
