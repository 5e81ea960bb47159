"""GGUF files as sources: files written from tiny models of the real classes come back as those models."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from build_engine import source
from build_engine.console import Console
from build_engine.errors import UserMistake
from build_engine.gguf_files import checkpoint, metadata
from build_engine.gguf_files.expand import run
from build_engine.weights_check import check_weights
from inflight_tools.common.report import Failure
from inflight_tools.common.tiny_models import LLAMA, write_checkpoint
from inflight_tools.server.what import Kind, recognise

gguf = pytest.importorskip("gguf")
np = pytest.importorskip("numpy")
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.fast

MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {"num_hidden_layers": 2}),
    "qwen2": ("qwen2", {"tie_word_embeddings": False}),
    "qwen3": ("qwen3", {"head_dim": 32}),
    "gemma3": (
        "gemma3_text",
        {"head_dim": 32, "query_pre_attn_scalar": 32, "sliding_window": 64, "num_hidden_layers": 6},
    ),
}
Change = Callable[[Any], None]


def write_gguf(
    path: Path, model: Path, architecture: str, kind: str, change: Change = lambda _: None, **said: Any
) -> Path:
    """What llama.cpp's converter would write of ``model``: ``kind`` is the type of the matrices."""
    config = json.loads((model / "config.json").read_text())
    writer = gguf.GGUFWriter(str(path), architecture)
    head_dim = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    figures = {
        "context_length": config["max_position_embeddings"],
        "embedding_length": config["hidden_size"],
        "block_count": config["num_hidden_layers"],
        "feed_forward_length": config["intermediate_size"],
        "attention.head_count": config["num_attention_heads"],
        "attention.head_count_kv": config["num_key_value_heads"],
        "attention.key_length": head_dim,
        **({"attention.sliding_window": config["sliding_window"]} if architecture == "gemma3" else {}),
    }
    for key, value in figures.items():
        writer.add_uint32(f"{architecture}.{key}", value)
    writer.add_float32(f"{architecture}.attention.layer_norm_rms_epsilon", config["rms_norm_eps"])
    writer.add_float32(f"{architecture}.rope.freq_base", config["rope_theta"])
    for key, value in said.items():
        writer.add_string(key.replace("__", "."), value)
    tokenizer = json.loads((model / "tokenizer.json").read_text())
    vocabulary = sorted(tokenizer["model"]["vocab"], key=tokenizer["model"]["vocab"].get)
    vocabulary += [f"<{number}>" for number in range(len(vocabulary), config["vocab_size"])]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(vocabulary)
    special = {token["content"] for token in tokenizer["added_tokens"]}
    writer.add_token_types([3 if token in special else 1 for token in vocabulary])
    writer.add_token_merges([" ".join(pair) for pair in tokenizer["model"]["merges"]])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_chat_template("{{ messages }}")
    for name, values in tensors(model, architecture, config):
        matrix = values.ndim > 1
        data = gguf.quants.quantize(values, gguf.GGMLQuantizationType[kind]) if matrix else values
        writer.add_tensor(name, data, raw_dtype=gguf.GGMLQuantizationType[kind] if matrix else None)
    change(writer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def tensors(model: Path, architecture: str, config: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    stored = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).state_dict()
    names = metadata.GEMMA_TENSORS if architecture == "gemma3" else metadata.LAYER_TENSORS
    back = {theirs: ours for ours, theirs in names.items()} | {
        theirs: ours for ours, theirs in metadata.TENSORS.items()
    }
    for name, tensor in stored.items():
        if name == "lm_head.weight" and config.get("tie_word_embeddings", True):
            continue
        stem, _, kind = name.rpartition(".")
        values = tensor.numpy()
        if architecture == "gemma3" and "norm" in name:
            values = values + 1
        if architecture == "llama" and stem.endswith(("q_proj", "k_proj")):
            heads = config["num_attention_heads" if stem.endswith("q_proj") else "num_key_value_heads"]
            values = values.reshape(heads, 2, -1, values.shape[1]).swapaxes(1, 2).reshape(values.shape)
        if stem.startswith("model.layers."):
            _, _, layer, inner = stem.split(".", 3)
            yield f"blk.{layer}.{back[inner]}.{kind}", values
        else:
            yield f"{back[stem]}.{kind}", values


def expand(file: Path, folder: Path) -> Path:
    folder.mkdir()
    run({"file": str(file), "output": str(folder)}, lambda _fraction, _note="": None)
    check_weights(source.resolve(str(folder)))
    return folder


def tiny(folder: Path, architecture: str) -> Path:
    kind, more = MODELS[architecture]
    return write_checkpoint(folder, kind, **{**LLAMA, **more})


@pytest.mark.parametrize("architecture", MODELS)
def test_a_file_of_32_bits_comes_back_to_the_bit(architecture: str, tmp_path: Path) -> None:
    model = tiny(tmp_path / "m", architecture)
    found = expand(write_gguf(tmp_path / "m.gguf", model, architecture, "F32"), tmp_path / "out")
    ours = transformers.AutoModelForCausalLM.from_pretrained(found, dtype=torch.float32)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    for name, tensor in theirs.state_dict().items():
        assert torch.allclose(ours.state_dict()[name], tensor, rtol=0, atol=1e-6), name  # Gemma's norms: + 1 - 1
    ids = torch.arange(3, 103)[None]  # past the sliding window of Gemma
    with torch.no_grad():
        assert torch.allclose(ours(ids).logits, theirs(ids).logits, atol=1e-3)
    mine, tokenizer = (transformers.AutoTokenizer.from_pretrained(folder) for folder in (found, model))
    text = "The quick brown fox, 12,345.67 – naïve"
    assert mine(text)["input_ids"] == tokenizer(text)["input_ids"]
    assert json.loads((found / "generation_config.json").read_text()) == {"bos_token_id": 1, "eos_token_id": 2}
    assert mine.chat_template == "{{ messages }}"


@pytest.mark.parametrize("kind", ["Q8_0", "F16"])
def test_quantized_weights_are_those_that_transformers_reads(kind: str, tmp_path: Path) -> None:
    model = tiny(tmp_path / "m", "llama")
    file = write_gguf(tmp_path / "m.gguf", model, "llama", kind)
    found = expand(file, tmp_path / "out")
    dtype = torch.bfloat16 if kind == "Q8_0" else torch.float16
    assert json.loads((found / "config.json").read_text())["torch_dtype"] == str(dtype).removeprefix("torch.")
    ours = transformers.AutoModelForCausalLM.from_pretrained(found, dtype="auto").state_dict()
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="m.gguf", dtype=torch.float32)
    for name, tensor in theirs.state_dict().items():
        assert torch.equal(ours[name], tensor.to(dtype)), name


