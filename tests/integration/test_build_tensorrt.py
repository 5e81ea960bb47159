"""The builder's TensorRT-LLM checkpoints: ModelOpt quantizes and exports, an independent reader proves the result."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from build_engine import hf_config, source
from build_engine.errors import BuilderError
from build_engine.loading import load_model
from build_engine.planning.roofline import Parallel
from build_engine.quantization import RECIPES as VOCABULARY
from build_engine.tensorrt import hf_int8, hf_quantize, hf_target, quantize, recipes
from build_engine.tensorrt.config import disagreements
from build_engine.tensorrt.hf_reader import algorithm, round_e2m1, round_tokens, unpack_e2m1
from build_engine.tensorrt.reader import Checkpoint, unpack_int4
from build_engine.tensorrt.runner import CheckpointCandidate
from build_engine.tensorrt.weights import compare as compare_tensors
from build_engine.tensorrt.weights import worst_weight
from build_engine.verification import stage as verification
from build_engine.verification.thresholds import too_far
from inflight.manifest import Verification
from inflight_tools.common import tiny_models
from inflight_tools.common.layout import CACHE
from inflight_tools.common.tiny_models import train_checkpoint, write_checkpoint

pytestmark = pytest.mark.build


class Silent:
    def __call__(self, fraction: float | None, note: str = "") -> None: ...
    def warn(self, message: str) -> None: ...


@dataclass(frozen=True)
class Trained:
    staged: Path
    text: str
    work: Path


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """These models are too small for two threads, which only wait for each other on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    work = tmp_path_factory.mktemp("trained")
    directory = control_model(work)
    staged = source.stage(source.resolve(str(directory)), work / "staged")
    return Trained(staged, (directory / "text.txt").read_text(), work)


def control_model(work: Path) -> Path:
    """The trained checkpoint, from .cache when the same code has trained it before (half a minute)."""
    version = hashlib.sha256(Path(tiny_models.__file__).read_bytes() + torch.__version__.encode()).hexdigest()[:16]
    kept = CACHE / "tests" / f"control-model-{version}"
    if not kept.exists():
        kept.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(train_checkpoint(work / "model"), f"{kept}.{os.getpid()}")
        try:
            os.rename(f"{kept}.{os.getpid()}", kept)
        except OSError:  # somebody else was faster
            shutil.rmtree(f"{kept}.{os.getpid()}")
    return Path(shutil.copytree(kept, work / "model"))


def export(
    staged: Path,
    output: Path,
    recipe: str,
    split: str = "1x1",
    kv: str = "none",
    text: str = "",
    group: int | None = None,
) -> list[str]:
    """Write a checkpoint and return the corrections made to the exporter's configuration."""
    tensor, pipeline = (int(part) for part in split.split("x"))
    config = hf_config.load(staged)
    output.mkdir(parents=True)
    spec = {
        "staged": str(staged),
        "output": str(output),
        "recipe": recipe,
        "kv_cache": kv,
        "tensor": tensor,
        "pipeline": pipeline,
        "group_size": group or recipes.group_size(config, VOCABULARY[recipe], Parallel(tensor, pipeline)),
        "alpha": 0.5,
        "tokenizer": str(staged / "tokenizer.json"),
        "calibration_text": text or "The quick brown fox jumps over the lazy dog, and then it sleeps. " * 60,
        "calibration_tokens": 1024,
        "max_seq_len": 129,
    }
    corrections: list[str] = quantize.run(spec, Silent())["corrections"]
    return corrections


def compare(trained: Trained, directory: Path, tokens: int = 1024, target: str = "tensorrt_llm") -> Verification:
    spec = {
        "tokenizer": str(trained.staged / "tokenizer.json"),
        "directory": str(directory),
        "staged": str(trained.staged),
        "target": target,
        "kv_cache": "none",
        "max_seq_len": 129,
        "weight_bytes": 0,
        "text": trained.text,
        "tokens": tokens,
        "borders": [],
    }
    found = verification.run(spec, Silent())
    names = (
        "perplexity",
        "reference_perplexity",
        "mean_kl",
        "greedy_agreement",
        "tokens",
        "weight_error",
        "worst_weight",
        "faults",
    )
    return Verification(text="training text", **{name: found[name] for name in names})


