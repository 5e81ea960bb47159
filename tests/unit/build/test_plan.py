from __future__ import annotations

import json
from pathlib import Path

import pytest

from build_engine import cli, hf_config, svg, tune
from build_engine.console import Console
from build_engine.errors import UserMistake
from build_engine.planning import model_size, plan, roofline
from build_engine.planning.gpus import gpu_named, gpu_table, own_gpu
from build_engine.planning.roofline import Parallel
from build_engine.quantization import RECIPES
from build_engine.tune import Trial
from inflight_tools.common.tiny_models import write_config

pytestmark = pytest.mark.fast

SMOLLM2 = hf_config.parse(
    {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": 49152,
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "max_position_embeddings": 8192,
        "tie_word_embeddings": True,
        "dtype": "bfloat16",
    }
)


def test_smollm2_by_hand() -> None:
    counted = model_size.count_parameters(SMOLLM2)
    assert counted.total == 134_515_008
    assert counted.linear == 30 * (2 * 576 * 576 + 2 * 576 * 192 + 3 * 576 * 1536)
    assert model_size.weight_bytes(SMOLLM2, RECIPES["none"]) == 2 * 134_515_008
    assert model_size.kv_bytes_per_token(SMOLLM2, 16) == 2 * 30 * 3 * 64 * 2
    assert model_size.kv_bytes_per_token(SMOLLM2, 16, heads=9) == 3 * model_size.kv_bytes_per_token(SMOLLM2, 16)


def test_int4_counts_its_scales() -> None:
    linear = model_size.count_parameters(SMOLLM2).linear
    rest = 2 * (134_515_008 - linear)
    assert model_size.weight_bytes(SMOLLM2, RECIPES["int4-awq"]) == linear // 2 + linear * 2 // 64 + rest


def test_sliding_layers_keep_only_their_window() -> None:
    config = hf_config.parse(
        {**SMOLLM2.raw, "sliding_window": 100, "layer_types": ["sliding_attention"] * 20 + ["full_attention"] * 10}
    )
    per_layer = model_size.kv_bytes_per_token(config, 16) // 30
    assert model_size.kv_bytes_per_sequence(config, 16, 1000) == per_layer * (10 * 1000 + 20 * 100)


def test_roofline_by_hand() -> None:
    gpu = own_gpu(80, 2000, 400)
    step = roofline.decode(SMOLLM2, RECIPES["none"], 16, gpu, Parallel(), 1000, 8)
    assert step is not None
    kv = 8 * 1000 * 23040
    assert step.bytes_read == 2 * 134_515_008 + kv
    assert step.memory_seconds == pytest.approx(step.bytes_read / 2e12)
    assert step.compute_seconds == pytest.approx(8 * (2 * 134_515_008 + 4 * 30 * 9 * 64 * 1000) / 4e14)
    assert step.tokens_per_second == pytest.approx(8 / step.memory_seconds)


def test_compute_bound_batch_is_where_the_two_sides_meet() -> None:
    gpu = own_gpu(80, 2000, 400)
    batch = roofline.compute_bound_batch(SMOLLM2, RECIPES["none"], 16, gpu, Parallel(), 1)
    assert batch is not None
    for at, bound in ((batch, True), (batch - 1, False)):
        step = roofline.decode(SMOLLM2, RECIPES["none"], 16, gpu, Parallel(), 1, at)
        assert step is not None
        assert (step.compute_seconds >= step.memory_seconds) is bound
    assert roofline.compute_bound_batch(SMOLLM2, RECIPES["none"], 16, gpu, Parallel(), 8192) is None


def test_fit_divides_the_memory() -> None:
    gpu = own_gpu(1, 100, 10)
    fit = roofline.fit(SMOLLM2, RECIPES["none"], 16, gpu, Parallel(), 1024, 256)
    assert fit.weight_bytes + fit.activation_bytes + fit.kv_pool_bytes == round(0.9e9)
    assert fit.tokens == fit.kv_pool_bytes // 23040
    assert fit.sequences == fit.tokens // 1024
    small = roofline.fit(SMOLLM2, RECIPES["none"], 16, own_gpu(0.2, 100, 10), Parallel(), 1024, 256)
    assert (small.tokens, small.sequences) == (0, 0)


def test_kv_heads_fewer_than_ranks_are_stored_again() -> None:
    assert [roofline.kv_heads_per_gpu(SMOLLM2, ranks) for ranks in (1, 3, 9)] == [3, 1, 1]