def said(**values: str) -> dict[str, str]:
    return values


def frequencies(values: list[float]) -> Change:
    return lambda writer: writer.add_tensor("rope_freqs.weight", np.array(values, dtype=np.float32))


@pytest.mark.parametrize(
    ("change", "more", "says"),
    [
        (frequencies([1.0] * 7 + [3.0]), {}, "as no Llama 3 does"),
        (
            lambda writer: writer.add_tensor("blk.0.extra.weight", np.ones(3, np.float32)),
            {},
            "holds blk.0.extra.weight",
        ),
        (lambda _: None, said(llama__rope__scaling__type="longrope"), "rotary embedding by longrope"),
        (lambda writer: writer.add_uint32("llama.expert_count", 8), {}, "mixture of experts"),
    ],
)
def test_what_cannot_be_said_in_a_checkpoint_is_refused_by_name(
    change: Change, more: dict[str, str], says: str, tmp_path: Path
) -> None:
    file = write_gguf(tmp_path / "x.gguf", tiny(tmp_path / "m", "llama"), "llama", "F32", change, **more)
    with pytest.raises(UserMistake, match=says) as caught:
        expand(file, tmp_path / "out")
    assert "x.gguf" in str(caught.value)


def test_an_architecture_that_is_not_read_is_named() -> None:
    with pytest.raises(UserMistake, match="architecture mamba; of GGUF files llama, qwen2, qwen3, gemma3 are read"):
        metadata.architecture_of({"general.architecture": "mamba"}, "x.gguf")