@pytest.fixture(scope="module")
def checkpoints(trained: Trained) -> Callable[[str], Path]:
    """Checkpoints of the trained model by ``recipe`` or ``recipe-split``, each made once."""

    def make(name: str) -> Path:
        directory = trained.work / name.replace("/", "-")
        if not directory.exists():
            recipe, _, split = name.partition("/")
            group = 64 if recipe.endswith("awq") else None  # what two ranks can have, so that all splits compare
            export(trained.staged, directory, recipe, split or "1x1", text=trained.text, group=group)
        return directory

    return make


def test_the_control_model_predicts_well(trained: Trained, checkpoints: Callable[[str], Path]) -> None:
    figures = compare(trained, checkpoints("none"))
    assert figures.reference_perplexity < 6


@pytest.mark.parametrize("split", ["1x1", "2x1", "4x1", "1x2", "2x2"])
def test_unquantized_splits_equal_the_source(trained: Trained, checkpoints: Callable[[str], Path], split: str) -> None:
    """4 query and 2 key/value heads: with 4 ranks each key/value head is stored twice."""
    figures = compare(trained, checkpoints(f"none/{split}"))
    assert figures.perplexity == pytest.approx(figures.reference_perplexity, rel=1e-5)
    assert figures.mean_kl < 1e-6
    assert figures.greedy_agreement > 0.999


@pytest.mark.parametrize("recipe", ["int8", "fp8", "int8-sq", "int4-awq", "w4a8-awq"])
def test_quantized_checkpoints_keep_their_thresholds(
    trained: Trained, checkpoints: Callable[[str], Path], recipe: str
) -> None:
    figures = compare(trained, checkpoints(recipe))
    assert too_far("tensorrt_llm", recipe, figures) is None, figures
    assert figures.mean_kl > 1e-7, "a quantized model that equals its source was not quantized"


@pytest.mark.parametrize(
    ("recipe", "split"),
    [("fp8", "2x1"), ("fp8", "1x2"), ("int8-sq", "2x1"), ("int4-awq", "2x1"), ("int4-awq", "1x2"), ("w4a8-awq", "2x2")],
)
def test_quantized_splits_agree_with_the_unsplit_one(
    checkpoints: Callable[[str], Path], trained: Trained, recipe: str, split: str
) -> None:
    ids = torch.arange(3, 120)
    with torch.inference_mode():
        whole = CheckpointCandidate(checkpoints(recipe)).logits(ids)
        parts = CheckpointCandidate(checkpoints(f"{recipe}/{split}")).logits(ids)
    divergence = (whole.log_softmax(-1).exp() * (whole.log_softmax(-1) - parts.log_softmax(-1))).sum(-1).mean()
    assert float(divergence) < 2e-3


@pytest.mark.parametrize("recipe", ["fp8", "nvfp4", "int4-awq", "w4a8-awq", "int8-sq"])
def test_hugging_face_style_checkpoints(trained: Trained, tmp_path: Path, recipe: str) -> None:
    """What vLLM and ``tensorrt_llm.LLM`` load, read back."""
    output = tmp_path / "checkpoint"
    output.mkdir()
    spec = {
        "staged": str(trained.staged),
        "output": str(output),
        "recipe": recipe,
        "kv_cache": "none",
        "group_size": 128 if recipe.endswith("awq") else None,
        "alpha": 0.85,
        "tokenizer": str(trained.staged / "tokenizer.json"),
        "calibration_text": trained.text,
        "calibration_tokens": 1024,
        "max_seq_len": 129,
    }
    (hf_int8 if recipe == "int8-sq" else hf_quantize).run(spec, Silent())
    figures = compare(trained, output, target="hf_quantized")
    assert too_far("tensorrt_llm", recipe, figures) is None, figures
    assert figures.mean_kl > 1e-4, "a quantized model that equals its source was not quantized"
    assert algorithm(output)[0] == hf_target.ALGORITHMS[recipe]


