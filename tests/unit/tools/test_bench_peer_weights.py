"""Integer checkpoints for vLLM: what is written is what the format says, and near the weights it was made of."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import safetensors
import torch
from safetensors.torch import save_file

from bench import peer_weights
from inflight_tools.common.report import Failure
from inflight_tools.common.tiny_models import write_tokenizer


def checkpoint(folder: Path, dtype: torch.dtype = torch.bfloat16) -> dict[str, torch.Tensor]:
    folder.mkdir()
    write_tokenizer(folder, 300)
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}), encoding="utf-8")
    torch.manual_seed(0)
    shapes = {
        "model.embed_tokens.weight": (300, 64),
        "model.layers.0.mlp.up_proj.weight": (96, 64),
        "model.layers.0.mlp.down_proj.weight": (64, 96),
        "model.layers.0.input_layernorm.weight": (64,),
        "model.layers.0.self_attn.q_proj.bias": (64,),
        "lm_head.weight": (300, 64),
    }
    state = {name: torch.randn(shape).to(dtype) for name, shape in shapes.items()}
    save_file(state, folder / "model.safetensors")
    return state


def written(source: Path, bits: int) -> tuple[dict[str, torch.Tensor], dict[str, object]]:
    target = source.with_name(f"int{bits}")
    assert peer_weights.main([str(source), "--bits", str(bits), "--output", str(target)]) == 0
    with safetensors.safe_open(target / "model.safetensors", "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    assert (target / "tokenizer.json").is_file()
    config: dict[str, object] = json.loads((target / "config.json").read_text(encoding="utf-8"))
    return tensors, config


def test_eight_bits_have_a_scale_for_each_channel(tmp_path: Path) -> None:
    source = checkpoint(tmp_path / "source")
    tensors, config = written(tmp_path / "source", 8)
    name = "model.layers.0.mlp.up_proj.weight"
    assert tensors[name].dtype == torch.int8
    assert tensors[f"{name}_scale"].shape == (96, 1)
    again = tensors[name].float() * tensors[f"{name}_scale"]
    assert (again - source[name].float()).abs().max() <= tensors[f"{name}_scale"].max() / 2 + 1e-6
    for kept in ("model.embed_tokens.weight", "lm_head.weight", "model.layers.0.input_layernorm.weight"):
        assert torch.equal(tensors[kept], source[kept])
    assert config["quantization_config"]["format"] == "int-quantized"  # type: ignore[index]


def test_four_bits_are_packed_along_the_inputs_with_the_first_lowest(tmp_path: Path) -> None:
    source = checkpoint(tmp_path / "source")
    tensors, config = written(tmp_path / "source", 4)
    name = "model.layers.0.mlp.down_proj.weight"
    words, scale = tensors[f"{name}_packed"], tensors[f"{name}_scale"].float()
    assert (words.dtype, words.shape, scale.shape) == (torch.int32, (64, 12), (64, 3))
    assert tensors[f"{name}_shape"].tolist() == [64, 96]
    values = torch.stack([(words >> (4 * place)) & 15 for place in range(8)], 2).reshape(64, 96) - 8
    again = values.reshape(64, 3, 32) * scale[:, :, None]
    assert (again.reshape(64, 96) - source[name].float()).abs().max() <= scale.max() * 0.51
    weights = config["quantization_config"]["config_groups"]["group_0"]["weights"]  # type: ignore[index]
    assert (weights["group_size"], weights["num_bits"]) == (32, 4)


def test_what_cannot_be_made_is_said(tmp_path: Path) -> None:
    with pytest.raises(Failure, match="is no checkpoint"):
        peer_weights.main([str(tmp_path), "--bits", "4", "--output", str(tmp_path / "x")])
    checkpoint(tmp_path / "f32", torch.float32)
    with pytest.raises(Failure, match="only checkpoints in bfloat16"):
        peer_weights.main([str(tmp_path / "f32"), "--bits", "8", "--output", str(tmp_path / "x")])
    with pytest.raises(Failure, match="there already"):
        peer_weights.main([str(tmp_path / "f32"), "--bits", "8", "--output", str(tmp_path)])
    with pytest.raises(Failure, match="no group"):
        peer_weights.group_of([128, 48])


def test_bfloat16_comes_back() -> None:
    values = np.array([1.0, -0.5, 3.140625], dtype=np.float32)
    assert peer_weights.float32(peer_weights.bf16(values)).tolist() == values.tolist()
