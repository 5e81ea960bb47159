from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from build_engine import prequantized, source
from build_engine.architectures import HF_QUANTIZED, TENSORRT_LLM
from build_engine.errors import AccuracyFailure, UserMistake
from build_engine.quantization import BY_TARGET, RECIPES
from build_engine.verification import corpus
from build_engine.verification.confidence import Interval, interval, span_for
from build_engine.verification.thresholds import NEXT, THRESHOLDS, no_better_than_chance, too_far
from build_engine.verification.verify import require
from inflight.manifest import Beyond, Verification
from inflight_tools.common.tiny_models import write_config
from tests.tiny_weights import write_weights

pytestmark = pytest.mark.fast


def figures(**changes: Any) -> Verification:
    values: dict[str, Any] = {
        "perplexity": 10.0,
        "reference_perplexity": 10.0,
        "mean_kl": 0.0,
        "greedy_agreement": 1.0,
        **changes,
    }
    return Verification(text="t", tokens=100, **values)


def test_every_recipe_has_a_threshold() -> None:
    assert set(THRESHOLDS) == set(RECIPES)


@pytest.mark.parametrize(
    ("recipe", "changes", "word"),
    [
        ("int8", {"perplexity": 10.05}, None),
        ("int8", {"perplexity": 10.19}, None),
        ("int8", {"perplexity": 10.3}, "+3.0 %"),
        ("fp8", {"perplexity": 10.39}, None),
        ("fp8", {"perplexity": 10.41}, "perplexity"),
        ("int8", {"mean_kl": 0.03}, "KL divergence"),
        ("fp8", {"weight_error": 0.5, "worst_weight": "layer 3 gate"}, "layer 3 gate"),
        ("none", {"perplexity": math.nan}, "perplexity"),
        ("none", {"perplexity": math.inf}, "perplexity"),
        ("none", {"mean_kl": math.nan}, "KL divergence"),
    ],
)
def test_thresholds(recipe: str, changes: dict[str, Any], word: str | None) -> None:
    problem = too_far("tensorrt_llm", recipe, figures(**changes))
    assert (problem is None) == (word is None)
    assert word is None or word in (problem or "")


@pytest.mark.parametrize(
    ("perplexity", "vocabulary", "noise"),
    [
        (49_683.4, 49_152, True),  # SmolLM2 with random weights
        (30_000.0, 49_152, True),
        (math.nan, 300, True),
        (math.inf, 300, True),
        (18.4, 49_152, False),
        (140.0, 300, False),
    ],
)
def test_a_source_of_noise_verifies_nothing(tmp_path: Path, perplexity: float, vocabulary: int, noise: bool) -> None:
    near = figures(perplexity=perplexity, reference_perplexity=perplexity)
    problem = no_better_than_chance(near, vocabulary)
    assert (problem is not None) == noise
    origin = checkpoint(tmp_path / "m", vocab_size=vocabulary)
    if problem is None:
        require("openvino", "int8", near, origin, enforce=True)
        return
    assert f"of {vocabulary} tokens" in problem
    for enforce in (True, False):
        with pytest.raises(AccuracyFailure, match="no better than chance"):
            require("openvino", "int8", near, origin, enforce=enforce)


@pytest.mark.parametrize(
    ("changes", "refused"),
    [
        ({"perplexity": 10.18, "perplexity_change": (-0.01, 0.05)}, False),  # Gemma 3 270M, on too few tokens to tell
        ({"perplexity": 10.28, "perplexity_change": (0.021, 0.036)}, True),
        ({"perplexity": 10.28, "perplexity_change": (0.019, 0.038)}, False),
        ({"mean_kl": 0.021, "mean_kl_low": 0.018}, False),
        ({"mean_kl": 0.024, "mean_kl_low": 0.021}, True),
        ({"perplexity": math.nan, "perplexity_change": None}, True),
    ],
)
def test_no_refusal_inside_the_noise(changes: dict[str, Any], refused: bool) -> None:
    assert (too_far("openvino", "int8", figures(**changes)) is not None) == refused


