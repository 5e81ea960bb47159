"""A directory as ``build --stop-after checkpoint`` leaves it, without a build."""

from __future__ import annotations

import json
from pathlib import Path

import inflight.manifest as manifest
from build_engine import hf_config
from build_engine.planning.roofline import Parallel
from build_engine.tensorrt import compile as compiler
from build_engine.tensorrt.compile import CompileLimits
from inflight_tools.common.tiny_models import LLAMA

CONFIG = hf_config.parse({"architectures": ["LlamaForCausalLM"], "model_type": "llama", **LLAMA})
LIMITS = CompileLimits(8, 127, 128, 1024, 1)


def checkpoint_directory(directory: Path, *, recipe: str = "fp8", kv_cache: str = "fp8", ranks: int = 2) -> Path:
    """``ranks`` tensor-parallel ranks of made-up weights, with the flags and the manifest of a real build."""
    checkpoint = directory / "checkpoint"
    checkpoint.mkdir(parents=True)
    described = {"architecture": "LlamaForCausalLM", "mapping": {"world_size": ranks}}
    (checkpoint / "config.json").write_text(json.dumps(described))
    for rank in range(ranks):
        (checkpoint / f"rank{rank}.safetensors").write_bytes(b"weights")
    flags = compiler.choose_flags(CONFIG, recipe, kv_cache, Parallel(ranks), LIMITS)
    (checkpoint / "trtllm-build.json").write_text(json.dumps({"flags": flags}))
    (directory / "tokenizer.json").write_text("{}")
    written = manifest.Manifest(
        target="tensorrt_llm",
        stage="checkpoint",
        source=manifest.Source(name="tiny", architecture="LlamaForCausalLM", sha256="0" * 64),
        quantization=manifest.Quantization(algorithm=recipe, kv_cache=kv_cache, recipe=recipe),
        parallelism=manifest.Parallelism(tensor=ranks),
        limits=manifest.Limits(max_seq_len=128),
        requires=manifest.Requires(),
        verification=None,
        files=manifest.list_files(directory),
        built=manifest.Built(by="test", command="python -m build_engine build tiny", date="x", seconds=1.0),
    )
    manifest.write(directory, written)
    return directory
