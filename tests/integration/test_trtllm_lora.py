"""LoRA adapters on compiled engines, on the stand-in. Apart: their tensors take PyTorch, which imports slowly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from inflight.engines.base import Capability, EngineRefusal
from tests.doubles.adapters import write_adapter
from tests.doubles.stand_in import ids, request, run, stand_in

PROMPT = [11, 12, 13, 14]


@pytest.mark.full
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_lora_weights_travel_once_and_again_after_an_eviction(
    dtype: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As the converter writes them, in each of its types; the engine's is bfloat16."""
    with stand_in(monkeypatch, tmp_path, lora_slots=1) as double:
        check(double, tmp_path, dtype)


def check(double: Any, tmp_path: Path, dtype: str) -> None:
    adapters = tmp_path / "adapters"
    for number, name in enumerate(("red", "blue"), 1):
        write_adapter(adapters / name, number, dtype)
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


@pytest.mark.full
def test_an_adapter_that_the_library_prefetched_is_asked_for_by_its_number(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The library passes over weights under a number that it knows, so ours must be others: "red" would be answered
    by the adapter 1.
    """
    adapters = tmp_path / "adapters"
    for number, name in enumerate(("1", "red", "007"), 1):
        write_adapter(adapters / name, number)
    with stand_in(monkeypatch, tmp_path, lora_slots=9) as double:
        lora = {"plugin_config": {"lora_plugin": "auto"}}
        plain = double.engine(double.folder("plain", **lora), lora_dir=str(adapters))
        wanted = {name: answer(plain, name) for name in ("1", "red")}
        assert wanted["1"] != wanted["red"]
        engine = double.engine(double.folder(**lora), lora_prefetch_dir=str(adapters))
        assert Capability.LORA in engine.info.capabilities
        assert {name: answer(engine, name) for name in ("red", "1")} == wanted


def answer(engine: Any, name: str) -> list[int]:
    (outputs,) = run(engine, request(1, PROMPT, lora_name=name)).values()
    return ids(outputs)
