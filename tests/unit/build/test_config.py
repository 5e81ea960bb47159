from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest

from build_engine import hf_config, source
from build_engine.architectures import SUPPORTED, support_for
from build_engine.build import sequence_limit
from build_engine.console import Console
from build_engine.errors import UserMistake
from build_engine.openvino.recipes import compression_for
from build_engine.quantization import KV_CACHES, RECIPES, group_size_for, kv_cache_for, recipe_for
from inflight.engines.openvino import rope
from inflight_tools.common.tiny_models import LLAMA, write_config

pytestmark = pytest.mark.fast

BASE = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", **LLAMA}


def test_transformers_4_form() -> None:
    config = hf_config.parse({**BASE, "rope_theta": 100000.0, "rope_scaling": None})
    assert (config.rope_base, config.rope_scaling, config.head_dim) == (100000.0, None, 16)
    assert hf_config.to_transformers_4(config.raw) == config.raw


def test_transformers_5_form_keeps_its_base() -> None:
    raw = {**BASE, "rope_parameters": {"rope_type": "default", "rope_theta": 100000.0}}
    assert hf_config.parse(raw).rope_base == 100000.0
    translated = hf_config.to_transformers_4(raw)
    assert (translated["rope_theta"], translated["rope_scaling"]) == (100000.0, None)
    assert "rope_parameters" not in translated


def test_transformers_5_scaling() -> None:
    parameters = {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0}
    config = hf_config.parse({**BASE, "rope_parameters": parameters})
    assert config.rope_scaling == {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0}
    assert hf_config.to_transformers_4(config.raw)["rope_scaling"] == config.rope_scaling


def test_old_spelling_of_the_scaling_kind() -> None:
    config = hf_config.parse({**BASE, "rope_scaling": {"type": "linear", "factor": 2.0}})
    assert config.rope_scaling == {"rope_type": "linear", "factor": 2.0}


def test_two_bases_per_attention_type() -> None:
    parameters = {
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
    }
    raw = {**BASE, "model_type": "gemma3_text", "rope_parameters": parameters}
    config = hf_config.parse(raw)
    assert (config.rope_base, config.rope_local_base) == (1e6, 1e4)
    translated = hf_config.to_transformers_4(raw)
    assert translated["rope_local_base_freq"] == 1e4
    assert translated["rope_scaling"] == {"rope_type": "linear", "factor": 8.0}


def test_two_different_bases_are_refused() -> None:
    with pytest.raises(UserMistake, match="two rotary bases"):
        hf_config.parse({**BASE, "rope_theta": 1e4, "rope_parameters": {"rope_theta": 1e5}})


def test_staged_copy_is_translated_and_links_the_rest(tmp_path: Path) -> None:
    directory = write_config(
        tmp_path / "m", rope_parameters={"rope_theta": 5e5}, auto_map={"AutoConfig": "evil.Config"}
    )
    (directory / "model.safetensors").write_bytes(b"w")
    (directory / "tokenizer.json").write_text("{}")
    (directory / "evil.py").write_text("raise SystemExit")
    staged = source.stage(source.resolve(str(directory)), tmp_path / "staged")
    config = json.loads((staged / "config.json").read_text())
    assert config["rope_theta"] == 5e5
    assert "auto_map" not in config
    assert (staged / "model.safetensors").resolve() == directory / "model.safetensors"
    assert not (staged / "evil.py").exists()


