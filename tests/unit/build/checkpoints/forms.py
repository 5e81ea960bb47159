"""The forms in which people bring checkpoints: a name, how it is made of a whole one, and what the builder says.

A row that says nothing is built: the checks let it through to the first step of work.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from build_engine.expected_weights import HEAD, expected
from build_engine.hf_config import load
from inflight_tools.common.tiny_models import LLAMA, write_config, write_tokenizer
from tests.tiny_weights import write_safetensors

Make = Callable[[Path], Path]
"""Changes the checkpoint in a folder; returns what is given to the builder."""

NORM = "model.layers.1.input_layernorm.weight"
EMBEDDING = "model.embed_tokens.weight"
LONG = {"type": "longrope", "short_factor": [1.0] * 8, "long_factor": [2.0] * 8}


@dataclass(frozen=True)
class Form:
    """`says` is an expression found in the one sentence of the refusal; `warns` in what is said before the work."""

    name: str
    make: Make
    says: str = ""
    warns: str = ""


def whole(folder: Path, **config: Any) -> Path:
    """A tiny Llama with every weight that its config.json asks for, and a tokenizer."""
    write_config(folder, **config)
    write_tokenizer(folder, int(config.get("vocab_size", LLAMA["vocab_size"])))
    shapes = expected(load(folder))
    if load(folder).tied_embeddings:
        del shapes[HEAD]
    write_safetensors(folder / "model.safetensors", shapes)
    return folder


def with_config(**changes: Any) -> Make:
    """Another configuration, with the weights that it asks for."""
    return lambda folder: whole(folder, **changes)


def said(**changes: Any) -> Make:
    """Another configuration over the same weights."""

    def make(folder: Path) -> Path:
        path = folder / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
        return folder

    return make


def without(*keys: str) -> Make:
    def make(folder: Path) -> Path:
        path = folder / "config.json"
        path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k not in keys}))
        return folder

    return make


def weights(change: Callable[[dict[str, Any]], dict[str, Any]], **fill: int) -> Make:
    """Other tensors under the same configuration; `fill` gives the lm_head's bytes."""

    def make(folder: Path) -> Path:
        shapes = expected(load(folder))
        if load(folder).tied_embeddings:
            del shapes[HEAD]
        write_safetensors(folder / "model.safetensors", change(dict(shapes)), {HEAD: fill["head"]} if fill else None)
        return folder

    return make


def file(name: str, content: bytes | str) -> Make:
    def make(folder: Path) -> Path:
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
        return folder

    return make


def gone(*names: str) -> Make:
    def make(folder: Path) -> Path:
        for name in names:
            (folder / name).unlink()
        return folder

    return make


def then(*makes: Make) -> Make:
    def make(folder: Path) -> Path:
        given = folder
        for each in makes:
            given = each(folder)
        return given

    return make


