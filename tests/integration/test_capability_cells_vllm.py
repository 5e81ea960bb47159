"""Every cell of the column vllm of docs/engines.md, asked of the real engine in its process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from inflight.engines.base import Capability, Engine
from inflight.engines.spec import WorkerSpec
from inflight_tools.common.layout import MODELS
from tests.doubles.apart import EngineApart
from tests.doubles.stand_in import collect, request
from tests.doubles.vllm import RANK, vllm_python, write_adapter
from tests.harness.capability_cells import Asker, check_column

pytestmark = [pytest.mark.server, pytest.mark.full, pytest.mark.timeout(600)]

MODEL = MODELS / "SmolLM2-135M-Instruct"
OPTIONS = {"kv_cache_gb": 0.25, "max_seq_len": 1024, "enforce_eager": True, "dtype": "float32"}
LENGTH = 400


def grown(engine: Engine, request_id: int, name: str, token: int) -> int:
    """By how much a counter of the engine grows over an answer to `LENGTH` tokens that repeat themselves."""
    before = getattr(engine.stats(), name) or 0
    engine.add(request(request_id, [token, token + 1] * (LENGTH // 2), max_tokens=32, stop_token_ids=()))
    collect(engine, {(request_id, 0)}, 60.0)
    return int(getattr(engine.stats(), name) or 0) - before


def test_vllm(tmp_path: Path) -> None:
    python = str(vllm_python())
    write_adapter(tmp_path / "adapters" / "red", strength=0.2)  # a text known by heart has to change
    made: list[EngineApart] = []

    def engine(**more: Any) -> EngineApart:
        made.append(EngineApart(WorkerSpec("vllm", str(MODEL), {**OPTIONS, **more}, 4, python)))
        return made[-1]

    def configured(capability: Capability) -> Engine:
        return {
            Capability.LORA: lambda: engine(lora_dir=str(tmp_path / "adapters"), max_lora_rank=RANK),
            Capability.SPECULATIVE: lambda: engine(speculative="ngram"),
        }[capability]()

    def holds(capability: Capability, asked: Engine) -> bool:
        does = capability in asked.info.capabilities
        if capability is Capability.PREFIX_CACHE:
            assert grown(asked, 900, "reused_tokens_total", 1000) == 0
            assert (grown(asked, 901, "reused_tokens_total", 1000) > LENGTH // 2) == does
        if capability is Capability.SPECULATIVE:
            assert (grown(asked, 950, "draft_tokens_total", 2000) > 0) == does
        return does

    try:
        assert check_column("vllm", Asker(MODEL), engine(), configured, holds) == []
    finally:
        for each in made:
            each.close()