def test_rows_of_integers_by_hand() -> None:
    values, scale = hf_int8.quantize_rows(torch.tensor([[254.0, -127.0, 1.0], [0.0, 0.0, 0.0]]))
    assert scale[0].item() == 2.0
    assert values.tolist() == [[127, -64, 0], [0, 0, 0]]
    assert round_tokens(torch.tensor([[254.0, 3.0, -1.0]])).tolist() == [[254.0, 4.0, 0.0]]


def test_e2m1_by_hand() -> None:
    packed = torch.tensor([[0x21, 0xFA]], dtype=torch.uint8)
    assert unpack_e2m1(packed).tolist() == [[0.5, 1.0, -1.0, -6.0]]
    x = torch.tensor([0.1, 0.3, -0.26, 6.0, 5.1, 2.4, -2.6, 0.0] + [0.0] * 8)
    assert round_e2m1(x, torch.tensor(1.0)).tolist()[:8] == [0.0, 0.5, -0.5, 6.0, 6.0, 2.0, -3.0, 0.0]


@pytest.mark.parametrize(("kv", "largest"), [("fp8", 0.06), ("int8", 0.02)])
def test_quantized_kv_cache(trained: Trained, kv: str, largest: float) -> None:
    directory = trained.work / f"kv-{kv}"
    export(trained.staged, directory, "none", kv=kv, text=trained.text)
    figures = compare(trained, directory)
    assert 1e-7 < figures.mean_kl < largest


def test_linear_layers_equal_modelopts_own(trained: Trained, tmp_path: Path) -> None:
    """What the reader makes of the file computes what ModelOpt's quantized module computes."""
    from transformers import AutoModelForCausalLM

    config = hf_config.load(trained.staged)
    for recipe, tolerance in (("fp8", 1e-5), ("int8-sq", 0.03), ("int4-awq", 0.01), ("w4a8-awq", 0.05)):
        model = AutoModelForCausalLM.from_pretrained(trained.staged, dtype=torch.float32).eval()
        output = tmp_path / recipe
        output.mkdir()
        spec = {
            "recipe": recipe,
            "kv_cache": "none",
            "group_size": recipes.group_size(config, VOCABULARY[recipe], Parallel()),
            "alpha": 0.5,
            "tokenizer": str(trained.staged / "tokenizer.json"),
            "calibration_text": trained.text,
            "calibration_tokens": 512,
            "max_seq_len": 129,
        }
        quantize.calibrate(model, spec, Silent())
        quantize.export(model, "llama", torch.bfloat16, output, Parallel())
        quantize.correct_files(output, config, Parallel(), spec)
        checkpoint = Checkpoint(output)
        layer = model.model.layers[1]
        wide = (config.num_heads + 2 * config.num_kv_heads) * config.head_dim
        attention, mlp = layer.self_attn, layer.mlp
        for name, modules, out, into in (
            ("attention.qkv", (attention.q_proj, attention.k_proj, attention.v_proj), wide, 128),
            ("attention.dense", (attention.o_proj,), 128, 128),
            ("mlp.fc", (mlp.gate_proj,), 256, 128),
            ("mlp.gate", (mlp.up_proj,), 256, 128),
            ("mlp.proj", (mlp.down_proj,), 128, 256),
        ):
            x = torch.randn(6, into, generator=torch.Generator().manual_seed(1))
            with torch.no_grad():
                expected = torch.cat([module(x) for module in modules], dim=-1)
                got = checkpoint.linear(0, f"transformer.layers.1.{name}", out, into)(x)
            error = float((got - expected).norm() / expected.norm())
            assert error < tolerance, f"{recipe} {name}: {error}"


# Planted faults: the artifact's bytes are edited, and the comparison with the source must fail.