@pytest.mark.parametrize("factor", [8.0, 32.0])
def test_llama_3s_scaling_is_known_by_its_divisors(factor: float) -> None:
    """As transformers computes them: the plain frequencies over those of its own Llama 3 scaling."""
    scaling = next(each for each in metadata.LLAMA3 if each["factor"] == factor)
    config = transformers.LlamaConfig(
        hidden_size=64,
        num_attention_heads=1,
        rope_theta=500_000.0,
        rope_scaling=scaling,
        max_position_embeddings=131072,
    )
    init = transformers.modeling_rope_utils.ROPE_INIT_FUNCTIONS["llama3"]
    theirs = init(config, torch.device("cpu"))[0]
    plain = [500_000.0 ** (-2 * pair / 64) for pair in range(32)]
    wanted = [a / float(b) for a, b in zip(plain, theirs, strict=True)]
    ours = metadata.divisors(scaling, 500_000.0, 64)
    assert all(math.isclose(a, b, rel_tol=1e-4) for a, b in zip(ours, wanted, strict=True))
    said = {"llama.rope.freq_base": 500_000.0}
    assert metadata._scaling(said, "llama", wanted, 64, "x.gguf") == scaling


def test_a_cut_file_is_one_sentence(tmp_path: Path) -> None:
    whole = write_gguf(tmp_path / "x.gguf", tiny(tmp_path / "m", "llama"), "llama", "F32").read_bytes()
    for size in (4, 40, len(whole) // 2):
        (tmp_path / "cut.gguf").write_bytes(whole[:size])
        with pytest.raises(UserMistake, match=r"cut\.gguf is no whole GGUF file"):
            run({"file": str(tmp_path / "cut.gguf"), "output": str(tmp_path)}, lambda _fraction, _note="": None)


def test_a_file_is_expanded_once_and_found_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INFLIGHT_BUILD_CACHE", str(tmp_path / "cache"))
    file = write_gguf(tmp_path / "My model.gguf", tiny(tmp_path / "m", "llama"), "llama", "F32")
    assert checkpoint.checkpoint_of(str(tmp_path / "m"), Console()) == str(tmp_path / "m")
    first = checkpoint.checkpoint_of(str(file), Console())
    origin = source.resolve(first)
    assert origin.name == "My model"
    check_weights(origin)
    monkeypatch.setattr(checkpoint, "run_stage", lambda *_, **__: pytest.fail("expanded again"))
    assert checkpoint.checkpoint_of(str(file), Console()) == first
    assert not list((tmp_path / "cache" / "gguf").glob(".making-*"))


def test_old_checkpoints_make_room(tmp_path: Path) -> None:
    import os
    import time

    for age, name in enumerate(("new", "old", "older")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "weights").write_bytes(bytes(1000))
        then = time.time() - 7200 * age
        os.utime(tmp_path / name, (then, then))
    checkpoint.make_room(tmp_path, 500, limit=2600)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new", "old"]
    checkpoint.make_room(tmp_path, 5000, limit=2600)
    assert [path.name for path in tmp_path.iterdir()] == ["new"]


def test_serve_takes_a_gguf_file_for_a_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(b"GGUF" + bytes(100))
    assert recognise(str(tmp_path / "m.gguf")).kind is Kind.CHECKPOINT
    (tmp_path / "n.gguf").write_bytes(b"nothing")
    with pytest.raises(Failure, match=r"is a file: name a folder, .* a GGUF file"):
        recognise(str(tmp_path / "n.gguf"))
