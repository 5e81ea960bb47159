"""Growth curves: what is fixed, what grows, and which rows an earlier run's file gives back."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench import growth, growth_why
from bench.growth_why import Shape
from inflight_tools.common.report import Failure

SHAPE = Shape(layers=22, heads=32, kv_heads=4, width=64, parameters=1.17e9, weights_bytes=1.17e9)


def test_a_fit_finds_what_made_the_curve() -> None:
    points = [(float(size), 20 + 2.0 * size + 0.001 * size**2) for size in (16, 64, 250, 1000, 4000)]
    assert growth_why.fit(points, (0, 1, 2)) == pytest.approx([20, 2.0, 0.001])
    straight = [(size, 3.0 * size) for size in (1.0, 10.0, 100.0, 1000.0)]
    assert growth_why.fit(straight, (0, 1, 2)) == pytest.approx([0, 3.0, 0], abs=1e-9)


def test_nothing_is_said_to_cost_less_than_nothing() -> None:
    bent = [(size, size**0.5) for size in (1.0, 10.0, 100.0, 1000.0)]
    assert min(growth_why.fit(bent, (0, 1, 2))) >= 0


def test_a_model_says_what_arithmetic_and_bytes_alone_would() -> None:
    assert SHAPE.attention_share == pytest.approx(4 * 22 * 32 * 64 / 2.34e9)
    assert SHAPE.kv_share == pytest.approx(2 * 22 * 4 * 64 / 1.17e9)
    config = {"num_attention_heads": 9, "hidden_size": 576, "num_hidden_layers": 30, "num_key_value_heads": 3}
    assert Shape.of(config, 1, 1).width == 64
    assert Shape.of({**config, "head_dim": 32}, 1, 1).width == 32


def test_curves_in_words() -> None:
    per_square = SHAPE.attention_share / 2 * 4.0  # attention as fast as the weights would say 1.0
    prompts = growth_why.prompts([(n, 10 + 4.0 * n + per_square * n**2 * 3) for n in (16, 250, 1000, 4000)], SHAPE)
    assert prompts.startswith("10 ms, and 4.00 ms a token")
    assert prompts.endswith("one of attention takes 3.0 times one of a weight")
    per_token = 50 * SHAPE.kv_share / 2 * 5
    answers = growth_why.answers([(n, 50 + per_token * n) for n in (16, 64, 256, 1024)], SHAPE)
    assert answers.startswith("50.0 ms a token")
    assert "takes 5.0 times one of the weights" in answers
    streams = growth_why.streams([(n, 1000 * n / (40 + 5 * n)) for n in (1, 4, 16, 64)])
    assert streams.startswith("a step takes 40 ms and 5 ms more for every stream: beyond 8 streams")
    assert streams.endswith("more than 200 tokens/s")


def test_pieces_are_kept_together(tmp_path: Path) -> None:
    file = tmp_path / "growth.json"
    names = ("streams, simulated", "streams, openvino", "prompt tokens", "answer tokens")
    assert [growth.kind_of(name) for name in names] == list(growth.KINDS)
    file.write_text(json.dumps({"rows": [{"of": name} for name in names]}), encoding="utf-8")
    engine = tmp_path / "engine"
    engine.mkdir()
    for name in ("tokenizer.json", "openvino_model.xml"):
        (engine / name).touch()
    given = ["--engine", str(engine), "--output", str(file), "--of", "prompts,streams"]
    assert growth.kept(growth.parse(given)) == []
    left = growth.kept(growth.parse([*given, "--keep"]))
    assert [each["of"] for each in left] == ["streams, simulated", "answer tokens"]
    file.write_text("{}", encoding="utf-8")
    with pytest.raises(Failure, match="was not written by this script"):
        growth.kept(growth.parse([*given, "--keep"]))