def edit(name: str, change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    def apply(directory: Path) -> None:
        tensors = load_file(directory / name)
        change(tensors)
        save_file({key: value.contiguous() for key, value in tensors.items()}, directory / name)

    return apply


LAYER = "transformer.layers.1."


def swap_gate_and_up(tensors: dict[str, torch.Tensor]) -> None:
    for suffix in [key.removeprefix(f"{LAYER}mlp.fc.") for key in tensors if key.startswith(f"{LAYER}mlp.fc.")]:
        gate, up = f"{LAYER}mlp.fc.{suffix}", f"{LAYER}mlp.gate.{suffix}"
        tensors[gate], tensors[up] = tensors[up].clone(), tensors[gate].clone()


def reorder_qkv(tensors: dict[str, torch.Tensor]) -> None:
    query, key, value = tensors[f"{LAYER}attention.qkv.weight"].split([128, 64, 64])
    tensors[f"{LAYER}attention.qkv.weight"] = torch.cat((query, value, key))


def double_scale(tensors: dict[str, torch.Tensor]) -> None:
    tensors[f"{LAYER}mlp.proj.weights_scaling_factor"] *= 2


def swap_nibbles(tensors: dict[str, torch.Tensor]) -> None:
    name = f"{LAYER}mlp.proj.weight"
    raw = tensors[name].view(torch.uint8)
    tensors[name] = ((raw >> 4) | (raw << 4)).view(torch.int8)


def drop_layer(tensors: dict[str, torch.Tensor]) -> None:
    for key in [key for key in tensors if key.startswith(LAYER)]:
        del tensors[key]


def rotary_base(directory: Path) -> None:
    config = json.loads((directory / "config.json").read_text())
    del config["rotary_base"]
    (directory / "config.json").write_text(json.dumps(config))


def truncate(directory: Path) -> None:
    path = directory / "rank0.safetensors"
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size - 1000)


FAULTS: list[Any] = [
    pytest.param("none", edit("rank0.safetensors", swap_gate_and_up), id="gate and up swapped"),
    pytest.param("fp8", edit("rank0.safetensors", swap_gate_and_up), id="gate and up swapped, fp8"),
    pytest.param("none", rotary_base, id="rotary base missing"),
    pytest.param("fp8", rotary_base, id="rotary base missing, fp8"),
    pytest.param("fp8", edit("rank0.safetensors", double_scale), id="scale doubled, fp8"),
    pytest.param("int8-sq", edit("rank0.safetensors", double_scale), id="scale doubled, int8-sq"),
    pytest.param("int4-awq", edit("rank0.safetensors", swap_nibbles), id="nibbles swapped"),
    pytest.param("none", edit("rank0.safetensors", reorder_qkv), id="q, v, k"),
    pytest.param("fp8", edit("rank0.safetensors", reorder_qkv), id="q, v, k, fp8"),
    pytest.param("none", truncate, id="shard truncated"),
    pytest.param("none", edit("rank0.safetensors", drop_layer), id="layer missing"),
]


@pytest.mark.parametrize(("recipe", "plant"), FAULTS)
def test_planted_faults_are_caught(
    trained: Trained,
    checkpoints: Callable[[str], Path],
    tmp_path: Path,
    recipe: str,
    plant: Callable[[Path], None],
) -> None:
    directory = tmp_path / "checkpoint"
    shutil.copytree(checkpoints(recipe), directory)
    assert too_far("tensorrt_llm", recipe, compare(trained, directory, tokens=512)) is None
    plant(directory)
    try:
        problem = too_far("tensorrt_llm", recipe, compare(trained, directory, tokens=512))
    except BuilderError as error:
        problem = str(error)
    assert problem is not None
    assert "\n" not in problem


# The least faults, which perplexity does not see: every tensor has a rule of its own.


def change(**factors: float) -> Callable[[dict[str, torch.Tensor]], None]:
    """Multiply tensors of layer 1, by their names' ends with dots as double underscores."""

    def apply(tensors: dict[str, torch.Tensor]) -> None:
        for end, factor in factors.items():
            tensors[LAYER + end.replace("__", ".")] *= factor

    return apply


def double_row(tensors: dict[str, torch.Tensor]) -> None:
    stored = tensors[f"{LAYER}mlp.proj.weight"].view(torch.float8_e4m3fn)
    row = stored[17].float() * 2
    stored[17] = row.clamp(-448, 448).to(torch.float8_e4m3fn)


def zero_channel(tensors: dict[str, torch.Tensor]) -> None:
    tensors[f"{LAYER}input_layernorm.weight"][5] = 0


def zero_head_rows(tensors: dict[str, torch.Tensor]) -> None:
    tensors["lm_head.weight"][20:30] = 0