def test_source_hash_covers_weights_tokenizer_and_config(tmp_path: Path) -> None:
    directory = write_config(tmp_path / "m")
    (directory / "model.safetensors").write_bytes(b"w")
    (directory / "tokenizer.json").write_text("{}")
    (directory / "README.md").write_text("one")
    first = source.resolve(str(directory)).sha256()
    (directory / "README.md").write_text("two")
    assert source.resolve(str(directory)).sha256() == first
    for name in ("model.safetensors", "tokenizer.json"):
        before = source.resolve(str(directory)).sha256()
        (directory / name).write_bytes(b"changed")
        assert source.resolve(str(directory)).sha256() != before


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (lambda d: None, "has no .*safetensors"),
        (lambda d: (d / "pytorch_model.bin").write_bytes(b""), "pickled"),
        (
            lambda d: (
                (d / "model-00001-of-00002.safetensors").write_bytes(b""),
                (d / "model.safetensors.index.json").write_text(
                    '{"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}'
                ),
            ),
            "lacks model-00002-of-00002.safetensors",
        ),
    ],
)
def test_incomplete_checkpoints(tmp_path: Path, prepare: object, message: str) -> None:
    directory = write_config(tmp_path / "m")
    prepare(directory)  # type: ignore[operator]
    with pytest.raises(UserMistake, match=message):
        source.resolve(str(directory))


def test_neither_directory_nor_hub_name(tmp_path: Path) -> None:
    with pytest.raises(UserMistake, match="neither a directory nor a hub name"):
        source.resolve("./no/such/place")
    (tmp_path / "f").write_text("")
    with pytest.raises(UserMistake, match="is a file"):
        source.resolve(str(tmp_path / "f"))


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"architectures": ["X"]}', '{"architectures": []}'])
def test_bad_configurations(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(UserMistake):
        hf_config.load(tmp_path)


def test_unsupported_architecture_is_named_with_the_list() -> None:
    config = hf_config.parse({**BASE, "architectures": ["MambaForCausalLM"]})
    with pytest.raises(
        UserMistake, match="MambaForCausalLM is not supported for openvino, which builds: LlamaForCausalLM"
    ):
        support_for(config, "openvino")
    assert "LlamaForCausalLM" in SUPPORTED


def test_quantization_a_target_lacks_is_refused_with_what_it_has() -> None:
    with pytest.raises(UserMistake, match="cannot be built for openvino, which takes: none, int8, int8-sq, int4"):
        recipe_for("nvfp4", "openvino")
    with pytest.raises(UserMistake, match="--kv-cache fp8 cannot be served by openvino"):
        kv_cache_for("fp8", "openvino", RECIPES["int8"])
    assert kv_cache_for("auto", "openvino", RECIPES["int8"]) == "int8"
    assert "auto" in KV_CACHES


@pytest.mark.parametrize(("widths", "group"), [([576, 1536], 64), ([4096, 11008], 128), ([64, 96], 32), ([60], None)])
def test_group_size_is_the_largest_that_divides(widths: list[int], group: int | None) -> None:
    assert group_size_for(RECIPES["int4"], widths) == group


def test_sliding_layers() -> None:
    gemma2 = {**BASE, "model_type": "gemma2", "sliding_window": 64, "num_hidden_layers": 5}
    assert hf_config.parse(gemma2).sliding_layers == 3
    assert hf_config.parse({**BASE, "sliding_window": 64, "use_sliding_window": False}).sliding_layers == 0
    mixed = {**BASE, "sliding_window": 64, "layer_types": ["sliding_attention", "full_attention"]}
    assert hf_config.parse(mixed).sliding_layers == 1


def test_smoothed_int8_on_openvino() -> None:
    sizes = {"hidden_size": 576, "intermediate_size": 1536, "num_attention_heads": 9, "num_key_value_heads": 3}
    made = compression_for(RECIPES["int8-sq"], hf_config.parse({**BASE, **sizes}))
    assert made is not None
    assert (made.alpha, made.activation_group, made.calibrated) == (0.5, 64, True)
    assert made.arguments == {"mode": "int8_asym"}
    odd = compression_for(RECIPES["int8-sq"], hf_config.parse({**BASE, **sizes, "intermediate_size": 1552}), 0.7)
    assert odd is not None
    assert (odd.alpha, odd.activation_group) == (0.7, None)
    olmo = hf_config.parse({**BASE, **sizes, "architectures": ["Olmo2ForCausalLM"], "model_type": "olmo2"})
    with pytest.raises(UserMistake, match=r"int8-sq is built for llama, .* and this model is olmo2: use int8"):
        compression_for(RECIPES["int8-sq"], olmo)


LONG = {"rope_type": "longrope", "short_factor": [1.0] * 8, "long_factor": [2.0] * 8}


@pytest.mark.parametrize(
    ("changes", "border"),
    [
        ({"rope_scaling": LONG, "original_max_position_embeddings": 64}, 64),
        ({"rope_scaling": {**LONG, "original_max_position_embeddings": 64}}, 64),
        ({"rope_parameters": {**LONG, "rope_theta": 1e4, "original_max_position_embeddings": 64}}, 64),
        ({"rope_scaling": {**LONG, "rope_type": "su"}, "original_max_position_embeddings": 64}, 64),
        ({"model_type": "phi3", "rope_scaling": LONG, "max_position_embeddings": 131072}, 4096),
        ({"model_type": "phi3", "rope_scaling": {**LONG, "type": "yarn", "rope_type": None}}, 4096),
        ({"rope_scaling": LONG}, 256),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}}, None),
        ({"rope_scaling": {"rope_type": "linear", "factor": 4.0}}, None),
        ({}, None),
    ],
)
def test_where_longrope_changes_its_factors(changes: dict[str, Any], border: int | None) -> None:
    """Builder and engine say the same, and an engine that was built before has its limit lowered when it is loaded."""
    assert hf_config.switching_length(hf_config.parse({**BASE, **changes})) == border
    assert rope.switching_length({**BASE, **changes}) == border


