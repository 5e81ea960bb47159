"""What the TensorRT-LLM engine can be told: NVIDIA's parameters under their names, and a few of ours."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal

import msgspec

from inflight.engines.options import check_numbers
from inflight.errors import LoadError, quoted

Launcher = Literal["mpirun", "srun"]


class TensorRtLlmOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """NVIDIA's names are those of docs/engines/tensorrt_llm.md; they are model parameters or in `engine_options`.

    Ours: `max_batch_size` and `max_num_tokens` lower the engine's own limits; `max_seq_len` lowers the context.
    `lora_dir` is a folder with one folder per adapter. `stall_timeout_ms`: an engine with work that neither answers nor
    iterates for this long is broken. `prompt_retention_priority` (0 to 100) and `prompt_retention_s` keep prompts
    longer in the KV cache. `mpi_launcher`, `mpi_hostfile` and `mpi_arguments` start the ranks of an engine for several
    GPUs. `draft_engine_dir` and `num_draft_tokens` pair the engine with a draft engine. For checkpoints (PyTorch flow):
    `tensor_parallel_size`, `pipeline_parallel_size`, `speculative` ("ngram" or "eagle3"), `speculative_model_dir`,
    `max_matching_ngram_size` (the longest beginning that "ngram" looks up), `kv_cache_dtype`, and `llm_arguments`,
    further arguments of tensorrt_llm.LLM.
    """

    max_beam_width: int = 1
    gpt_model_type: str = "inflight_fused_batching"
    encoder_model_path: str = ""
    max_tokens_in_paged_kv_cache: int | None = None
    max_attention_window_size: list[int] | None = None
    sink_token_length: int | None = None
    batch_scheduler_policy: str = "guaranteed_no_evict"
    kv_cache_free_gpu_mem_fraction: float = 0.9
    cross_kv_cache_fraction: float | None = None
    kv_cache_host_memory_bytes: int | None = None
    kv_cache_onboard_blocks: bool = True
    enable_trt_overlap: bool = False
    cancellation_check_period_ms: int = 100
    stats_check_period_ms: int = 100
    recv_poll_period_ms: int = 0
    iter_stats_max_iterations: int = 1000
    request_stats_max_iterations: int = 0
    enable_kv_cache_reuse: bool | None = None
    normalize_log_probs: bool = True
    enable_chunked_context: bool = False
    gpu_device_ids: list[int] | None = None
    participant_ids: list[int] | None = None
    num_nodes: int = 1
    lora_cache_optimal_adapter_size: int = 8
    lora_cache_max_adapter_size: int = 64
    lora_cache_gpu_memory_fraction: float = 0.05
    lora_cache_host_memory_bytes: int = 1 << 30
    lora_prefetch_dir: str = ""
    decoding_mode: str = ""
    executor_worker_path: str = ""
    lookahead_window_size: int | None = None
    lookahead_ngram_size: int | None = None
    lookahead_verification_set_size: int | None = None
    medusa_choices: str = ""
    eagle_choices: str = ""
    gpu_weights_percent: float = 1.0
    multi_block_mode: bool = True
    enable_context_fmha_fp32_acc: bool = False
    cuda_graph_mode: bool = False
    cuda_graph_cache_size: int = 0
    speculative_decoding_fast_logits: bool = False
    tokenizer_dir: str = ""
    guided_decoding_backend: Literal["xgrammar", "none"] = "xgrammar"
    xgrammar_tokenizer_info_path: str = ""

    max_batch_size: int = 0
    max_num_tokens: int = 0
    max_seq_len: int = 0
    lora_dir: str = ""
    stall_timeout_ms: int = 30_000
    prompt_retention_priority: int | None = None
    prompt_retention_s: float = 0.0
    mpi_launcher: Launcher = "mpirun"
    mpi_hostfile: str = ""
    mpi_arguments: list[str] = []
    draft_engine_dir: str = ""
    num_draft_tokens: int = 5
    tensor_parallel_size: int = 1
    pipeline_parallel_size: int = 1
    speculative: Literal["", "ngram", "eagle3"] = ""
    speculative_model_dir: str = ""
    max_matching_ngram_size: int = 2
    kv_cache_dtype: str = "auto"
    llm_arguments: dict[str, Any] = {}


# TopK and TopP alone would compute nothing for a request of the other kind (samplingLayer.cpp, stored copy 2750191263),
# and greedy ones are of the first.
DECODING_MODES = {
    "top_k": "TopKTopP",
    "top_p": "TopKTopP",
    "top_k_top_p": "TopKTopP",
    "beam_search": "BeamSearch",
    "medusa": "Medusa",
    "redrafter": "ExplicitDraftTokens",
    "lookahead": "Lookahead",
    "eagle": "Eagle",
}
LOOKAHEAD_OPTIONS = ("lookahead_window_size", "lookahead_ngram_size", "lookahead_verification_set_size")
LOOKAHEAD_DEFAULTS = (4, 3, 4)  # executor.h, stored copy 735557460
SPECULATIVE_MODES = frozenset({"medusa", "redrafter", "lookahead", "eagle"})
POLICIES = {"guaranteed_no_evict": "GUARANTEED_NO_EVICT", "max_utilization": "MAX_UTILIZATION"}
BATCHING_TYPES = ("inflight_fused_batching", "inflight_batching")


# What numbers must be at least. 0 and None are a choice of TensorRT-LLM's, where they are allowed.
LEAST = {
    **dict.fromkeys(
        (
            "kv_cache_host_memory_bytes",
            "lora_cache_host_memory_bytes",
            "cancellation_check_period_ms",
            "stats_check_period_ms",
            "recv_poll_period_ms",
            "iter_stats_max_iterations",
            "request_stats_max_iterations",
            "cuda_graph_cache_size",
            "lookahead_verification_set_size",
            "max_batch_size",
            "max_num_tokens",
            "max_seq_len",
            "prompt_retention_s",
        ),
        0,
    ),
    **dict.fromkeys(
        (
            "max_tokens_in_paged_kv_cache",
            "sink_token_length",
            "max_beam_width",
            "num_nodes",
            "lora_cache_optimal_adapter_size",
            "lora_cache_max_adapter_size",
            "lookahead_window_size",
            "lookahead_ngram_size",
            "stall_timeout_ms",
            "num_draft_tokens",
            "max_matching_ngram_size",
            "tensor_parallel_size",
            "pipeline_parallel_size",
        ),
        1,
    ),
}


def read_options(values: Mapping[str, Any]) -> TensorRtLlmOptions:
    """Raises `LoadError` with one sentence for an unknown name or a value that cannot be."""
    try:
        options = msgspec.convert(dict(values), TensorRtLlmOptions)
    except msgspec.ValidationError as error:
        raise LoadError(f"model parameter engine_options does not fit the tensorrt_llm engine: {error}.") from None
    check_numbers(options, LEAST, "model parameter")
    if options.gpt_model_type not in BATCHING_TYPES:
        raise LoadError(
            f"Invalid gpt_model_type {quoted(options.gpt_model_type)}: TensorRT-LLM batches in flight only; set it to "
            f"{' or '.join(BATCHING_TYPES)}."
        )
    _check_choice("batch_scheduler_policy", options.batch_scheduler_policy, POLICIES)
    if options.decoding_mode:
        _check_choice("decoding_mode", options.decoding_mode, DECODING_MODES)
    if options.encoder_model_path or options.cross_kv_cache_fraction is not None:
        raise LoadError("encoder_model_path and cross_kv_cache_fraction belong to encoder-decoder models; remove them.")
    if options.speculative_decoding_fast_logits:
        raise LoadError("speculative_decoding_fast_logits is not supported, drafts travel as tokens; set it to false.")
    if not 0.0 < options.kv_cache_free_gpu_mem_fraction < 1.0:
        raise LoadError(
            "model parameter kv_cache_free_gpu_mem_fraction must be above 0 and below 1, but is "
            f"{options.kv_cache_free_gpu_mem_fraction:g}."
        )
    if any(window < 1 for window in options.max_attention_window_size or ()):
        raise LoadError("model parameter max_attention_window_size has a window below 1; name tokens of each layer.")
    for name, value in (
        ("lora_cache_gpu_memory_fraction", options.lora_cache_gpu_memory_fraction),
        ("gpu_weights_percent", options.gpu_weights_percent),
    ):
        if not 0.0 < value <= 1.0:
            raise LoadError(f"model parameter {name} must be above 0 and at most 1, but is {value:g}.")
    window, ngram, guesses = lookahead_sizes(options)
    if ngram == 1 and (window, guesses) != (1, 0):
        raise LoadError(
            "lookahead_ngram_size is 1, with which lookahead_window_size must be 1 and lookahead_verification_set_size "
            "0; set it to 2 or more."
        )
    if options.max_beam_width > 1 and options.decoding_mode not in ("", "beam_search"):
        raise LoadError(f"decoding_mode {options.decoding_mode} works without beams only; set max_beam_width to 1.")
    return options


def lookahead_sizes(options: TensorRtLlmOptions) -> tuple[int, int, int]:
    """Window, n-gram and verification set, with TensorRT-LLM's own where nothing is set."""
    given = (getattr(options, name) for name in LOOKAHEAD_OPTIONS)
    window, ngram, guesses = (
        default if value is None else value for value, default in zip(given, LOOKAHEAD_DEFAULTS, strict=True)
    )
    return window, ngram, guesses


def lookahead_drafts(sizes: tuple[int, int, int]) -> int:
    """Draft tokens of a step, of which an engine holds `max_draft_len` (calculateSpeculativeResourceTuple, stored copy
    251636740).
    """
    window, ngram, guesses = sizes
    return max(0, ngram - 2) + (window - 1 + guesses) * (ngram - 1)


def _check_choice(name: str, value: str, known: Mapping[str, str]) -> None:
    if value not in known:
        raise LoadError(f"model parameter {name} must be one of {', '.join(known)}, but is {quoted(value)}.")


def parse_choices(name: str, text: str) -> list[list[int]]:
    """NVIDIA's form of a token tree, as `{0, 0, 0}, {0, 1}`. Raises `LoadError`."""
    if not re.fullmatch(r"\s*\{\s*\d+(\s*,\s*\d+)*\s*\}(\s*,\s*\{\s*\d+(\s*,\s*\d+)*\s*\})*\s*", text):
        raise LoadError(f"model parameter {name} must look like {{0}}, {{0, 1}}, but is {quoted(text)}.")
    return [[int(number) for number in group.split(",")] for group in re.findall(r"\{([^}]*)\}", text)]