def without_separate_scales(tensors: dict[str, torch.Tensor]) -> None:
    for part in "kv":
        del tensors[f"{LAYER}attention.{part}_cache_scaling_factor"]
    tensors[f"{LAYER}attention.kv_cache_scaling_factor"] *= 64


def setting(key: str, value: Any) -> Callable[[Path], None]:
    def apply(directory: Path) -> None:
        config = json.loads((directory / "config.json").read_text())
        (directory / "config.json").write_text(json.dumps({**config, key: value}))

    return apply


def on_every_rank(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    def apply(directory: Path) -> None:
        for path in sorted(directory.glob("rank*.safetensors")):
            edit(path.name, change)(directory)

    return apply


LEAST_FAULTS: dict[str, tuple[Callable[[Path], None], str]] = {
    "one row of an MLP's output doubled": (edit("rank1.safetensors", double_row), "row 17 of layer 1 down is"),
    "one layer's norm times 1.1": (on_every_rank(change(post_layernorm__weight=1.1)), "layer 1 post norm has"),
    "one norm channel zeroed": (on_every_rank(zero_channel), "layer 1 input norm has 0 where the source has"),
    "an activation scale times 0.25": (
        on_every_rank(change(mlp__fc__activation_scaling_factor=0.25)),
        "layer 1 gate has an activation scale of",
    ),
    "ten lm_head rows zeroed": (edit("rank0.safetensors", zero_head_rows), "(and 9 more) is"),
    "the scale of the KV cache times 64": (
        on_every_rank(change(attention__kv_cache_scaling_factor=64)),
        "layer 1 has a scale of 64 for the KV cache on rank 0, where the larger of those for keys and values is 1",
    ),
    "the scale of the KV cache over 4096": (
        on_every_rank(change(attention__kv_cache_scaling_factor=1 / 4096)),
        "for the KV cache on rank 0",
    ),
    "both scales of the KV cache times 64": (on_every_rank(without_separate_scales), "layer 1 has a scale of 64"),
    "the norms' epsilon": (setting("norm_epsilon", 1e-4), "config.json has norm_epsilon 0.0001 where the source"),
    "the activation": (setting("hidden_act", "gelu"), "config.json has hidden_act gelu where the source makes it silu"),
}


@pytest.fixture(scope="module")
def state(trained: Trained) -> dict[str, torch.Tensor]:
    """The source's tensors."""
    found: dict[str, torch.Tensor] = load_model(trained.staged, torch.float32).state_dict()
    return found


def faults_of(trained: Trained, state: dict[str, torch.Tensor], directory: Path) -> list[str]:
    """What the comparison says of the tensors and of config.json."""
    candidate = CheckpointCandidate(directory)
    found = compare_tensors(candidate, state, quantize.read_ranges(directory)).faults
    return found + disagreements(candidate.config, hf_config.load(trained.staged))


@pytest.fixture(scope="module")
def split_fp8(trained: Trained) -> Path:
    """FP8 weights, activations and KV cache on two ranks."""
    directory = trained.work / "least-faults"
    export(trained.staged, directory, "fp8", "2x1", "fp8", trained.text)
    assert compare(trained, directory, tokens=256).faults == []
    return directory


@pytest.mark.parametrize("fault", LEAST_FAULTS)
def test_the_least_faults_are_named(
    trained: Trained, state: dict[str, torch.Tensor], split_fp8: Path, tmp_path: Path, fault: str
) -> None:
    directory = tmp_path / "checkpoint"
    shutil.copytree(split_fp8, directory)
    plant, says = LEAST_FAULTS[fault]
    plant(directory)
    assert says in faults_of(trained, state, directory)[0]


@pytest.mark.parametrize("recipe", ["int8-sq", "w4a8-awq"])
@pytest.mark.parametrize(
    ("tensor", "layer"),
    [("attention__qkv", "qkv"), ("attention__dense", "attention output"), ("mlp__fc", "gate"), ("mlp__proj", "down")],
)
def test_a_scale_of_smoothed_activations_is_named(
    trained: Trained,
    state: dict[str, torch.Tensor],
    checkpoints: Callable[[str], Path],
    tmp_path: Path,
    recipe: str,
    tensor: str,
    layer: str,
) -> None:
    directory = tmp_path / "checkpoint"
    shutil.copytree(checkpoints(recipe), directory)
    edit("rank0.safetensors", change(**{f"{tensor}__activation_scaling_factor": 0.25}))(directory)
    assert faults_of(trained, state, directory)[0].startswith(f"layer 1 {layer} has an activation scale of ")


@pytest.mark.parametrize("recipe", ["none", "int8", "int4", "fp8", "int8-sq", "int4-awq", "w4a8-awq"])
@pytest.mark.parametrize("split", ["", pytest.param("/2x2", marks=pytest.mark.full)])
def test_no_honest_checkpoint_has_a_fault(
    trained: Trained, state: dict[str, torch.Tensor], checkpoints: Callable[[str], Path], recipe: str, split: str
) -> None:
    """Every row takes less than two thirds of what its recipe's rounding may make."""
    directory = checkpoints(f"{recipe}{split}")
    assert faults_of(trained, state, directory) == []
    found = compare_tensors(CheckpointCandidate(directory), state, quantize.read_ranges(directory))
    assert found.nearest < 0.66


def test_nibbles_by_hand() -> None:
    packed = torch.tensor([[0x21, 0x8F]], dtype=torch.uint8).view(torch.int8)
    assert unpack_int4(packed).tolist() == [[1.0, -1.0], [2.0, -8.0]]


SHAPE = {"hidden_size": 128, "intermediate_size": 256, "dtype": "bfloat16", "tie_word_embeddings": False}
MODELS: dict[str, dict[str, Any]] = {
    "llama": {
        "attention_bias": True,
        "mlp_bias": True,
        "tie_word_embeddings": True,
        "vocab_size": 301,
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        },
    },
    "mistral": {"sliding_window": 32, "num_key_value_heads": 1, "head_dim": 64},
    "qwen2": {"rope_theta": 1e6, "rope_scaling": {"rope_type": "yarn", "factor": 4.0}},
    "qwen3": {"head_dim": 48, "rope_theta": 1e6, "rope_scaling": {"rope_type": "linear", "factor": 2.0}},
    "mixtral": {"num_local_experts": 4, "sliding_window": None},
    "qwen2_moe": {"num_experts": 4, "moe_intermediate_size": 64, "shared_expert_intermediate_size": 128},
}


