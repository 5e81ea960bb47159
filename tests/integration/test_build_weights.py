"""Weights under other names, too few or too many of them: refused by name, by the builder and by what loads them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

import inflight.manifest as manifest
from build_engine import cli
from build_engine.architectures import TARGETS
from build_engine.errors import UserMistake
from build_engine.loading import load_model
from inflight_tools.common.tiny_models import write_checkpoint

pytestmark = pytest.mark.build

State = dict[str, Any]
NORM = "model.layers.0.post_attention_layernorm.weight"


def rewritten(directory: Path, change: Callable[[State], State]) -> Path:
    write_checkpoint(directory)
    path = directory / "model.safetensors"
    save_file(change(load_file(path)), path, metadata={"format": "pt"})
    return directory


@pytest.mark.parametrize("target", TARGETS)
def test_weights_of_torch_compile_end_no_build_in_random_weights(
    target: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = rewritten(tmp_path / "m", lambda state: {f"_orig_mod.{name}": each for name, each in state.items()})
    output = tmp_path / "out"
    command = ["build", str(model), "--target", target, "--quantization", "none", "--no-verify", "--no-cache"]
    more = ["--stop-after", "checkpoint"] if target == "tensorrt-llm" else []
    assert cli.main([*command, *more, "--output", str(output)]) == 2
    said = capsys.readouterr().err
    assert "begin with _orig_mod. (as torch.compile saves them)" in said
    assert said.count("\n") == 1
    assert not output.exists()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda state: {f"_orig_mod.{name}": each for name, each in state.items()}, "lack lm_head|lack model."),
        (lambda state: {name: each for name, each in state.items() if name != NORM}, f"lack {NORM}"),
        (lambda state: {**state, "model.layers.2.mlp.up_proj.weight": state[NORM].clone()}, "hold model.layers.2.mlp"),
        (lambda state: {**state, NORM: state[NORM][:8].clone()}, f"shape of {NORM}"),
    ],
)
def test_what_the_loader_made_up_or_left_out_is_refused(
    tmp_path: Path, change: Callable[[State], State], says: str
) -> None:
    with pytest.raises(UserMistake, match=says):
        load_model(rewritten(tmp_path / "m", change))


def test_a_whole_checkpoint_is_loaded(tmp_path: Path) -> None:
    assert load_model(write_checkpoint(tmp_path / "m")).lm_head.weight.shape == (300, 64)


@pytest.mark.full
def test_made_up_weights_are_built_unverified_or_not_at_all(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, output = write_checkpoint(tmp_path / "m"), tmp_path / "out"
    command = ["build", str(model), "--target", "hf-quantized", "--quantization", "none", "--output", str(output)]
    assert cli.main(command) == 1
    assert "no better than chance" in capsys.readouterr().err
    assert not output.exists()
    assert cli.main([*command, "--no-verify"]) == 0
    assert cli.main(["verify", str(output), "--reference", str(model), "--tokens", "256", "--record"]) == 1
    assert manifest.read(output).verification is None
