"""Every architecture, as a real transformers class with random weights, through plan, build and verify."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from build_engine.folds import FOLDS
from inflight_tools.common.tiny_models import write_checkpoint

pytestmark = pytest.mark.build

ROOT = Path(__file__).resolve().parents[2]
SHAPE = {"hidden_size": 128, "intermediate_size": 256, "dtype": "bfloat16", "tie_word_embeddings": False}
MOE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64}
QKV, GATE_UP = "q_proj+k_proj+v_proj", "gate_proj+up_proj"
MODELS: dict[str, dict[str, Any]] = {
    "llama": {"tie_word_embeddings": True, "vocab_size": 301, "attention_bias": True},
    "mistral": {"num_key_value_heads": 1, "head_dim": 64, "sliding_window": None},
    "qwen2": {"rope_theta": 1e6},
    "qwen3": {"head_dim": 48, "rope_theta": 1e6},
    "gemma2": {"head_dim": 32, "tie_word_embeddings": True, "query_pre_attn_scalar": 32},
    "gemma3_text": {"head_dim": 32, "tie_word_embeddings": True, "query_pre_attn_scalar": 32},
    "phi3": {"pad_token_id": 0},
    "mixtral": {"num_local_experts": 4, "sliding_window": None},
    "qwen2_moe": {**MOE, "shared_expert_intermediate_size": 128},
    "qwen3_moe": {**MOE, "head_dim": 32},
    "gemma": {"head_dim": 32, "tie_word_embeddings": True},
    "smollm3": {"num_hidden_layers": 4, "no_rope_layers": [1, 1, 1, 0]},
    "granite": {"embedding_multiplier": 12.0, "logits_scaling": 8.0, "residual_multiplier": 0.22},
    "olmo2": {},
    "gpt_oss": {"num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 32},
}
MERGED = {
    "mixtral": {QKV: 2},
    "qwen2_moe": {QKV: 2},
    "qwen3_moe": {QKV: 2},
    "gpt_oss": {QKV: 2},
    "phi3": {},
    "smollm3": {QKV: 4, GATE_UP: 4},
}
"""What OpenVINO's target merges, where it is not both sets in both layers: experts stay apart, Phi-3 comes merged."""

EVERY_CHANGE = {"qwen3_moe"}  # the rest only in the full tier
REFUSED = {
    ("gemma2", "tensorrt-llm"),
    ("gemma2", "hf-quantized"),
    ("gemma3_text", "tensorrt-llm"),
    ("phi3", "tensorrt-llm"),
    ("qwen3_moe", "tensorrt-llm"),
    *((kind, "tensorrt-llm") for kind in ("gemma", "smollm3", "granite", "olmo2", "gpt_oss")),
    ("gpt_oss", "hf-quantized"),
}
SMOOTHED = "int8-sq"


