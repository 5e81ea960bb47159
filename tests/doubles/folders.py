"""Engine directories, package metadata and environments for tests with the stand-in."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from inflight import manifest

DOUBLES = Path(__file__).resolve().parent
TABLES = DOUBLES.parents[1] / "scripts" / "inflight_tools" / "selfcheck"  # what is known of the installed library
PROFILES: dict[str, dict[str, Any]] = json.loads((TABLES / "profiles.json").read_text())
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "generation_config.json")


def write_tokenizer(folder: Path, source: Path) -> None:
    """Copy the tokenizer's files that `source` has."""
    for name in TOKENIZER_FILES:
        if (source / name).is_file():
            shutil.copy(source / name, folder / name)


def engine_config(profile: str = "1.2", world: int = 1, **build: Any) -> dict[str, Any]:
    """config.json as trtllm-build writes it; `build` overrides build_config, plugin_config included."""
    plugins = {
        "gpt_attention_plugin": "auto",
        "remove_input_padding": True,
        "use_paged_context_fmha": True,
        "tokens_per_block": 32,
        "lora_plugin": None,
        **build.pop("plugin_config", {}),
    }
    limits = {
        "max_batch_size": 16,
        "max_input_len": 1024,
        "max_seq_len": 2048,
        "max_num_tokens": 8192,
        "max_beam_width": 1,
    }
    return {
        "version": PROFILES[profile]["version"],
        "pretrained_config": {
            "architecture": "LlamaForCausalLM",
            "dtype": build.pop("dtype", "bfloat16"),
            "num_hidden_layers": 2,
            "vocab_size": build.pop("vocab_size", 49152),
            "mapping": {"world_size": world, "tp_size": world, "pp_size": 1},
            "quantization": {"quant_algo": "FP8", "kv_cache_quant_algo": "FP8"},
        },
        "build_config": {
            **limits,
            "kv_cache_type": "PAGED",
            "speculative_decoding_mode": 1,
            "gather_context_logits": False,
            **build,
            "plugin_config": plugins,
        },
    }


def write_engine(
    folder: Path,
    tokenizer: Path,
    profile: str = "1.2",
    *,
    world: int = 1,
    with_manifest: bool = True,
    capability: str | None = None,
    **build: Any,
) -> Path:
    """A compiled engine for the stand-in: config.json, rank files, tokenizer, engine.json."""
    folder.mkdir(parents=True, exist_ok=True)
    config = engine_config(profile, world, **build)
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    for rank in range(world):
        (folder / f"rank{rank}.engine").write_bytes(b"an engine of the stand-in\n")
    write_tokenizer(folder, tokenizer)
    if with_manifest:
        write_manifest(folder, profile, config["build_config"], world, capability)
    return folder


def write_manifest(
    folder: Path, profile: str, limits: Mapping[str, Any], world: int = 1, capability: str | None = None, **changes: Any
) -> None:
    """engine.json for what lies in `folder`."""
    release = PROFILES[profile]
    packages = {"tensorrt_llm": release["version"], "tensorrt": release["tensorrt"]}
    values: dict[str, Any] = {
        "target": "tensorrt_llm",
        "source": manifest.Source(name="SmolLM2-135M-Instruct", architecture="LlamaForCausalLM", sha256="0" * 64),
        "quantization": manifest.Quantization(algorithm="FP8", kv_cache="fp8", recipe="fp8"),
        "parallelism": manifest.Parallelism(tensor=world),
        "limits": manifest.Limits(
            max_seq_len=limits["max_seq_len"],
            max_batch_size=limits["max_batch_size"],
            max_input_len=limits["max_input_len"],
            max_num_tokens=limits["max_num_tokens"],
            max_beam_width=limits["max_beam_width"],
        ),
        "requires": manifest.Requires(packages=packages, compute_capability=capability),
        "verification": None,
        "files": manifest.list_files(folder),
        "built": manifest.Built(
            by="tests", command="python -m build_engine build M --target tensorrt-llm", date="2026-11-23", seconds=1.0
        ),
        **changes,
    }
    manifest.write(folder, manifest.Manifest(**values))


def write_checkpoint(folder: Path, tokenizer: Path, vocab_size: int = 49_152, context: int = 2048) -> Path:
    """A Hugging Face-style FP8 checkpoint for the PyTorch flow, with empty weights."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {"architectures": ["LlamaForCausalLM"], "vocab_size": vocab_size, "max_position_embeddings": context}
    (folder / "config.json").write_text(json.dumps({**config, "torch_dtype": "bfloat16", "model_type": "llama"}))
    (folder / "hf_quant_config.json").write_text(json.dumps({"quantization": {"quant_algo": "FP8"}}))
    (folder / "model.safetensors").write_bytes(b"")
    write_tokenizer(folder, tokenizer)
    return folder


def write_metadata(site: Path, profile: str, **versions: str) -> Path:
    """What importlib.metadata finds: tensorrt_llm and tensorrt in the profile's versions, or those of `versions`."""
    release = PROFILES[profile]
    known = {"tensorrt_llm": release["version"], "tensorrt": release["tensorrt"], **versions}
    for name, version in known.items():
        if version:
            info = site / f"{name}-{version}.dist-info"
            info.mkdir(parents=True, exist_ok=True)
            (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    return site


def environment(site: Path, profile: str = "1.2", **options: Any) -> dict[str, str]:
    """Environment of a server whose engine process finds the stand-in."""
    write_metadata(site, profile)
    return {
        "PYTHONPATH": f"{DOUBLES}:{site}",
        "TRTLLM_DOUBLE_PROFILE": profile,
        "TRTLLM_DOUBLE": json.dumps(options),
    }
