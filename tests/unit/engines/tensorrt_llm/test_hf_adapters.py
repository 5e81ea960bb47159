"""LoRA adapters in Hugging Face's form on the PyTorch flow, on the stand-in: they act, and a damaged one ends its own
request, where TensorRT-LLM's worker would end for everybody.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from inflight.engines.base import EngineRefusal
from tests.doubles.hf_adapters import write_hf_adapter, write_tensors
from tests.doubles.stand_in import Checkpoint, expected, ids, request, run

PROMPT = [11, 12, 13, 14]


@pytest.mark.fast
@pytest.mark.parametrize("profile", ["1.2", "1.3"])
def test_adapters_act(checkpoint: Checkpoint, profile: str, tmp_path: Path) -> None:
    """Without a LoraConfig at load LLM answers with the bare model, and says nothing."""
    lora = tmp_path / "lora"
    write_hf_adapter(lora / "blue", ("o_proj", "down_proj"), rank=128)
    write_hf_adapter(lora / "red")
    engine = checkpoint(profile, lora_dir=str(lora))
    for number, name in enumerate(("red", "blue"), 1):
        (outputs,) = run(engine, request(number, PROMPT, lora_name=name)).values()
        assert ids(outputs) == expected(PROMPT, 8, adapter=number)
    config = engine._llm._kwargs["lora_config"]
    assert config.max_lora_rank == 128
    assert config.lora_target_modules == ["attn_dense", "attn_k", "attn_q", "attn_v", "mlp_4h_to_h"]


Q_PROJ = "base_model.model.model.layers.0.self_attn.q_proj.lora_{}.weight"
EXPERTS = "base_model.model.model.layers.0.mlp.experts.lora_{}.weight"
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
DAMAGES: dict[str, Callable[[Path], object]] = {
    "no config": lambda bad: (bad / CONFIG).unlink(),
    "no weights": lambda bad: (bad / WEIGHTS).unlink(),
    "no JSON": lambda bad: (bad / CONFIG).write_bytes(b"\xff{"),
    "no rank": lambda bad: (bad / CONFIG).write_text('{"r": "8"}'),
    "cut off": lambda bad: (bad / WEIGHTS).write_bytes((bad / WEIGHTS).read_bytes()[:-100]),
    "no header": lambda bad: (bad / WEIGHTS).write_bytes(b"\xff" * 200),
    "other rank": lambda bad: write_tensors(bad / WEIGHTS, {Q_PROJ.format("A"): [4, 64], Q_PROJ.format("B"): [64, 4]}),
    "one matrix": lambda bad: write_tensors(bad / WEIGHTS, {Q_PROJ.format("A"): [8, 64]}),
    "unknown module": lambda bad: write_tensors(
        bad / WEIGHTS, {EXPERTS.format("A"): [8, 64], EXPERTS.format("B"): [64, 8]}
    ),
    "rank too large": lambda bad: write_hf_adapter(bad, rank=256),
    "module not loaded": lambda bad: write_hf_adapter(bad, ("gate_proj",)),
    "a layer of its own": lambda bad: write_hf_adapter(bad, modules_to_save=["lm_head"]),
}


@pytest.mark.fast
def test_a_damaged_adapter_ends_its_request_and_not_the_worker(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """The worker catches nothing that it trips over in one, and ends for everybody."""
    lora = tmp_path / "lora"
    write_hf_adapter(lora / "red")
    engine = checkpoint(lora_dir=str(lora))
    for number, (kind, damage) in enumerate(DAMAGES.items()):
        bad = write_hf_adapter(lora / f"bad{number}")
        damage(bad)
        with pytest.raises(EngineRefusal, match=f"names the adapter '{bad.name}'") as refusal:
            engine.add(request(1, PROMPT, lora_name=bad.name))
        assert (refusal.value.parameter, kind) == ("lora_name", kind)
        assert str(tmp_path) not in str(refusal.value)
    assert run(engine, request(2, PROMPT, lora_name="red"))


def worker_loads(adapter: Any, config: Any) -> None:
    """What LLM's worker does with an adapter that was let through. Raises what would end it."""
    from trtllm_double.llm_adapters import load_adapter  # type: ignore[import-not-found]

    load_adapter(adapter, config)


@pytest.mark.parametrize(
    "count", [pytest.param(100, marks=pytest.mark.fast), pytest.param(2000, marks=pytest.mark.full)]
)
def test_many_damaged_adapters(checkpoint: Checkpoint, count: int, tmp_path: Path) -> None:
    """Bytes of an adapter's two files changed, cut out or put in: refused, or harmless; the engine serves on."""
    chance = random.Random(13)
    lora = tmp_path / "lora"
    write_hf_adapter(lora / "red")
    engine = checkpoint(lora_dir=str(lora))
    whole = {name: (lora / "red" / name).read_bytes() for name in (CONFIG, WEIGHTS)}
    bad = lora / "bad"
    bad.mkdir()
    refused = 0
    for _ in range(count):
        for name, content in whole.items():
            (bad / name).write_bytes(content)
        name = chance.choice((CONFIG, WEIGHTS))
        content = bytearray(whole[name])
        header = len(content) if name == CONFIG else 700
        begin, length = chance.randrange(header), chance.randrange(1, 30)
        content[begin : begin + chance.choice((0, length))] = chance.randbytes(chance.choice((0, length)))
        (bad / name).write_bytes(content)
        try:
            engine._adapter("bad")
            worker_loads(engine._adapters.pop("bad"), engine._llm._kwargs["lora_config"])
        except EngineRefusal:
            refused += 1
    assert refused > count // 2
    assert run(engine, request(2, PROMPT, lora_name="red"))


@pytest.mark.fast
def test_adapters_that_come_later(checkpoint: Checkpoint, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "lora").mkdir()
    engine = checkpoint(lora_dir=str(tmp_path / "lora"))
    assert "holds no adapter that can be read" in caplog.text
    write_hf_adapter(tmp_path / "lora" / "red")
    (outputs,) = run(engine, request(1, PROMPT, lora_name="red")).values()
    assert ids(outputs) == expected(PROMPT, 8, adapter=1)
