"""What the vLLM engine can be told, and what vLLM is told in turn. Imports nothing of vLLM."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Set
from pathlib import Path
from typing import Any, Literal

import msgspec

from inflight.engines.base import Capability
from inflight.engines.options import check_numbers
from inflight.engines.python import UNTOLD
from inflight.errors import LoadError, did_you_mean

DEFAULT_MAX_RUNNING = 256
DEFAULT_MAX_RUNNING_CPU = 64
DEFAULT_KV_CACHE_BYTES_CPU = 2 << 30  # vLLM's own default is nearly all memory of the machine

# Before vLLM is imported: its core runs in this process, nothing is fetched and nothing is reported to anybody.
ENVIRONMENT = {
    **UNTOLD,
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "VLLM_USE_MODELSCOPE": "0",
}

# Arguments of vLLM's that `engine_arguments` may not hold, and why.
RESERVED = {
    "model": "the model parameter engine_dir names it",
    "tokenizer": "the engine directory has it",
    "trust_remote_code": "code out of a checkpoint is never run",
    "load_format": "weights are read from safetensors alone, which cannot hold code",
    "skip_tokenizer_init": "guided_decoding_backend decides it",
    "generation_config": "Inflight applies generation_config.json itself",
    "scheduling_policy": "Inflight's own queue decides the order",
    "stream_interval": "every token goes to Inflight's own delivery",
    "data_parallel_size": "one model has one engine; run several servers",
    "disable_log_stats": "vLLM's own reports are off",
    "max_num_seqs": "the model parameter max_running sets it",
    "max_model_len": "max_seq_len sets it",
    "max_num_batched_tokens": "max_batched_tokens sets it",
    "enable_prefix_caching": "prefix_caching sets it",
    "enable_lora": "lora_dir sets it",
    "speculative_config": "speculative sets it",
    "structured_outputs_config": "guided_decoding_backend sets it",
    "kv_cache_memory_bytes": "kv_cache_gb sets it",
}

# Options that mean nothing without another one.
NEEDS = {
    "num_draft_tokens": "speculative",
    "ngram_max": "speculative",
    "max_loras": "lora_dir",
    "max_lora_rank": "lora_dir",
}

# What numbers must be at least; 0 is vLLM's own choice.
LEAST = {
    **dict.fromkeys(("kv_cache_gb", "block_size", "max_seq_len", "max_batched_tokens", "threads", "max_logprobs"), 0),
    **dict.fromkeys(("tensor_parallel_size", "pipeline_parallel_size", "max_loras", "max_lora_rank"), 1),
    **dict.fromkeys(("num_draft_tokens", "ngram_max"), 1),
}

Guided = Literal["xgrammar", "none"]
Speculative = Literal["", "ngram", "eagle", "eagle3", "draft_model"]


class VllmOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`kv_cache_gb` sizes the KV pool in GiB (0: on a GPU what `gpu_memory_utilization` leaves, on a CPU 2 GiB).

    `max_seq_len` lowers the context; `max_batched_tokens` is the most tokens of one step (prefill is cut into chunks of
    it, but on a CPU; 0: vLLM's own choice); `block_size` is tokens of a KV block (0: vLLM's own choice).
    `enforce_eager` leaves out compilation and CUDA graphs: a start within seconds, slower answers. `threads` limits the
    CPU threads (0: all).
    `lora_dir` is a folder with one folder per adapter. `speculative` is "ngram" or, with `speculative_model_dir`,
    "eagle", "eagle3" or "draft_model". `engine_arguments` holds further arguments of vLLM's EngineArgs by name.
    """

    dtype: str = "auto"
    quantization: str = ""
    kv_cache_dtype: str = "auto"
    kv_cache_gb: float = 0.0
    gpu_memory_utilization: float = 0.9
    block_size: int = 0
    max_seq_len: int = 0
    max_batched_tokens: int = 0
    max_logprobs: int = 20
    prefix_caching: bool = True
    enforce_eager: bool = False
    threads: int = 0
    tensor_parallel_size: int = 1
    pipeline_parallel_size: int = 1
    guided_decoding_backend: Guided = "xgrammar"
    lora_dir: str = ""
    max_loras: int = 4
    max_lora_rank: int = 16
    speculative: Speculative = ""
    speculative_model_dir: str = ""
    num_draft_tokens: int = 5
    ngram_max: int = 4
    engine_arguments: dict[str, Any] = {}


