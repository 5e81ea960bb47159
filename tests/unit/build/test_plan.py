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
    assert model_size.bytes_read_per_step(SMOLLM2, RECIPES["none"]) == 2 * 134_515_008
    assert model_size.kv_bytes_per_token(SMOLLM2, 16) == 2 * 30 * 3 * 64 * 2
    assert model_size.kv_bytes_per_token(SMOLLM2, 16, heads=9) == 3 * model_size.kv_bytes_per_token(SMOLLM2, 16)


def test_int4_counts_its_scales() -> None:
    linear = model_size.count_parameters(SMOLLM2).linear
    rest = 2 * (134_515_008 - linear + 49152 * 576)  # TensorRT-LLM stores a tied head apart
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


def plan_of(raw: dict[str, object], *options: str, folder: Path) -> int:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(raw), encoding="utf-8")
    return cli.main(["plan", str(folder), *options])


LLAMA_70B = {
    **SMOLLM2.raw,
    "vocab_size": 128256,
    "hidden_size": 8192,
    "intermediate_size": 28672,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "tie_word_embeddings": False,
}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"architectures": ["MambaForCausalLM"]}, "MambaForCausalLM cannot be planned; what can: LlamaForCausalLM"),
        ({"model_type": "mamba"}, "LlamaForCausalLM with the model_type 'mamba' cannot be planned"),
    ],
)
def test_what_cannot_be_counted_is_refused(
    change: dict[str, object], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert plan_of({**SMOLLM2.raw, **change}, folder=tmp_path / "m") == 2
    assert says in capsys.readouterr().err


def test_what_no_target_builds_is_planned_and_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    neox = {**SMOLLM2.raw, "architectures": ["GPTNeoXForCausalLM"], "model_type": "gpt_neox"}
    assert plan_of(neox, folder=tmp_path / "m") == 0
    assert "built for: no target here" in capsys.readouterr().out


def test_a_checkpoint_that_is_quantized_already_is_said_to_be(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert plan_of({**SMOLLM2.raw, "quantization_config": {"quant_method": "awq"}}, folder=tmp_path / "m") == 0
    assert "quantized already (awq)" in capsys.readouterr().out


def test_a_card_has_the_bytes_that_its_driver_counts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """70 B in 8 bits and a few sequences fit an H100 of 80 GB; with 80·10⁹ bytes of memory they did not."""
    assert gpu_named("H100-SXM").memory_bytes == 81_559 * 2**20
    assert gpu_named("H200").memory_bytes == 143_771 * 2**20
    options = ("--gpu", "H100-SXM", "--quantization", "fp8,none", "--json", "--max-num-tokens", "2048")
    assert plan_of(LLAMA_70B, *options, folder=tmp_path / "m") == 0
    fp8, plain = json.loads(capsys.readouterr().out)["recipes"]
    assert fp8["fit"]["sequences"] >= 1
    assert plain["fit"]["sequences"] == 0


def test_no_rate_is_shown_where_nothing_fits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert plan_of(LLAMA_70B, "--gpu", "H100-SXM", "--quantization", "none", folder=tmp_path / "m") == 0
    line = capsys.readouterr().out.splitlines()[-1]
    assert "does not fit" in line
    assert line.split()[:3] == ["none", "141", "GB"]
    assert line.split("fit")[1].split() == ["–", "–", "never", "(KV)"]


def test_no_rate_is_shown_for_more_sequences_than_fit() -> None:
    config = hf_config.parse(LLAMA_70B)
    planned = plan.make_plan("m", config, recipes=["fp8"], length=2048, gpu=gpu_named("H100-SXM"), max_num_tokens=2048)
    (recipe,) = planned.recipes
    assert recipe.fit is not None
    assert 1 <= recipe.fit.sequences < 64
    assert max(step.batch for step in recipe.decode) <= recipe.fit.sequences


def test_a_checkpoint_of_32_bits_is_built_in_16() -> None:
    single = hf_config.parse({**LLAMA_70B, "dtype": "float32"})
    half = hf_config.parse(LLAMA_70B)
    for name in ("none", "fp8"):
        assert model_size.weight_bytes(single, RECIPES[name]) == model_size.weight_bytes(half, RECIPES[name])
    assert model_size.stored_bytes(single, RECIPES["none"])["openvino"] == 4 * model_size.count_parameters(half).total


def test_each_target_stores_tied_embeddings_in_its_own_way() -> None:
    """SmolLM2 as it was built: docs/recipes.md has 272, 138, 93 and 88 MB on OpenVINO (with 3 MB of tokenizer models
    and graph) and 326 MB on TensorRT-LLM.
    """
    sizes = {name: model_size.stored_bytes(SMOLLM2, RECIPES[name]) for name in RECIPES}
    for name, built in (("none", 269.1e6), ("int8", 135.2e6), ("int4", 90e6), ("int4-awq", 85.5e6)):
        assert sizes[name]["openvino"] == pytest.approx(built, rel=0.01), name
    assert sizes["none"]["tensorrt-llm"] == pytest.approx(325.65e6, rel=0.001)
    assert sizes["none"]["hf-quantized"] == 2 * 134_515_008


def test_a_model_of_latent_attention_is_planned(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    latent = {"kv_lora_rank": 512, "q_lora_rank": 1536, "qk_rope_head_dim": 64, "qk_nope_head_dim": 128}
    experts = {"n_routed_experts": 256, "n_shared_experts": 1, "num_experts_per_tok": 8, "moe_intermediate_size": 2048}
    shape = {"vocab_size": 129280, "hidden_size": 7168, "intermediate_size": 18432, "num_hidden_layers": 61}
    heads = {"num_attention_heads": 128, "num_key_value_heads": 128, "v_head_dim": 128, "first_k_dense_replace": 3}
    named = {"architectures": ["DeepseekV3ForCausalLM"], "model_type": "deepseek_v3", "tie_word_embeddings": False}
    deepseek = {**SMOLLM2.raw, **latent, **experts, **shape, **heads, **named}
    assert plan_of(deepseek, "--gpu", "H200", "--tensor-parallel", "8", folder=tmp_path / "m") == 0
    out = capsys.readouterr().out
    assert "671,026.4 M parameters, 36,6" in out
    assert "latent, 128 heads over one vector of 512 and 64" in out
