"""Checkpoints with weights from a seed: whole, the same again, loadable by the real classes, made in small memory."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from build_engine import source
from build_engine.planning import model_size
from build_engine.weights_check import check_weights
from inflight_tools.common.layout import REPOSITORY
from inflight_tools.common.tiny_models import write_tokenizer

pytestmark = pytest.mark.fast

SCRIPT = REPOSITORY / "scripts" / "maintain" / "make_model.py"


def make(tmp_path: Path, output: Path, *options: str) -> str:
    tokenizer = tmp_path / "tokenizer"
    if not tokenizer.is_dir():
        tokenizer.mkdir()
        write_tokenizer(tokenizer, 300)
    command = [sys.executable, str(SCRIPT), *options, "--output", str(output), "--tokenizer", str(tokenizer)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(output)
    return done.stderr


@pytest.mark.parametrize(
    ("shape", "parameters"), [("0.5b", 494_032_768), ("1.17b", 1.17e9), ("8b", 8_030_261_248), ("moe", 1.98e9)]
)
def test_a_shape_has_the_parameters_that_its_name_says(shape: str, parameters: float) -> None:
    maker = script()
    config = maker.hf_config.parse(maker.config_of(maker.KINDS[shape], None))
    assert model_size.count_parameters(config).total == pytest.approx(parameters, rel=0.01)


TINY = {
    "vocab_size": 300,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


def tiny(folder: Path, shape: str, seed: int, limit: int) -> Path:
    """The kind `shape` with small matrices, written by the script's own functions."""
    maker = script()
    config = {**maker.config_of(maker.KINDS[shape], 2), **TINY}
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    shapes = maker.expected(maker.hf_config.parse(config))
    maker.write(folder, {name: each for name, each in shapes.items() if name != "lm_head.weight"}, seed, limit)
    return folder


def test_memory_stays_small_whatever_the_size(tmp_path: Path) -> None:
    said = make(tmp_path, tmp_path / "one", "moe", "--layers", "1")
    origin = source.resolve(str(tmp_path / "one"))
    check_weights(origin)
    peak = re.search(r"peak memory (\d+) MB", said)
    assert peak is not None
    assert int(peak[1]) * 1e6 < origin.weight_bytes / 2 > 150e6  # 8 B took 75 MB as well


def test_the_same_seed_gives_the_same_bytes(tmp_path: Path) -> None:
    seeds = {"one": 0, "two": 0, "other": 1}
    folders = [tiny(tmp_path / name, "1.17b", seed, 10**9) for name, seed in seeds.items()]
    one, two, other = ((folder / "model.safetensors").read_bytes() for folder in folders)
    assert one == two != other


def test_the_real_class_finds_every_weight_in_shards(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    folder = tiny(tmp_path / "m", "moe", 3, 200_000)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": True}))
    assert len(list(folder.glob("model-*-of-*.safetensors"))) > 10
    check_weights(source.resolve(str(folder)))
    model, report = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype="auto", output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    weight = model.model.layers[1].mlp.experts[3].up_proj.weight.detach().float()
    assert float(weight.std()) == pytest.approx(0.02, rel=0.02)
    assert abs(float(weight.mean())) < 1e-3
    assert bool((model.model.norm.weight == 1).all())
    with torch.no_grad():
        assert bool(model(torch.tensor([[5, 6, 7]])).logits.isfinite().all())


def script() -> Any:
    sys.path.insert(0, str(REPOSITORY / "scripts"))
    try:
        from maintain import make_model
    finally:
        sys.path.pop(0)
    return make_model