@dataclasses.dataclass(frozen=True, slots=True)
class VllmFacts:
    """What an installation of vLLM can be told. `on_cpu`: it is built for CPUs. `arguments`: names that EngineArgs has.
    `takes_bad_words`: token ids of bad words can be given; `takes_salts`: prompts have a cache_salt.
    """

    on_cpu: bool
    arguments: Set[str]
    takes_bad_words: bool = True
    takes_salts: bool = True


def read_options(values: Mapping[str, Any]) -> VllmOptions:
    """Raises `LoadError` with one sentence for an unknown name or a value that cannot be."""
    try:
        options = msgspec.convert(dict(values), VllmOptions)
    except msgspec.ValidationError as error:
        raise LoadError(f"model parameter engine_options does not fit the vllm engine: {error}.") from None
    check_numbers(options, LEAST)
    if not 0.0 < options.gpu_memory_utilization <= 1.0:
        raise LoadError(
            "engine_options: gpu_memory_utilization must be above 0 and at most 1, but is "
            f"{options.gpu_memory_utilization:g}."
        )
    if options.lora_dir and not Path(options.lora_dir).is_dir():
        raise LoadError("engine_options: lora_dir names no folder; give the one that holds the adapters' folders.")
    if bool(options.speculative_model_dir) != (options.speculative not in ("", "ngram")):
        raise LoadError(
            "engine_options: speculative_model_dir belongs to speculative eagle, eagle3 or draft_model; give both or "
            "neither."
        )
    if options.speculative_model_dir and not Path(options.speculative_model_dir, "config.json").is_file():
        raise LoadError("engine_options: speculative_model_dir names no checkpoint; give a folder with a config.json.")
    for name, needed in NEEDS.items():
        if name in values and not getattr(options, needed):
            raise LoadError(f"engine_options: {name} means nothing without {needed}; give both or neither.")
    if "ngram_max" in values and options.speculative != "ngram":
        raise LoadError("engine_options: ngram_max belongs to speculative ngram; remove it.")
    for name in options.engine_arguments:
        if name in RESERVED:
            raise LoadError(f"engine_options: engine_arguments must not hold {name}: {RESERVED[name]}.")
    return options


def capabilities(options: VllmOptions, facts: VllmFacts) -> frozenset[Capability]:
    """What the engine can do with these options in this installation, if vLLM then takes them."""
    guided = options.guided_decoding_backend != "none"
    has = {
        Capability.STREAMING: True,
        Capability.LOGPROBS: True,
        Capability.TOP_LOGPROBS: True,
        Capability.PARALLEL_SAMPLING: True,
        Capability.GUIDED_JSON: guided,
        Capability.GUIDED_REGEX: guided,
        Capability.GUIDED_EBNF: guided,
        Capability.GUIDED_CHOICE: guided,
        Capability.LORA: bool(options.lora_dir),
        Capability.BAD_WORDS: facts.takes_bad_words,
        Capability.CACHE_SALT: facts.takes_salts,
        Capability.SPECULATIVE: bool(options.speculative),
        Capability.PREFIX_CACHE: options.prefix_caching,
        Capability.MIN_P: not options.speculative,  # vLLM refuses the two together
        Capability.NEVER_PREEMPTS: True,
    }
    return frozenset(capability for capability, able in has.items() if able)


def places(max_running: int, facts: VllmFacts) -> int:
    """Sequences in the engine at once."""
    return max_running or (DEFAULT_MAX_RUNNING_CPU if facts.on_cpu else DEFAULT_MAX_RUNNING)


