"""Calibration and verification on a GPU, as far as a machine without one can tell."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from build_engine import cli, devices
from build_engine.errors import UserMistake
from build_engine.tensorrt.reader import Shard
from build_engine.tensorrt.runner import CheckpointCandidate, KvScales, Layer
from inflight_tools.common.tiny_models import write_config

GB = 10**9


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A GPU that nvidia-smi and torch see, with so many bytes free."""
    here: dict[str, Any] = {"usable": True, "free": 80 * GB}
    monkeypatch.setattr(devices, "compute_capabilities", lambda: ["9.0"])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: here["usable"])
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (here["free"], 80 * GB))
    return here


@pytest.mark.fast
def test_a_gpu_that_has_the_room_is_taken(gpu: dict[str, Any]) -> None:
    said: list[str] = []
    assert devices.for_stage("auto") == "auto"
    assert devices.choose("auto", 16 * GB, said.append) == "cuda"
    assert devices.choose("cpu", 16 * GB, said.append) == "cpu"
    assert said == []


@pytest.mark.fast
def test_a_gpu_that_cannot_be_used_is_said(gpu: dict[str, Any]) -> None:
    said: list[str] = []
    gpu["free"] = 17 * GB
    assert devices.choose("auto", 16 * GB, said.append) == "cpu"
    assert "18 GB of its memory are needed and 17 GB are free" in said[-1]
    gpu["usable"] = False
    assert devices.choose("auto", 16 * GB, said.append) == "cpu"
    assert f"torch {torch.__version__} cannot use the GPU" in said[-1]
    with pytest.raises(UserMistake, match="--device cuda: torch"):
        devices.choose("cuda", 16 * GB, said.append)


@pytest.mark.fast
def test_without_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Insisted on, it is refused before any work; else nothing of a build changes, and caches stay valid."""
    monkeypatch.setenv("PATH", os.fspath(tmp_path))
    assert devices.in_spec("auto") == {} == devices.in_spec("cpu")
    model = write_config(tmp_path / "m")
    (model / "model.safetensors").write_bytes(b"")
    (model / "tokenizer.json").write_text("{}", encoding="utf-8")
    for target in ("tensorrt-llm", "hf-quantized", "openvino"):
        words = ["build", str(model), "--target", target, "--quantization", "none", "--device", "cuda"]
        words += ["--stop-after", "checkpoint"] if target == "tensorrt-llm" else []
        assert cli.main([*words, "--output", str(tmp_path / "e")]) == 2
        assert "--device cuda" in capsys.readouterr().err


def candidate() -> CheckpointCandidate:
    """Two ranks of one layer of a Llama with FP8 activations and an FP8 KV cache, random."""
    made = CheckpointCandidate.__new__(CheckpointCandidate)
    hidden, wide, size = 16, 32, 4

    def shard(out: int, into: int) -> Shard:
        return Shard(torch.randn(out, into), None, torch.ones(into), torch.tensor([0.5]), "fp8")

    made.config = {"vocab_size": 24, "norm_epsilon": 1e-5}
    made.ranks, made.heads, made.kv_heads, made.head_size, made.kv_algo = 2, 2, 1, size, "FP8"
    scales = [KvScales(*(torch.tensor([0.1]) for _ in range(3)))] * 2
    layer = Layer(
        input_norm=torch.ones(hidden),
        post_norm=torch.ones(hidden),
        query_norm=torch.ones(size),
        key_norm=torch.ones(size),
        qkv=[shard(16, hidden)] * 2,
        dense=[shard(hidden, 8)] * 2,
        gate=[shard(wide, hidden)] * 2,
        up=[shard(wide, hidden)] * 2,
        down=[shard(hidden, wide)] * 2,
        experts=None,
        kv_scales=scales,
        window=3,
    )
    made.layers = [layer]
    made.embedding, made.final_norm = torch.randn(24, hidden), torch.ones(hidden)
    made.head = [shard(12, hidden)] * 2
    made.inverse_frequencies, made.rope_factor = torch.ones(size // 2), 1.0
    return made


@pytest.mark.full
def test_everything_of_a_checkpoint_moves() -> None:
    """On torch's device without data, which computes with nothing that lies elsewhere, as a GPU would not."""
    reader = candidate()
    held = devices.tensor_bytes(vars(reader))
    assert held > 4 * 24 * 16
    devices.move_attributes(reader, "meta")
    with torch.device("meta"):
        logits = reader.logits(torch.zeros(6, dtype=torch.long))
    assert (logits.device.type, tuple(logits.shape)) == ("meta", (6, 24))
    assert devices.tensor_bytes(vars(reader)) == held


@pytest.mark.full
@pytest.mark.parametrize("name", ["final_norm", "inverse_frequencies", "embedding"])
def test_what_stays_behind_would_be_noticed(name: str) -> None:
    reader = candidate()
    kept = getattr(reader, name)
    devices.move_attributes(reader, "meta")
    setattr(reader, name, kept)
    with torch.device("meta"), pytest.raises((RuntimeError, ValueError, NotImplementedError)):
        reader.logits(torch.zeros(6, dtype=torch.long))