def test_what_is_wrong_beyond_a_border_is_refused_with_the_length_up_to_which_it_is_right() -> None:
    beyond = Beyond(border=4096, tokens=255, mean_kl=0.9, mean_kl_low=0.7, greedy_agreement=0.0)
    assert "--max-seq-len 4096" in (too_far("openvino", "int8", figures(beyond=[beyond])) or "")
    near = Beyond(border=4096, tokens=255, mean_kl=0.021, mean_kl_low=0.018, greedy_agreement=1.0)
    assert too_far("openvino", "int8", figures(beyond=[near])) is None


def test_a_refusal_names_the_next_recipe_and_the_way_to_take_it_all_the_same(tmp_path: Path) -> None:
    origin = checkpoint(tmp_path / "m")
    far = figures(perplexity=10.3)
    with pytest.raises(
        AccuracyFailure, match=r"\+3\.0 % .* on 100 tokens.*; --quantization none .*--accept-accuracy keeps"
    ):
        require("openvino", "int8", far, origin, enforce=True)
    taken = require("openvino", "int8", far, origin, enforce=True, accept=True)
    assert taken.accepted.startswith("perplexity 10.300 is +3.0 % from the source's")
    assert require("openvino", "int8", figures(), origin, enforce=True, accept=True).accepted == ""


def test_every_next_recipe_is_one_that_the_target_builds_and_the_last_has_none() -> None:
    for target, following in NEXT.items():
        able = BY_TARGET[target.replace("tensorrt_llm", TENSORRT_LLM).replace("hf_quantized", HF_QUANTIZED)]
        assert set(following) | {"none"} == set(able)
        for recipe in following:
            seen = [recipe]
            while seen[-1] in following:
                seen.append(following[seen[-1]])
                assert len(seen) == len(set(seen)), "no circle"
            assert seen[-1] == "none"