def engine_arguments(
    folder: Path, options: VllmOptions, facts: VllmFacts, max_running: int, max_seq_len: int
) -> dict[str, Any]:
    """Arguments of EngineArgs; `max_seq_len` 0 leaves the context to the checkpoint. Raises `LoadError` for those that
    this release does not have.
    """
    kv_bytes = int(options.kv_cache_gb * 2**30) or (DEFAULT_KV_CACHE_BYTES_CPU if facts.on_cpu else 0)
    values: dict[str, Any] = {
        "model": str(folder),
        "tokenizer": str(folder),
        "skip_tokenizer_init": options.guided_decoding_backend == "none",
        "trust_remote_code": False,
        "load_format": "safetensors",
        "generation_config": "vllm",
        "dtype": options.dtype,
        "kv_cache_dtype": options.kv_cache_dtype,
        "max_num_seqs": places(max_running, facts),
        "max_logprobs": options.max_logprobs,
        "enable_prefix_caching": options.prefix_caching,
        "enforce_eager": options.enforce_eager,
        "tensor_parallel_size": options.tensor_parallel_size,
        "pipeline_parallel_size": options.pipeline_parallel_size,
        "scheduling_policy": "priority",
        # On a CPU a seeded request whose prompt is cut into chunks ends vLLM (0.20.2 and 0.32.0): it asks the CPU's
        # random generator for an offset, which only a GPU's has. Every request that samples is seeded here.
        "enable_chunked_prefill": not facts.on_cpu,
        "disable_log_stats": not options.speculative,  # its counts of draft tokens are all that is wanted of it
    }
    if kv_bytes:
        values["kv_cache_memory_bytes"] = kv_bytes
    if not facts.on_cpu:
        values["gpu_memory_utilization"] = options.gpu_memory_utilization
    for name, value in (
        ("max_model_len", max_seq_len),
        ("max_num_batched_tokens", options.max_batched_tokens),
        ("block_size", options.block_size),
        ("quantization", options.quantization),
    ):
        if value:
            values[name] = value
    if options.guided_decoding_backend != "none":
        values["structured_outputs_config"] = {"backend": options.guided_decoding_backend}
    if options.lora_dir:
        values |= {"enable_lora": True, "max_loras": options.max_loras, "max_lora_rank": options.max_lora_rank}
    if options.speculative:
        values["speculative_config"] = _speculative(options)
    for name in options.engine_arguments:
        if name not in facts.arguments:
            near = did_you_mean(name, facts.arguments)
            raise LoadError(f"engine_options: engine_arguments holds {name}, which this vLLM does not have{near}.")
    missing = sorted(set(values) - facts.arguments)
    if missing:
        raise LoadError(f"this vLLM has no engine argument {missing[0]}; install vLLM 0.20 or later.")
    return {**values, **options.engine_arguments}


def _speculative(options: VllmOptions) -> dict[str, Any]:
    config: dict[str, Any] = {"method": options.speculative, "num_speculative_tokens": options.num_draft_tokens}
    if options.speculative == "ngram":
        return {**config, "prompt_lookup_max": options.ngram_max, "prompt_lookup_min": min(2, options.ngram_max)}
    return {**config, "model": options.speculative_model_dir}


def environment(options: VllmOptions) -> dict[str, str]:
    """Environment variables to set before vLLM is imported."""
    variables = {**ENVIRONMENT, "VLLM_LOGGING_LEVEL": os.environ.get("VLLM_LOGGING_LEVEL", "WARNING")}
    if options.threads:
        cores = sorted(os.sched_getaffinity(0))[: options.threads]
        variables["VLLM_CPU_OMP_THREADS_BIND"] = ",".join(str(core) for core in cores)
    return variables


def draft_slack(options: VllmOptions, block_size: int) -> int:
    """KV blocks that a sequence may take beyond prompt and `max_tokens`: tokens drafted past the end, and those drafted
    after them.
    """
    return -(-2 * options.num_draft_tokens // block_size) if options.speculative else 0