def shards(folder: Path) -> Path:
    shapes = expected(load(folder))
    del shapes[HEAD]
    (folder / "model.safetensors").unlink()
    names = list(shapes)
    halves = {"model-00001-of-00002.safetensors": names[:6], "model-00002-of-00002.safetensors": names[6:]}
    for path, held in halves.items():
        write_safetensors(folder / path, {name: shapes[name] for name in held})
    index = {"weight_map": {name: path for path, held in halves.items() for name in held}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def cut(folder: Path) -> Path:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    return folder


def moved(name: str) -> Make:
    def make(folder: Path) -> Path:
        target = folder.parent / name
        folder.rename(target)
        return target

    return make


def snapshot(folder: Path) -> Path:
    """As the hub's cache keeps it: links from a commit's folder to files named by hash."""
    place = folder.parent / "hub" / "models--org--tiny"
    blobs, commit = place / "blobs", place / "snapshots" / ("a1" * 20)
    blobs.mkdir(parents=True)
    commit.mkdir(parents=True)
    for number, path in enumerate(sorted(folder.iterdir())):
        path.rename(blobs / f"{number:040x}")
        (commit / path.name).symlink_to(os.path.relpath(blobs / f"{number:040x}", commit))
    folder.rmdir()
    return commit


def larger_tokenizer(folder: Path) -> Path:
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["model"]["vocab"] |= {f"more{number}": 300 + number for number in range(5)}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    return folder


def added_token(folder: Path) -> Path:
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["added_tokens"].append({**tokenizer["added_tokens"][0], "id": 300, "content": "<image>"})
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    return folder


def adapter(folder: Path) -> Path:
    for path in folder.iterdir():
        path.unlink()
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA"}))
    write_safetensors(folder / "adapter_model.safetensors", {"base_model.model.x.lora_A.weight": (4, 64)})
    return folder


def quantized(method: str, **settings: Any) -> Make:
    return said(quantization_config={"quant_method": method, **settings})


def rope(**scaling: Any) -> Make:
    return said(rope_scaling=scaling)


def prefixed(prefix: str) -> Make:
    return weights(lambda shapes: {prefix + name: shape for name, shape in shapes.items()})


PHI = {"architectures": ["Phi3ForCausalLM"], "model_type": "phi3", "max_position_embeddings": 1024}
MIXED = struct.pack("<Q", 2) + b"[]"

WELL = [
    Form("one file", lambda folder: folder),
    Form("shards and their index", shards),
    Form("names of a bare decoder", weights(lambda s: {n.removeprefix("model."): each for n, each in s.items()})),
    Form("tied, and the head stored as well", weights(lambda s: {**s, HEAD: s[EMBEDDING]})),
    Form("untied", with_config(tie_word_embeddings=False)),
    Form("buffers of older releases", weights(lambda s: {**s, "model.layers.0.self_attn.rotary_emb.inv_freq": (8,)})),
    Form("float32 without a type", without("dtype")),
    Form("torch_dtype of transformers 4", then(without("dtype"), said(torch_dtype="float16"))),
    Form("keys that nobody knows", said(my_key={"a": 1}, _flash=True)),
    Form("no generation_config.json", lambda folder: folder),
    Form("a path with blanks and letters beyond ASCII", moved("ein Modell – ü 模型")),
    Form("a snapshot of the hub's cache", snapshot),
    Form("the same weights in Mistral's form beside", file("consolidated.safetensors", b"\xff" * 10)),
    Form("linear rope", rope(rope_type="linear", factor=2.0)),
    Form("llama3 rope", rope(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0)),
    Form("yarn rope", rope(rope_type="yarn", factor=4.0, original_max_position_embeddings=64)),
    Form("rope in transformers 5's form", said(rope_parameters={"rope_type": "default", "rope_theta": 10000.0})),
    Form("code of its own beside a known class", said(auto_map={"AutoModelForCausalLM": "modeling.Model"})),
    Form("an added token beyond the embeddings", added_token, warns="'<image>' \\(id 300\\)"),
    Form(
        "LongRoPE with a border",
        with_config(**PHI, rope_scaling=LONG, original_max_position_embeddings=512),
        warns="sequences end at 512 tokens instead of 1024",
    ),
]

REFUSED = [
    Form("a shard is missing", then(shards, gone("model-00002-of-00002.safetensors")), "lacks model-00002-of-00002"),
    Form("the index is damaged", then(shards, file("model.safetensors.index.json", "{")), r"index\.json is damaged"),
    Form("pickled weights only", then(gone("model.safetensors"), file("pytorch_model.bin", b"x")), "only pickled"),
    Form("no weights", gone("model.safetensors"), r"no \*\.safetensors"),
    Form("no config.json", gone("config.json"), r"not a Hugging Face checkpoint: it has no config\.json"),
    Form("config.json is no JSON", file("config.json", "{"), "cannot be read as JSON"),
    Form("config.json is a list", file("config.json", "[]"), "not a JSON object"),
    Form("no architecture", without("architectures"), "does not name its architecture"),
    Form("an adapter", adapter, r"not a Hugging Face checkpoint: it has no config\.json"),
    Form("a file that is no GGUF", lambda folder: folder / "model.safetensors", "is a file: give the directory"),
    Form("no tokenizer.json", gone("tokenizer.json"), r"no tokenizer\.json: save its tokenizer once"),
    Form("tokenizer.json is damaged", file("tokenizer.json", "{"), r"tokenizer\.json is damaged"),
    Form("another model's tokenizer", larger_tokenizer, "has 5 tokens more than the 300 of the model"),
    Form("a class of its own", said(architectures=["MyForCausalLM"]), "MyForCausalLM is not supported"),
    Form("a model that sees", said(architectures=["LlavaForConditionalGeneration"]), "is not supported"),
    Form("the text model inside another", without("hidden_size"), "no usable hidden_size"),
    Form("GPTQ", quantized("gptq", bits=4), r"\(GPTQ\).*serve it as it comes with vLLM"),
    Form("AWQ", quantized("awq"), r"\(AWQ\).*serve it as it comes with vLLM"),
    Form("compressed-tensors", quantized("compressed-tensors"), r"\(compressed-tensors\).*with vLLM"),
    Form("bitsandbytes", quantized("bitsandbytes"), r"\(bitsandbytes\).*with vLLM"),
    Form("FP8", quantized("fp8"), r"\(FP8\).*with vLLM"),
    Form("FP8 in blocks", quantized("fp8", weight_block_size=[128, 128]), r"\(block FP8\).*vLLM or TensorRT-LLM"),
    Form("MXFP4", quantized("mxfp4"), r"\(MXFP4\).*vLLM or TensorRT-LLM"),
    Form("ModelOpt", quantized("modelopt", quant_algo="FP8"), r"\(ModelOpt\).*vLLM or TensorRT-LLM"),
    Form("Quark", quantized("quark"), r"\(quark\).*: give the checkpoint it was made from"),
    Form("names of torch.compile", prefixed("_orig_mod."), r"begin with _orig_mod\. \(as torch\.compile"),
    Form("names of DistributedDataParallel", prefixed("module."), r"begin with module\."),
    Form("names under another prefix", prefixed("transformer.wrapped."), r"begin with transformer\.wrapped\."),
    Form(
        "untied without a head",
        then(with_config(tie_word_embeddings=False), weights(lambda s: {n: e for n, e in s.items() if n != HEAD})),
        "lack lm_head.weight, and config.json says tie_word_embeddings false",
    ),
    Form("a head of its own, said to be tied", weights(lambda s: {**s, HEAD: s[EMBEDDING]}, head=1), "say false there"),
    Form("a tensor is missing", weights(lambda s: {n: e for n, e in s.items() if n != NORM}), f"lack {NORM}"),
    Form("a tensor too many", weights(lambda s: {**s, "model.extra.weight": (4,)}), "no place for"),
    Form("a shape that does not fit", weights(lambda s: {**s, NORM: (32,)}), rf"{NORM} has the shape \[32\]"),
    Form("fewer layers than the files", said(num_hidden_layers=1), "hold 2 layers, and config.json says"),
    Form("more layers than the files", said(num_hidden_layers=3), "hold 2 layers, and config.json says"),
    Form("another vocabulary than the files", said(vocab_size=301), "embed_tokens.weight has the shape"),
    Form("a file cut short", cut, r"model\.safetensors is damaged or was cut short"),
    Form("a header that is none", file("model.safetensors", b"\xff" * 4000), "damaged or was cut short"),
    Form("a header that is a list", file("model.safetensors", MIXED), "damaged or was cut short"),
    Form("an empty file", file("model.safetensors", b""), "damaged or was cut short"),
    Form("two rotary bases", said(rope_theta=10000.0, rope_parameters={"rope_theta": 500.0}), "names two rotary bases"),
]
