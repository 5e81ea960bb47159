"""What the builder does to products for processors without 8-bit ones, on the real model in OpenVINO GenAI's pipeline.

SmolLM2's products are too small for any of it, so both bounds are lowered here.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from bench.steps import Engine
from build_engine.openvino import narrow, zero_points
from inflight_tools.common.layout import ENGINE

pytestmark = pytest.mark.build

LAYERS, PRODUCTS = 30, 4  # merged: qkv, o, gate and up, down
TOKENS = 12
PROMPTS = (
    "The capital of France is",
    "Once upon a time there was a",
    "def fibonacci(n):\n    ",
    "one two three four five six seven eight nine ten " * 6,
    "To be, or not to be, that is the",
    "Water boils at",
)


def changed(folder: Path, destination: Path) -> Path:
    import openvino as ov

    model = ov.Core().read_model(folder / "openvino_model.xml")
    assert zero_points.fold_zero_points(model) == LAYERS * PRODUCTS
    assert narrow.narrow_products(model) == LAYERS  # down alone is wider than 800
    shutil.copytree(folder, destination, ignore=shutil.ignore_patterns("openvino_model.*"))
    ov.save_model(model, destination / "openvino_model.xml", compress_to_fp16=False)
    return destination


def test_answers_of_a_batch_are_those_of_the_model_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prompts of different lengths in one step: the pipeline gathers their last tokens before the output layer."""
    monkeypatch.setattr(zero_points, "LEAST", 1)
    monkeypatch.setattr(narrow, "WIDEST", 800)
    tokenizer = Tokenizer.from_file(str(ENGINE / "tokenizer.json"))
    prompts = [tokenizer.encode(prompt).ids for prompt in PROMPTS]
    assert len({len(prompt) for prompt in prompts}) > 3
    _, before = Engine(ENGINE, "u8").run(prompts, TOKENS)
    _, after = Engine(changed(ENGINE, tmp_path / "changed"), "u8").run(prompts, TOKENS)
    assert all(len(answer) == TOKENS for answer in (*before, *after))
    # Sums are rounded elsewhere, so a near tie may fall the other way; where 8-bit products exist activations do too.
    equal = sum(one == other for one, other in zip(before, after, strict=True))
    assert equal >= len(PROMPTS) - 2, (before, after)