def tool(*arguments: object) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join((str(ROOT / "python_backend"), str(ROOT)))
    words = [sys.executable, "-m", "build_engine", *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": path}
    return subprocess.run(words, env=environment, capture_output=True, text=True, timeout=280, check=False)


@pytest.mark.parametrize(
    "model_type",
    [each if each in EVERY_CHANGE else pytest.param(each, marks=pytest.mark.full) for each in sorted(MODELS)],
)
@pytest.mark.parametrize(
    ("target", "recipe"),
    [
        ("openvino", "none"),
        pytest.param("openvino", SMOOTHED, marks=pytest.mark.full),
        pytest.param("tensorrt-llm", "none", marks=pytest.mark.full),
        pytest.param("hf-quantized", "fp8", marks=pytest.mark.full),
    ],
)
def test_plan_build_verify(tmp_path: Path, model_type: str, target: str, recipe: str) -> None:
    model = write_checkpoint(tmp_path / "model", model_type, **{**SHAPE, **MODELS[model_type]})
    planned = tool("plan", model, "--json")
    assert planned.returncode == 0, planned.stderr
    assert json.loads(planned.stdout)
    output = tmp_path / "built"
    arguments = [model, "--target", target, "--quantization", recipe, "--output", output, "--no-cache", "--no-verify"]
    arguments += ["--stop-after", "checkpoint"] * (target == "tensorrt-llm")
    arguments += ["--kv-cache", "none"]
    built = tool("build", *arguments)
    if (model_type, target) in REFUSED or (recipe == SMOOTHED and model_type not in FOLDS):
        assert built.returncode == 2, built.stderr
        assert "\n" not in built.stderr.strip()
        assert not output.exists()
        return
    assert built.returncode == 0, built.stderr
    if target == "openvino":
        details = json.loads((output / "engine.json").read_text())["built"]["details"]
        merged = {name.removeprefix("merged "): n for name, n in details.items() if name.startswith("merged ")}
        assert merged == MERGED.get(model_type, {QKV: 2, GATE_UP: 2})
    verified = tool("verify", output, "--reference", model, "--tokens", "512", "--json")
    assert verified.stdout, verified.stderr
    figures = json.loads(verified.stdout)
    # Random weights are the worst case for FP8; that nothing is swapped shows all the same.
    assert figures["mean_kl"] < (0.02 if recipe == "none" else 1.0), figures
    assert figures["greedy_agreement"] > (0.9 if recipe == "none" else 0.4), figures


def scaled(kind: str, **more: float) -> dict[str, Any]:
    return {"rope_scaling": {"rope_type": kind, "factor": 4.0, **more}}


LONG = {"max_position_embeddings": 768}
KINDS: dict[str, tuple[str, dict[str, Any], list[int]]] = {
    "linear": ("llama", scaled("linear"), []),
    "dynamic": ("llama", scaled("dynamic"), []),  # transformers begins to stretch where these sequences end
    "yarn": ("llama", scaled("yarn", original_max_position_embeddings=192), [192]),
    "llama3": (
        "llama",
        scaled("llama3", low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=192),
        [192],
    ),
    "window mistral": ("mistral", {"sliding_window": 520}, [520]),
    "window phi3": ("phi3", {"pad_token_id": 0, "sliding_window": 520}, [520]),
    "window qwen2": ("qwen2", {"use_sliding_window": True, "sliding_window": 520, "max_window_layers": 0}, [520]),
    "window qwen3": ("qwen3", {"use_sliding_window": True, "sliding_window": 520, "max_window_layers": 1}, [520]),
    "window gemma2": ("gemma2", {**MODELS["gemma2"], "sliding_window": 520}, [520]),
    "window gemma3": (
        "gemma3_text",
        {
            **MODELS["gemma3_text"],
            "sliding_window": 520,
            "layer_types": ["sliding_attention", "full_attention"],
            "rope_local_base_freq": 1e3,
        },
        [520],
    ),
}
"""Models whose positions or windows change with length: class, configuration, and the borders that it names."""


@pytest.mark.full
@pytest.mark.parametrize("kind", sorted(KINDS))
def test_every_border_is_looked_beyond(tmp_path: Path, kind: str) -> None:
    """Fed in chunks, as it is served, an engine is as near to its source beyond each border as before it."""
    model_type, changes, borders = KINDS[kind]
    model = write_checkpoint(tmp_path / "model", model_type, **{**SHAPE, **LONG, **changes})
    output = tmp_path / "built"
    arguments = [model, "--target", "openvino", "--quantization", "none", "--output", output, "--no-cache"]
    built = tool("build", *arguments, "--no-verify", "--kv-cache", "none")
    assert built.returncode == 0, built.stderr
    found = json.loads(tool("verify", output, "--reference", model, "--tokens", "512", "--json").stdout)
    assert [each["border"] for each in found["beyond"]] == borders
    for each in found["beyond"]:
        assert each["mean_kl"] < 0.005, (kind, found)
        assert each["tokens"] >= 200
