"""A stand-in for NVIDIA's ``trtllm-build``: parses the real flags of one release strictly and writes an engine's files.

What it knows is public documentation of the releases 0.21, 1.0, 1.1 and 1.2: their flags, defaults and choices, what
they change by themselves, and the form of an engine directory. It compiles nothing. ``STANDIN_VERSION`` chooses the
release, ``STANDIN_FAIL`` a failure to act out.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

VERSION = os.environ.get("STANDIN_VERSION", "1.2.1")
RELEASE = tuple(int(part) for part in VERSION.split(".")[:2])
DTYPES = ("auto", "float16", "float32", "bfloat16", "int32")
SWITCHES = {
    "context_fmha": "enable",
    "bert_context_fmha_fp32_acc": "disable",
    "remove_input_padding": "enable",
    "norm_quant_fusion": "disable",
    "reduce_fusion": "disable",
    "user_buffer": "disable",
    "use_paged_context_fmha": "enable",
    "use_fp8_context_fmha": "enable",
    "fuse_fp4_quant": "disable",
    "multiple_profiles": "disable",
    "paged_state": "enable",
    "streamingllm": "disable",
    "use_fused_mlp": "enable",
    "pp_reduce_scatter": "disable",
    "dora_plugin": "disable",
}
PLUGINS = {
    "bert_attention_plugin": ("auto", DTYPES),
    "gpt_attention_plugin": ("auto", DTYPES),
    "gemm_plugin": (None, (*DTYPES, "fp8", "nvfp4")),
    "gemm_swiglu_plugin": (None, ("fp8",)),
    "fp8_rowwise_gemm_plugin": (None, DTYPES),
    "nccl_plugin": ("auto", DTYPES),
    "lora_plugin": (None, DTYPES),
    "moe_plugin": ("auto", DTYPES),
    "mamba_conv1d_plugin": ("auto", DTYPES),
    "low_latency_gemm_plugin": (None, ("fp8",)),
    "low_latency_gemm_swiglu_plugin": (None, ("fp8",)),
    "gemm_allreduce_plugin": (None, ("float16", "bfloat16")),
}
NUMBERS: dict[str, int | None] = {
    "max_batch_size": 2048,
    "max_input_len": 1024,
    "max_seq_len": None,
    "max_beam_width": 1,
    "max_num_tokens": 8192,
    "opt_num_tokens": None,
    "max_encoder_input_len": 1024,
    "max_prompt_embedding_table_size": 0,
    "workers": 1,
    "max_draft_len": 0,
    "tokens_per_block": 32,
    "max_lora_rank": 64,
}
SPECULATIVE = {
    "draft_tokens_external": 2,
    "lookahead_decoding": 8,
    "medusa": 4,
    "explicit_draft_tokens": 16,
    "eagle": 32,
}


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="trtllm-build", allow_abbrev=False)
    parser.add_argument("--checkpoint_dir")
    parser.add_argument("--output_dir", default="engine_outputs")
    for flag in ("--model_config", "--build_config", "--model_cls_file", "--model_cls_name", "--input_timing_cache"):
        parser.add_argument(flag)
    parser.add_argument("--output_timing_cache", default="model.cache")
    for name, default in NUMBERS.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    for name, switch in SWITCHES.items():
        parser.add_argument(f"--{name}", choices=("enable", "disable"), default=switch)
    for name, (value, choices) in PLUGINS.items():
        parser.add_argument(f"--{name}", choices=(*choices, "disable"), default=value)
    parser.add_argument("--kv_cache_type", choices=("continuous", "paged", "disabled"))
    parser.add_argument("--profiling_verbosity", choices=("layer_names_only", "detailed", "none"))
    parser.add_argument("--logits_dtype", choices=("float16", "float32"))
    parser.add_argument(
        "--log_level", default="info", choices=("internal_error", "error", "warning", "info", "verbose")
    )
    parser.add_argument("--speculative_decoding_mode", choices=tuple(SPECULATIVE))
    for flag in ("--strip_plan", "--weight_sparsity", "--weight_streaming", "--fast_build", "--dry_run"):
        parser.add_argument(flag, action="store_true")
    for flag in ("--gather_context_logits", "--gather_generation_logits", "--gather_all_token_logits"):
        parser.add_argument(flag, action="store_true")
    if RELEASE <= (1, 0):
        parser.add_argument("--auto_parallel", type=int, default=1)
        parser.add_argument("--gpus_per_node", type=int, default=8)
        parser.add_argument("--cluster_key")
    return parser


def say(text: str) -> None:
    print(f"[11/23/2026-10:00:00] [TRT-LLM] [I] {text}", flush=True)


def warn(text: str) -> None:
    print(f"[11/23/2026-10:00:00] [TRT-LLM] [W] {text}", flush=True)


def changed(build: dict[str, Any], plugins: dict[str, Any], config: dict[str, Any]) -> None:
    """What the builder makes of flags that do not go together: tensorrt_llm/builder.py, build() (205252225, and
    008b2b8d for the branches on FMHA).
    """
    quantization = config.get("quantization") or {}
    algo, kv_algo = quantization.get("quant_algo"), quantization.get("kv_cache_quant_algo")
    tensor = config["mapping"].get("tp_size", config["mapping"].get("world_size", 1))
    if plugins["reduce_fusion"] and (tensor == 1 or config["architecture"] != "LlamaForCausalLM"):
        warn("Overriding reduce_fusion to False")
        plugins["reduce_fusion"] = False
    if plugins["user_buffer"] and not plugins["reduce_fusion"]:
        warn("Overriding user_buffer to False")
        plugins["user_buffer"] = False
    if build["speculative_decoding_mode"] != 1:
        build["max_seq_len"] += build["max_draft_len"]
        build["max_num_tokens"] = max(build["max_num_tokens"], build["max_batch_size"] * (build["max_draft_len"] + 1))
    if algo not in ("FP8", "W4A8_AWQ", "NVFP4"):
        if plugins["use_fp8_context_fmha"]:
            warn("FP8 Context FMHA is disabled because it must be used together with the fp8 quantization workflow.")
            plugins["use_fp8_context_fmha"] = False
        if plugins["use_paged_context_fmha"] and kv_algo == "FP8":
            warn("FP8 Paged Context FMHA is disabled because FP8 context FMHA is disabled.")
            plugins["use_paged_context_fmha"] = False
    elif plugins["use_paged_context_fmha"]:
        plugins["use_fp8_context_fmha"] = kv_algo == "FP8"
    if plugins["use_paged_context_fmha"] and kv_algo == "INT8":
        warn("Paged Context FMHA is disabled because it doesn't work with int8 kv cache currently.")
        plugins["use_paged_context_fmha"] = False


def act_out(failure: str) -> int:
    if failure == "memory":
        print("[TRT] [E] [virtualMemoryBuffer.cpp::resizePhysical::140] Error Code 2: OutOfMemory", file=sys.stderr)
    elif failure == "device":
        print("RuntimeError: Found no NVIDIA driver on your system.", file=sys.stderr)
    elif failure == "traceback":
        print("Traceback (most recent call last):\nValueError: vocab_size 7 is odd", file=sys.stderr)
    elif failure == "hang":
        time.sleep(600)
    return 1


def main() -> int:
    options = make_parser().parse_args()
    print(f"[TensorRT-LLM] TensorRT-LLM version: {VERSION}", flush=True)
    failure = os.environ.get("STANDIN_FAIL")
    if failure and failure != "incomplete":
        return act_out(failure)
    if RELEASE >= (1, 1) and options.streamingllm == "enable":
        raise AssertionError("StreamingLLM is no longer supported")
    config: dict[str, Any] = json.loads((Path(options.checkpoint_dir) / "config.json").read_text())
    world = config["mapping"]["world_size"]
    for rank in range(world):
        if not (Path(options.checkpoint_dir) / f"rank{rank}.safetensors").is_file():
            raise FileNotFoundError(f"rank{rank}.safetensors")
    if config.get("runtime_defaults") is not None:
        # modeling_utils.py (1189552800) makes a bound object of it, and build.py at 65f1d153 copies the configuration.
        raise TypeError("cannot pickle 'tensorrt_llm.bindings.executor.RuntimeDefaults' object")
    output = Path(options.output_dir)
    output.mkdir(parents=True, exist_ok=True)
    given = vars(options)
    plugins = {
        **{name: given[name] == "enable" for name in SWITCHES},
        **{name: None if given[name] == "disable" else given[name] for name in PLUGINS},
        "tokens_per_block": options.tokens_per_block,
    }
    build = {name: given[name] for name in NUMBERS if name not in ("workers", "tokens_per_block", "max_lora_rank")}
    build.update(kv_cache_type=(options.kv_cache_type or "paged").upper(), strongly_typed=True, plugin_config=plugins)
    build["speculative_decoding_mode"] = SPECULATIVE.get(options.speculative_decoding_mode, 1)
    changed(build, plugins, config)
    for rank in range(world):
        say("Total time of constructing network from module object 1.0 seconds")
        say(f"Build TensorRT engine Unnamed Network {rank}")
        say("Engine generated in 2.0 seconds.")
        if failure != "incomplete" or rank < world - 1:
            (output / f"rank{rank}.engine").write_bytes(b"stand-in engine, compiled by nothing")
    say("Total time of building all engines: 00:00:03")
    described = {"version": VERSION, "pretrained_config": config, "build_config": build}
    (output / "config.json").write_text(json.dumps(described, indent=2))
    Path(options.output_timing_cache).write_bytes(b"cache")
    return 0


if __name__ == "__main__":
    sys.exit(main())
