"""Every cell of docs/engines.md, asked of the simulated engine and, on the stand-in, of each TensorRT-LLM release."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from inflight.engines.base import Capability, Engine
from inflight.engines.simulated.engine import SimulatedEngine
from tests.doubles.adapters import write_adapter
from tests.doubles.folders import write_checkpoint
from tests.doubles.hf_adapters import write_hf_adapter
from tests.doubles.stand_in import StandIn, ids, request, run, stand_in
from tests.harness.capability_cells import Asker, cells, check_column
from tests.unit.machines.tokenizer_kinds import write_folder

pytestmark = pytest.mark.fast

VOCABULARY = 412  # every token can be decoded
TENSORRT_LLM = [column for column in cells() if column.startswith(("engine", "checkpoint"))]


def test_the_table_has_all_columns() -> None:
    assert set(cells()) - set(TENSORRT_LLM) == {"openvino", "simulated", "vllm"}
    assert len(TENSORRT_LLM) == 8


def test_simulated(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "engine")
    engine = SimulatedEngine(folder, {"real_time": False}, 0)

    def holds(capability: Capability, engine: Engine) -> bool:
        if capability is Capability.BATCH_INVARIANT:
            alone = run(engine, request(1, [5, 6, 7]))
            (beside, _) = run(engine, request(2, [5, 6, 7]), request(3, [9] * 50)).values()
            assert ids(beside) == ids(alone[(1, 0)])
        if capability is Capability.SPECULATIVE:
            run(engine, request(4, [5, 6, 7], max_tokens=20))
            assert (capability in engine.info.capabilities) == (engine.stats().accepted_tokens_total > 0)
        return capability in engine.info.capabilities

    def configured(capability: Capability) -> Engine:
        assert capability is Capability.SPECULATIVE
        return SimulatedEngine(folder, {"real_time": False, "draft_tokens": 3, "acceptance_rate": 0.9}, 0)

    assert check_column("simulated", Asker(folder), engine, configured, holds) == []


class Column:
    """The engines of one column: as they are, and with the model parameter that a capability takes."""

    def __init__(self, double: StandIn, column: str, root: Path) -> None:
        self._double, self._root = double, root
        self.checkpoint = column.startswith("checkpoint")
        self.plain: Any = self.make()

    def make(self, build: dict[str, Any] | None = None, **options: Any) -> Any:
        if self.checkpoint:
            folder = write_checkpoint(self._root / "checkpoint", self._double.tokenizer, VOCABULARY)
        else:
            folder = self._double.folder("engine", with_manifest=False, vocab_size=VOCABULARY, **(build or {}))
        return self._double.engine(folder, **options)

    def configured(self, capability: Capability) -> Engine:
        made: Engine
        if capability is Capability.BEAM_SEARCH:
            made = self.make({"max_beam_width": 2}, max_beam_width=2)
        elif capability is Capability.LORA:
            made = self.make({"plugin_config": {"lora_plugin": "auto"}}, lora_dir=str(self._adapters()))
        else:
            assert capability is Capability.SPECULATIVE
            made = self.make(
                {"speculative_decoding_mode": 8, "max_draft_len": 15},
                **({"speculative": "ngram"} if self.checkpoint else {}),
            )
        return made

    def _adapters(self) -> Path:
        write = write_hf_adapter if self.checkpoint else write_adapter
        return write(self._root / "adapters" / "red").parent

    def holds(self, capability: Capability, engine: Any) -> bool:
        """What the engine says, and what shows it: its configuration, reused blocks."""
        says = capability in engine.info.capabilities
        if capability is Capability.PREFIX_CACHE:
            assert says == self._reuses(engine)
            without = self.make(enable_kv_cache_reuse=False)
            assert (capability in without.info.capabilities, self._reuses(without)) == (False, False)
        elif capability is Capability.NEVER_PREEMPTS:
            evicts = self.make(batch_scheduler_policy="max_utilization")
            assert capability not in evicts.info.capabilities
            if not self.checkpoint:
                policies = [each._executor._config.scheduler_config for each in (engine, evicts)]
                names = [policy.capacity_scheduler_policy.name for policy in policies]
                assert names == ["GUARANTEED_NO_EVICT", "MAX_UTILIZATION"]
        elif capability is Capability.SPECULATIVE:
            if self.checkpoint:
                assert says == ("speculative_config" in engine._llm._kwargs)
            else:
                decoding = engine._executor._config.decoding_config
                assert says == (decoding is not None and decoding.decoding_mode.name == "Lookahead")
        return says

    def _reuses(self, engine: Any) -> bool:
        if self.checkpoint:
            return bool(engine._llm._kwargs["kv_cache_config"].enable_block_reuse)
        prompt = list(range(2, 102))
        for request_id in (901, 902):
            run(engine, request(request_id, prompt, max_tokens=30))
        return bool(engine.stats().reused_tokens_total)


@pytest.mark.parametrize("column", TENSORRT_LLM)
def test_tensorrt_llm(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, column: str) -> None:
    with stand_in(monkeypatch, tmp_path, column.split()[1]) as double:
        engines = Column(double, column, tmp_path)
        asker = Asker(double.tokenizer)
        assert check_column(column, asker, engines.plain, engines.configured, engines.holds) == []