@pytest.mark.parametrize("model_type", sorted(MODELS))
def test_architectures(tmp_path: Path, model_type: str) -> None:
    """Real transformers classes with random weights, unquantized, unsplit and split: equal to the source."""
    from transformers import AutoModelForCausalLM

    directory = write_checkpoint(tmp_path / "model", model_type, **{**SHAPE, **MODELS[model_type]})
    staged = source.stage(source.resolve(str(directory)), tmp_path / "staged")
    ids = torch.arange(3, 83)
    with torch.inference_mode():
        model = AutoModelForCausalLM.from_pretrained(staged, dtype=torch.float32).eval()
        expected, state = model(ids[None]).logits[0], model.state_dict()
    for split in ("1x1", "2x2", "4x1"):
        export(staged, tmp_path / split, "none", split)
        with torch.inference_mode():
            got = CheckpointCandidate(tmp_path / split).logits(ids)
        error = float((got - expected).abs().max() / expected.abs().max())
        assert error < 1e-4, f"{split}: {error}"
        assert worst_weight(CheckpointCandidate(tmp_path / split), state)[0] == 0.0


def test_the_exporters_configuration_is_corrected(tmp_path: Path) -> None:
    directory = write_checkpoint(tmp_path / "model", "qwen2_moe", **{**SHAPE, **MODELS["qwen2_moe"]})
    staged = source.stage(source.resolve(str(directory)), tmp_path / "staged")
    corrections = export(staged, tmp_path / "checkpoint", "none")
    written = json.loads((tmp_path / "checkpoint" / "config.json").read_text())
    assert written["qwen_type"] == "qwen2_moe"
    assert written["moe"] == {"num_experts": 4, "top_k": 4, "normalization_mode": 0}
    assert written["intermediate_size"] == 256
    assert written["rotary_base"] == 10_000.0
    assert any(text.startswith("qwen_type: missing") for text in corrections)
    assert not (tmp_path / "checkpoint" / "quant_cfg.json").exists()
