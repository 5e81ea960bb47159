#!/usr/bin/env python3
"""Writes a checkpoint of real size with weights from a seed, to measure with where no such model can be had.

The tokenizer and its chat template are SmolLM2's (scripts/fetch_model.py), so what is made is built and served like any
other model; it says nonsense, so it is built with --no-verify. Weights are normal with a deviation of 0.02, norms are 1
and biases 0, in bfloat16. They are streamed to disk: memory stays small whatever the size. The same shape and seed give
the same bytes.
"""

from __future__ import annotations

import math
import shutil
import statistics
import sys
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from build_engine import hf_config
from build_engine.arguments import Parser
from build_engine.expected_weights import HEAD, expected
from build_engine.safetensors_writer import SHARD_BYTES, write_weights
from build_engine.source import TOKENIZER_FILES
from inflight_tools.common import option_types as types
from inflight_tools.common.fetch_model import NAME, fetch_model, write_json
from inflight_tools.common.layout import MODELS
from inflight_tools.common.report import Failure, run_main
from inflight_tools.common.wheels import is_complete, publish, require_space, scratch_folder

REVISION = "1"  # of what this script writes; raise it when the same shape and seed give other bytes
DEVIATION = 0.02
PIECE = 1 << 22  # values that are made at a time
ONE = 0x3F80  # 1.0 as bfloat16

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Kind:
    """An architecture, its shape as config.json has it, and what it is for."""

    architecture: str
    about: str
    config: dict[str, Any]


def _shape(
    vocabulary: int, hidden: int, width: int, layers: int, heads: int, kv_heads: int, **more: Any
) -> dict[str, Any]:
    return {
        "vocab_size": vocabulary,
        "hidden_size": hidden,
        "intermediate_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "hidden_act": "silu",
        "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-5,
        "rope_theta": 100_000.0,
        "tie_word_embeddings": False,
        **more,
    }


KINDS: dict[str, Kind] = {
    "0.5b": Kind(
        "Qwen2ForCausalLM",
        "Qwen2.5-0.5B's shape",
        _shape(151936, 896, 4864, 24, 14, 2, model_type="qwen2", tie_word_embeddings=True),
    ),
    "1.17b": Kind(
        "LlamaForCausalLM",
        "TinyLlama's shape, SmolLM2's vocabulary",
        _shape(49152, 2048, 5632, 22, 32, 4, model_type="llama"),
    ),
    "8b": Kind("LlamaForCausalLM", "Llama 3.1 8B's shape", _shape(128256, 4096, 14336, 32, 32, 8, model_type="llama")),
    "moe": Kind(
        "Qwen3MoeForCausalLM",
        "2 B parameters, 32 experts of which 4 see a token",
        _shape(
            49152,
            1024,
            3072,
            24,
            16,
            4,
            model_type="qwen3_moe",
            head_dim=64,
            num_experts=32,
            num_experts_per_tok=4,
            moe_intermediate_size=768,
            norm_topk_prob=True,
        ),
    ),
}


def config_of(kind: Kind, layers: int | None) -> dict[str, Any]:
    """config.json; `layers` replaces the number of layers, for a shorter model of the same kind."""
    config = {"architectures": [kind.architecture], **kind.config, "torch_dtype": "bfloat16"}
    if layers is not None:
        config["num_hidden_layers"] = layers
    return {**config, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}


def quantiles() -> npt.NDArray[np.uint16]:
    """65,536 values of the normal distribution as bfloat16's bits: one for each number that two random bytes can be."""
    normal = statistics.NormalDist(0.0, DEVIATION)
    values = np.array([normal.inv_cdf((index + 0.5) / 65536) for index in range(65536)], dtype=np.float32)
    return ((values.view(np.uint32) + 0x8000) >> 16).astype(np.uint16)