@pytest.mark.parametrize(("tensor", "pipeline", "word"), [(2, 1, "1, 3, 9"), (1, 31, "30 layers")])
def test_impossible_splits(tensor: int, pipeline: int, word: str) -> None:
    with pytest.raises(UserMistake, match=word):
        plan.check_parallel(SMOLLM2, Parallel(tensor, pipeline))


def test_gpu_table_is_plausible_and_sourced() -> None:
    for gpu in gpu_table().values():
        assert gpu.source.startswith("NVIDIA")
        assert 10e9 < gpu.memory_bytes < 300e9
        ridge = (gpu.rates["bf16"] or 0) * 1e12 / gpu.bandwidth
        assert 100 < ridge < 500, f"{gpu.name}: {ridge} operations a byte"
        assert (gpu.rates["fp8"] is not None) == (gpu.capability is not None and float(gpu.capability) >= 8.9)
    assert gpu_named("h200").name == "H200"
    with pytest.raises(UserMistake, match="not in the table"):
        gpu_named("H999")


def test_mixture_of_experts_reads_what_the_batch_touches() -> None:
    raw = {**SMOLLM2.raw, "architectures": ["MixtralForCausalLM"], "model_type": "mixtral"}
    config = hf_config.parse({**raw, "num_local_experts": 8, "num_experts_per_tok": 2})
    counted = model_size.count_parameters(config)
    expert = 30 * 3 * 576 * 1536
    assert counted.linear - counted.active_linear == 6 * expert
    one = model_size.bytes_read_per_step(config, RECIPES["none"], 1)
    many = model_size.bytes_read_per_step(config, RECIPES["none"], 1000)
    assert many - one == pytest.approx(2 * 6 * expert, rel=1e-6)


def test_command_as_text_json_and_plot(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = str(write_config(tmp_path / "m", num_attention_heads=8, num_key_value_heads=2))
    assert cli.main(["plan", model, "--gpu", "H100-SXM", "--tensor-parallel", "2"]) == 0
    text = capsys.readouterr().out
    assert "8 query and 2 key/value heads" in text
    assert "full multi-head" in text
    assert "H100-SXM x 2" in text
    figure = tmp_path / "plot.svg"
    assert cli.main(["plan", model, "--gpu", "L4", "--quantization", "fp8,none", "--json", "--plot", str(figure)]) == 0
    data = json.loads(capsys.readouterr().out)
    assert [each["recipe"] for each in data["recipes"]] == ["fp8", "none"]
    assert data["recipes"][0]["fit"]["tokens"] > 0
    assert figure.read_text().startswith("<svg")
    assert cli.main(["plan", model, "--plot", str(figure)]) == 2
    assert cli.main(["plan", model, "--gpu-memory", "80"]) == 2


def test_chart_refuses_to_draw_nothing() -> None:
    with pytest.raises(ValueError, match="nothing to draw"):
        svg.chart("t", svg.Axis("x", True), svg.Axis("y"), [svg.Series("s", [(0.0, 1.0)])])
    drawn = svg.chart("a < b", svg.Axis("x"), svg.Axis("y"), [svg.Series("s", [(1.0, 2.0)], labels=["p&q"])])
    assert "a &lt; b" in drawn
    assert "p&amp;q" in drawn


def test_tuning_marks_what_nothing_beats() -> None:
    trials = [
        Trial("none", 200, 10.0, 10.0, 0.0, 1.0),
        Trial("int8", 100, 10.1, 10.0, 0.01, 0.98, tokens_per_second=50.0),
        Trial("fp8", 120, 10.2, 10.0, 0.02, 0.97),
        Trial("int4", 60, 12.0, 10.0, 0.2, 0.8),
        Trial("int4-awq", problem="no group fits"),
    ]
    assert tune.pareto(trials) == {"none", "int8", "int4"}
    text = tune.as_text(trials).splitlines()
    assert text[2].startswith("* int8")
    assert "(+1.00 %)" in text[2]
    assert text[3].startswith("  fp8")
    assert text[5] == "  int4-awq   failed: no group fits"
    assert "int4" in tune.as_svg(trials, "title")
    figures = json.loads(json.dumps(tune.as_json(trials), allow_nan=False))
    assert [trial["recipe"] for trial in figures if trial["perplexity"] is None] == ["int4-awq"]
    with pytest.raises(UserMistake, match="cannot be built for openvino"):
        tune.tune("m", "openvino", ["nvfp4"], tokens=1, cache=None, console=Console())