@pytest.mark.parametrize(
    ("changes", "borders"),
    [
        ({}, ()),
        ({"rope_scaling": {"rope_type": "linear", "factor": 4.0}}, ()),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}}, (64,)),
        ({"rope_scaling": LONG, "original_max_position_embeddings": 64}, (64,)),
        ({"model_type": "mistral", "sliding_window": 48}, (48,)),
        ({"model_type": "qwen2", "sliding_window": 48, "use_sliding_window": False}, ()),
        (
            {
                "model_type": "gemma3_text",
                "sliding_window": 48,
                "layer_types": ["sliding_attention", "full_attention"],
                "rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64},
            },
            (48, 64),
        ),
    ],
)
def test_lengths_beyond_which_a_model_computes_in_another_way(
    changes: dict[str, Any], borders: tuple[int, ...]
) -> None:
    assert hf_config.borders(hf_config.parse({**BASE, **changes})) == borders


def test_sequences_on_openvino_end_where_longrope_changes(tmp_path: Path) -> None:
    write_config(tmp_path / "m", rope_scaling=LONG, original_max_position_embeddings=64)
    (tmp_path / "m" / "model.safetensors").write_bytes(b"")
    origin = source.resolve(str(tmp_path / "m"))
    said = io.StringIO()
    console = Console(said)
    assert sequence_limit(None, origin, "hf-quantized", console) == 256
    assert sequence_limit(64, origin, "openvino", console) == 64
    assert said.getvalue() == ""
    assert sequence_limit(None, origin, "openvino", console) == 64
    assert "sequences end at 64 tokens instead of 256" in said.getvalue()
    with pytest.raises(UserMistake, match="more than the 64 tokens"):
        sequence_limit(65, origin, "openvino", console)


def test_phi3_of_transformers_5_is_one_that_transformers_4_takes() -> None:
    transformers = pytest.importorskip("transformers")
    parameters = {**LONG, "rope_theta": 5e4, "original_max_position_embeddings": 64, "partial_rotary_factor": 1.0}
    raw = {**BASE, "model_type": "phi3", "rope_parameters": parameters}
    config = transformers.Phi3Config(**hf_config.to_transformers_4(raw))
    assert config.rope_scaling["short_factor"] == LONG["short_factor"]
    assert config.rope_scaling["long_factor"] == LONG["long_factor"]
    assert (config.rope_theta, config.original_max_position_embeddings) == (5e4, 64)
    older = {**BASE, "model_type": "phi3", "rope_scaling": LONG}
    assert transformers.Phi3Config(**hf_config.to_transformers_4(older)).rope_scaling["type"] == "longrope"