def values_of(name: str, count: int, seed: int, table: npt.NDArray[np.uint16]) -> Iterator[npt.NDArray[np.uint16]]:
    """The bits of one tensor, in pieces; they depend on its name and the seed, not on what was written before."""
    plain = 0 if name.endswith("bias") else ONE if "norm" in name else None
    random = np.random.Generator(np.random.PCG64([seed, zlib.crc32(name.encode())]))
    for start in range(0, count, PIECE):
        size = min(PIECE, count - start)
        if plain is not None:
            yield np.full(size, plain, dtype=np.uint16)
        else:
            yield table[np.frombuffer(random.bytes(2 * size), dtype=np.uint16)]


def write(folder: Path, shapes: dict[str, Shape], seed: int, limit: int = SHARD_BYTES) -> None:
    """model.safetensors, or shards of at most `limit` bytes and their index."""
    table = quantiles()

    def pieces(name: str) -> Iterator[memoryview]:
        return (values.data.cast("B") for values in values_of(name, math.prod(shapes[name]), seed, table))

    for name in write_weights(folder, shapes, "BF16", pieces, limit):
        print(f"    {name}", file=sys.stderr)


def make(name: str, target: Path, seed: int, layers: int | None, tokenizer: Path) -> None:
    """The checkpoint `name` at `target`, unless it is there; a broken attempt leaves nothing. Raises `Failure`."""
    stamp = {"shape": name, "seed": str(seed), "layers": str(layers), "revision": REVISION}
    if is_complete(target, stamp):
        return
    config = config_of(KINDS[name], layers)
    shapes = expected(hf_config.parse(config))
    if config["tie_word_embeddings"]:
        del shapes[HEAD]
    size = sum(2 * math.prod(shape) for shape in shapes.values())
    require_space(target.parent, size + 100_000_000, f"making {name}")
    with scratch_folder(target.parent) as scratch:
        made = scratch / "checkpoint"
        made.mkdir()
        for file in TOKENIZER_FILES:
            if (tokenizer / file).is_file():
                shutil.copyfile(tokenizer / file, made / file)
        if not (made / "tokenizer.json").is_file():
            raise Failure(f"{tokenizer} has no tokenizer.json: name a checkpoint with --tokenizer.")
        write_json(made / "config.json", config)
        write_json(made / "generation_config.json", {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2})
        write(made, shapes, seed)
        publish(made, target, stamp)


def peak_bytes() -> int:
    """Of this program alone; getrusage's figure begins with that of the process that started it."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))


def main(arguments: Sequence[str] | None = None) -> int:
    """Make one checkpoint and print where it is."""
    about = "; ".join(f"{name}: {kind.about}" for name, kind in KINDS.items())
    parser = Parser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("shape", choices=tuple(KINDS), help=about)
    parser.add_argument(
        "--output", type=types.output_folder, metavar="DIR", help="folder to make (default: .cache/models/made-SHAPE)"
    )
    parser.add_argument("--seed", type=types.count_or_none, default=0, help="of the weights (default: %(default)s)")
    parser.add_argument("--layers", type=types.count, metavar="N", help="fewer or more layers than the shape has")
    parser.add_argument(
        "--tokenizer",
        type=types.folder_with("tokenizer.json"),
        metavar="DIR",
        help=f"checkpoint to take it from (default: {NAME})",
    )
    options = parser.parse_args(arguments)
    suffix = (f"-seed{options.seed}" if options.seed else "") + (f"-{options.layers}layers" if options.layers else "")
    target = options.output or MODELS / f"made-{options.shape}{suffix}"
    tokenizer = options.tokenizer
    if tokenizer is None:
        tokenizer = MODELS / NAME
        fetch_model(tokenizer)
    make(options.shape, target.absolute(), options.seed, options.layers, tokenizer)
    print(f"peak memory {peak_bytes() / 1e6:.0f} MB", file=sys.stderr)
    print(target)
    return 0


if __name__ == "__main__":
    run_main(main)
