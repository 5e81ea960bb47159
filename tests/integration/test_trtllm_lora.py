"""LoRA adapters on compiled engines, on the stand-in. Apart: their tensors take PyTorch, which imports slowly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from inflight.engines.base import Capability, EngineRefusal
from tests.doubles.stand_in import ids, request, run, stand_in

PROMPT = [11, 12, 13, 14]


@pytest.mark.full
def test_lora_weights_travel_once_and_again_after_an_eviction(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with stand_in(monkeypatch, tmp_path, lora_slots=1) as double:
        check(double, tmp_path)


def check(double: Any, tmp_path: Path) -> None:
    adapters = tmp_path / "adapters"
    for number, name in enumerate(("red", "blue"), 1):
        (adapters / name).mkdir(parents=True)
        np.save(adapters / name / "model.lora_weights.npy", np.full((4, 8), number, dtype=np.float16))
        np.save(adapters / name / "model.lora_config.npy", np.zeros((4, 3), dtype=np.int32))
    (adapters / "raw").mkdir()
    engine: Any = double.engine(double.folder(plugin_config={"lora_plugin": "auto"}), lora_dir=str(adapters))
    assert Capability.LORA in engine.info.capabilities
    sent: list[bool] = []
    enqueue = engine._executor.enqueue_request

    def spy(made: Any) -> Any:
        sent.append(made.lora_config is not None and made.lora_config.weights is not None)
        return enqueue(made)

    engine._executor.enqueue_request = spy
    texts = {}
    for request_id, name in enumerate(("red", "red", "blue", "red"), 1):
        (outputs,) = run(engine, request(request_id, PROMPT, lora_name=name)).values()
        texts.setdefault(name, set()).add(tuple(ids(outputs)))
    assert sent == [True, False, True, False, True], "the evicted adapter's weights were sent again"
    assert [len(found) for found in texts.values()] == [1, 1]
    assert texts["red"] != texts["blue"]
    with pytest.raises(EngineRefusal, match="the adapters of this model are blue, raw, red"):
        engine.add(request(9, PROMPT, lora_name="green"))
    with pytest.raises(EngineRefusal, match="hf_lora_convert"):
        engine.add(request(9, PROMPT, lora_name="raw"))
    with pytest.raises(EngineRefusal):
        engine.add(request(9, PROMPT, lora_name="../red"))
