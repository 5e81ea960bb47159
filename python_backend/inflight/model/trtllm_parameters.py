"""The model parameters of NVIDIA's own Triton model for TensorRT-LLM, under their own names.

An existing config.pbtxt of `inflight_batcher_llm/tensorrt_llm` can so be served by changing the backend's name. A value
that is empty or still a placeholder (`${…}`) is not set. Names and defaults: facts of triton_backend/all_models/
inflight_batcher_llm/tensorrt_llm/config.pbtxt as of TensorRT-LLM 1.0 to 1.2.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from inflight.errors import LoadError, quoted

# Any of these says that the whole file is NVIDIA's, so its defaults are NVIDIA's too.
MARKS = ("gpt_model_path", "gpt_model_type")


@dataclasses.dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter. `kind`: int, float, bool, ints (comma list), text, path; `effect` "" means full effect, else what
    becomes of it here.
    """

    kind: str
    note: str
    effect: str = ""


PARAMETERS: dict[str, Parameter] = {
    "max_beam_width": Parameter("int", "largest beam_width of a request; 1 unless set"),
    "gpt_model_type": Parameter("text", "inflight_fused_batching or inflight_batching; V1 is refused"),
    "gpt_model_path": Parameter("path", "the engine directory; stands for engine_dir"),
    "encoder_model_path": Parameter("path", "encoder-decoder models", "refused: only decoder-only models are served"),
    "max_tokens_in_paged_kv_cache": Parameter("int", "upper bound of the KV pool in tokens"),
    "max_attention_window_size": Parameter("ints", "attention window of each layer"),
    "sink_token_length": Parameter("int", "attention sink tokens"),
    "batch_scheduler_policy": Parameter("text", "guaranteed_no_evict (default) or max_utilization"),
    "kv_cache_free_gpu_mem_fraction": Parameter("float", "share of the free GPU memory for the KV pool; 0.9"),
    "cross_kv_cache_fraction": Parameter("float", "encoder-decoder models", "refused unless unset"),
    "kv_cache_host_memory_bytes": Parameter("int", "host memory for KV blocks that leave the GPU"),
    "kv_cache_onboard_blocks": Parameter("bool", "bring blocks back from the host before reuse; true"),
    "enable_trt_overlap": Parameter("bool", "deprecated by TensorRT-LLM", "no effect, there and here"),
    "cancellation_check_period_ms": Parameter("int", "how often to look for cancels", "no effect: a poller of its own"),
    "stats_check_period_ms": Parameter("int", "how often to read statistics", "no effect: metrics_interval_ms"),
    "recv_poll_period_ms": Parameter("int", "poll period of worker ranks; 0"),
    "iter_stats_max_iterations": Parameter("int", "iterations kept for statistics; 1000"),
    "request_stats_max_iterations": Parameter("int", "iterations kept for request statistics; 0"),
    "enable_kv_cache_reuse": Parameter("bool", "reuse the KV blocks of equal beginnings; where the engine can"),
    "normalize_log_probs": Parameter("bool", "normalize the scores of beams; true"),
    "enable_chunked_context": Parameter("bool", "cut long prompts into chunks of max_num_tokens; false"),
    "gpu_device_ids": Parameter("ints", "GPUs of the engine's ranks"),
    "participant_ids": Parameter("ints", "MPI ranks of the engine"),
    "num_nodes": Parameter("int", "nodes the engine is spread over; 1"),
    "lora_cache_optimal_adapter_size": Parameter("int", "adapter size the LoRA cache is planned for; 8"),
    "lora_cache_max_adapter_size": Parameter("int", "largest adapter size; 64"),
    "lora_cache_gpu_memory_fraction": Parameter("float", "share of the free GPU memory for adapters; 0.05"),
    "lora_cache_host_memory_bytes": Parameter("int", "host memory for adapters; 1 GiB"),
    "lora_prefetch_dir": Parameter("path", "adapters that are loaded at start"),
    "decoding_mode": Parameter("text", "top_k, top_p, top_k_top_p, beam_search, medusa, redrafter, lookahead, eagle"),
    "executor_worker_path": Parameter("path", "the worker of orchestrator mode", "no effect: ranks start under mpirun"),
    "lookahead_window_size": Parameter("int", "lookahead decoding"),
    "lookahead_ngram_size": Parameter("int", "lookahead decoding"),
    "lookahead_verification_set_size": Parameter("int", "lookahead decoding"),
    "medusa_choices": Parameter("text", "tree of Medusa, as {0}, {0, 0}"),
    "eagle_choices": Parameter("text", "tree of EAGLE, as {0}, {0, 0}"),
    "gpu_weights_percent": Parameter("float", "share of the weights kept on the GPU (weight streaming); 1.0"),
    "multi_block_mode": Parameter("bool", "split long attention over blocks; true"),
    "enable_context_fmha_fp32_acc": Parameter("bool", "accumulate attention in fp32; false"),
    "cuda_graph_mode": Parameter("bool", "CUDA graphs; false"),
    "cuda_graph_cache_size": Parameter("int", "CUDA graphs kept; 0"),
    "speculative_decoding_fast_logits": Parameter(
        "bool", "draft logits from GPU to GPU", "refused when true: drafts travel as tokens"
    ),
    "tokenizer_dir": Parameter("path", "tokenizer for guided decoding; else the engine directory"),
    "guided_decoding_backend": Parameter("text", "xgrammar"),
    "xgrammar_tokenizer_info_path": Parameter(
        "path", "tokenizer facts of the C++ backend", "no effect: made from the tokenizer itself"
    ),
}


def is_unset(text: str) -> bool:
    """Whether NVIDIA's template left this value open."""
    return not text.strip() or "${" in text


def parse_parameter(name: str, text: str) -> Any:
    """The value of one parameter. Raises `LoadError` that names it."""
    kind, text = PARAMETERS[name].kind, text.strip()
    try:
        if kind == "int":
            return int(text)
        if kind == "float":
            return float(text)
        if kind == "bool":
            if text.lower() not in ("true", "false", "1", "0"):
                raise ValueError
            return text.lower() in ("true", "1")
        if kind == "ints":
            if ";" in text:
                raise LoadError(
                    f"model parameter {name} names several instances ({quoted(text)}); give one list and make a model "
                    "each."
                )
            return [int(part) for part in text.split(",")]
    except ValueError:
        shown = {
            "int": "a whole number",
            "float": "a number",
            "bool": "true or false",
            "ints": "a comma list of numbers",
        }
        raise LoadError(f"model parameter {name} must be {shown[kind]}, but is {quoted(text)}.") from None
    return text


def take_parameters(parameters: Mapping[str, str]) -> tuple[dict[str, str], dict[str, Any]]:
    """(parameters that are ours, options for the engine) of a model's parameters.

    Where the file is NVIDIA's, its own defaults are put in place of ours: answers begin with the prompt.
    """
    ours, options = {}, {}
    theirs = any(mark in parameters for mark in MARKS)
    for name, text in parameters.items():
        if name not in PARAMETERS:
            if not (theirs and is_unset(text)):
                ours[name] = text
        elif not is_unset(text):
            options[name] = parse_parameter(name, text)
    path = options.pop("gpt_model_path", None)
    if path is not None:
        ours.setdefault("engine_dir", path)
    if theirs:
        ours.setdefault("exclude_input_in_output", "false")
        ours.setdefault("engine", "tensorrt_llm")
    return ours, options