@pytest.mark.parametrize("tokens", [200, 1024, 20_000])
@settings(max_examples=20)
@given(seed=st.integers(0, 2**32 - 1))
def test_intervals_hold_what_they_promise(tokens: int, seed: int) -> None:
    """The true mean lies below the lower end in 5 % of all texts, whatever their length."""
    random_ = random.Random(seed)
    span = span_for(tokens)
    below = 0
    for _ in range(400):
        values = [0.01 + random_.gauss(0.0, 0.1) for _ in range(tokens // span)]
        below += interval(values, [span] * len(values)).low > 0.01
    assert below < 400 * 0.12


def test_a_single_part_bounds_nothing_and_no_number_is_no_number() -> None:
    assert interval([0.5], [16]).low == -math.inf
    assert math.isnan(interval([math.nan, 0.5], [16, 16]).low)
    assert interval([1.0, 1.0, 1.0], [16, 16, 8]) == Interval(1.0, 1.0, 1.0)


def test_openvinos_int8_sq_is_held_to_what_int8_is() -> None:
    far = figures(perplexity=10.2)
    assert too_far("tensorrt_llm", "int8-sq", far) is None
    assert "int8-sq may be +1.0 %" in (too_far("openvino", "int8-sq", far) or "")


def test_the_text_is_english_and_long_enough() -> None:
    text = corpus.evaluation()
    assert len(text.text.split()) > 15_000
    assert " the " in text.text
    assert "PSF-2.0" in text.name
    assert ">>>" not in text.text


def test_calibration_and_evaluation_share_no_paragraph() -> None:
    measured = set(corpus.evaluation().text.split("\n\n"))
    assert not measured & set(corpus.calibration().text.split("\n\n"))
    assert len(corpus.calibration().text.split()) > 3_000


def test_a_text_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "mine.txt"
    path.write_text("Something of mine.")
    assert corpus.from_file(path).name == "mine.txt"
    path.write_bytes(b"\xff\xfe\xff")
    with pytest.raises(UserMistake, match="cannot be read"):
        corpus.from_file(path)


def checkpoint(directory: Path, **changes: object) -> source.Source:
    write_config(directory, **changes)
    (directory / "model.safetensors").write_bytes(b"")
    (directory / "tokenizer.json").write_text("{}")
    return source.resolve(str(directory))


@pytest.mark.parametrize("method", ["gptq", "awq", "compressed-tensors", "bitsandbytes", "fp8", "brand-new"])
def test_quantized_checkpoints_are_recognised(tmp_path: Path, method: str) -> None:
    origin = checkpoint(tmp_path / "m", quantization_config={"quant_method": method})
    found = prequantized.detect(origin)
    assert found is not None
    assert found.recipe is None
    with pytest.raises(UserMistake, match="quantized already"):
        prequantized.refuse(origin, "openvino")


def test_modelopts_own_checkpoints_are_carried(tmp_path: Path) -> None:
    origin = checkpoint(tmp_path / "m")
    assert prequantized.detect(origin) is None
    described = {"quantization": {"quant_algo": "FP8", "kv_cache_quant_algo": "FP8"}}
    (tmp_path / "m" / "hf_quant_config.json").write_text(json.dumps(described))
    assert prequantized.detect(origin) == prequantized.Prequantized("ModelOpt", "fp8", "fp8")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["none", "--kv-cache", "fp8"], "writes no scales for an fp8 KV cache"),
        (["int8-sq", "--kv-cache", "fp8"], "writes no scales for an fp8 KV cache"),
        (["none", "--calibration-tokens", "512"], "none is not calibrated"),
        (["fp8", "--smoothquant-alpha", "0.5"], "goes with --quantization int8-sq only"),
    ],
)
def test_what_a_hugging_face_style_checkpoint_does_not_take(
    arguments: list[str], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from build_engine import cli

    model = tmp_path / "m"
    checkpoint(model)
    base = ["build", str(model), "--target", "hf-quantized", "--output", str(tmp_path / "out")]
    assert cli.main([*base, "--quantization", *arguments]) == 2
    assert says in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_plain_checkpoint_is_described_and_copied(tmp_path: Path) -> None:
    from build_engine import cli
    from inflight import manifest

    model, output = tmp_path / "m", tmp_path / "out"
    checkpoint(model)
    write_weights(model)
    arguments = ["build", str(model), "--target", "hf-quantized", "--quantization", "none", "--no-verify"]
    assert cli.main([*arguments, "--output", str(output)]) == 0
    found = manifest.check(output, target="hf_quantized", deep=True)
    assert (found.quantization.recipe, found.quantization.kv_cache, found.verification) == ("none", "none", None)
    assert (output / "model.safetensors").read_bytes() == (model / "model.safetensors").read_bytes()


def test_carrying_through(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from build_engine import cli
    from inflight import manifest

    model = tmp_path / "m"
    checkpoint(model)
    write_weights(model)
    described = {"quantization": {"quant_algo": "FP8", "kv_cache_quant_algo": "FP8"}}
    (model / "hf_quant_config.json").write_text(json.dumps(described))
    base = ["build", str(model), "--target", "hf-quantized", "--output", str(tmp_path / "out")]
    assert cli.main([*base, "--quantization", "nvfp4"]) == 2
    former = ["tensorrt-llm-checkpoint" if word == "hf-quantized" else word for word in base]
    assert "is not quantized twice" in capsys.readouterr().err
    assert cli.main([*former, "--quantization", "fp8"]) == 0, "the target's former name"
    found = manifest.check(tmp_path / "out", target="hf_quantized", deep=True)
    assert found.quantization.algorithm == "FP8, carried through"
    assert found.quantization.kv_cache == "fp8"
    assert found.verification is None
