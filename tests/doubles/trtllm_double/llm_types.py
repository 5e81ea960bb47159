"""What is given to LLM: its arguments, sampling parameters and configurations, with their defaults and checks.

Field names: tensorrt_llm/llmapi/llm_args.py and tensorrt_llm/sampling_params.py near 1.2 (facts sheet, section 3).
"""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

from trtllm_double.options import profile

ALL_ARGUMENTS = frozenset(
    [
        "model",
        "tokenizer",
        "tokenizer_mode",
        "skip_tokenizer_init",
        "trust_remote_code",
        "tensor_parallel_size",
        "dtype",
        "revision",
        "tokenizer_revision",
        "pipeline_parallel_size",
        "context_parallel_size",
        "gpus_per_node",
        "moe_cluster_parallel_size",
        "moe_tensor_parallel_size",
        "moe_expert_parallel_size",
        "enable_attention_dp",
        "load_format",
        "enable_lora",
        "lora_config",
        "kv_cache_config",
        "enable_chunked_prefill",
        "guided_decoding_backend",
        "iter_stats_max_iterations",
        "request_stats_max_iterations",
        "peft_cache_config",
        "scheduler_config",
        "speculative_config",
        "max_batch_size",
        "max_input_len",
        "max_seq_len",
        "max_beam_width",
        "max_num_tokens",
        "gather_generation_logits",
        "num_postprocess_workers",
        "return_perf_metrics",
        "cuda_graph_config",
        "disable_overlap_scheduler",
        "moe_config",
        "attn_backend",
        "sampler_type",
        "enable_iter_perf_stats",
        "enable_iter_req_stats",
        "print_iter_log",
        "torch_compile_config",
        "stream_interval",
    ]
)
ARGUMENTS = (ALL_ARGUMENTS | set(profile().get("llm_arguments", ()))) - set(profile().get("llm_arguments_drop", ()))


class TorchLlmArgs:
    """As much of the pydantic model as says which arguments LLM takes."""

    model_fields: dict[str, Any] = dict.fromkeys(ARGUMENTS)


@dataclasses.dataclass
class LoraConfig:
    """Without it the PyTorch flow has no adapters, whatever enable_lora says (lora_helper.py, copy 2545972156)."""

    lora_dir: list[str] = dataclasses.field(default_factory=list)
    lora_ckpt_source: str = "hf"
    max_lora_rank: int = 64
    lora_target_modules: list[str] = dataclasses.field(default_factory=list)
    trtllm_modules_to_hf_modules: dict[str, str] = dataclasses.field(default_factory=dict)
    max_loras: int | None = None
    max_cpu_loras: int | None = None


@dataclasses.dataclass(kw_only=True)
class SamplingParams:
    """The fields of the real dataclass, with its defaults and its checks."""

    end_id: int | None = None
    pad_id: int | None = None
    max_tokens: int = 32
    bad: Any = None
    bad_token_ids: Any = None
    stop: Any = None
    stop_token_ids: Any = None
    include_stop_str_in_output: bool = False
    embedding_bias: Any = None
    n: int = 1
    best_of: int | None = None
    use_beam_search: bool = False
    top_k: int | None = None
    top_p: float | None = None
    top_p_min: float | None = None
    top_p_reset_ids: int | None = None
    top_p_decay: float | None = None
    seed: int | None = None
    temperature: float | None = None
    min_tokens: int | None = None
    beam_search_diversity_rate: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    length_penalty: float | None = None
    early_stopping: int | None = None
    no_repeat_ngram_size: int | None = None
    min_p: float | None = None
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    return_context_logits: bool = False
    exclude_input_from_output: bool = True
    return_perf_metrics: bool = False
    guided_decoding: Any = None
    ignore_eos: bool = False
    detokenize: bool = True
    add_special_tokens: bool = True
    skip_special_tokens: bool = True

    def __post_init__(self) -> None:
        allowed = os.environ.get("TLLM_ALLOW_N_GREEDY_DECODING")
        self.pad_id = self.end_id if self.pad_id is None else self.pad_id
        self.best_of = self.best_of or self.n
        if self.n > 1 and self.greedy and not self.use_beam_search and not allowed:
            raise ValueError("Greedy decoding in the LLM API does not allow multiple returns.")
        if self.n > (self.best_of or self.n):
            raise ValueError("n cannot be larger than best_of")

    @property
    def greedy(self) -> bool:
        """As in 1.1 and later."""
        named = (self.temperature, self.top_p, self.top_k)
        return named == (None, None, None) or self.top_k == 1 or self.top_p == 0 or self.temperature == 0


@dataclasses.dataclass(kw_only=True)
class GuidedDecodingParams:
    """Exactly one field is set."""

    json: Any = None
    regex: str | None = None
    grammar: str | None = None
    json_object: bool = False
    structural_tag: str | None = None


@dataclasses.dataclass
class LoRARequest:
    """Raises `ValueError` when the path does not exist."""

    lora_name: str
    lora_int_id: int
    lora_path: str = ""
    lora_ckpt_source: str = "hf"

    def __post_init__(self) -> None:
        if not Path(self.lora_path).exists():
            raise ValueError(f"lora_path ({self.lora_path}) does not exist.")


class _Config:
    def __init__(self, **values: Any) -> None:
        unknown = set(values) - set(self.FIELDS)
        if unknown:
            raise ValueError(f"Extra inputs are not permitted: {', '.join(sorted(unknown))}")
        self.__dict__.update(dict.fromkeys(self.FIELDS) | self.DEFAULTS | values)

    FIELDS: tuple[str, ...] = ()
    model_fields: dict[str, Any] = {}  # noqa: RUF012
    DEFAULTS: dict[str, Any] = {}  # noqa: RUF012


class KvCacheConfig(_Config):
    """Of the high-level interface; not the bindings' class."""

    FIELDS = ("enable_block_reuse", "max_tokens", "free_gpu_memory_fraction", "host_cache_size", "dtype")
    FIELDS += ("enable_partial_reuse", "max_attention_window", "sink_token_length", "tokens_per_block")


class LookaheadDecodingConfig(_Config):
    """Engines only."""

    FIELDS = ("max_window_size", "max_ngram_size", "max_verification_set_size")


class NGramDecodingConfig(_Config):
    """Prompt lookup. The size's default is 0 up to 1.2 (llm_args.py, copies 1520735490 and 1090804222), where LLM
    then refuses it, and 2 in 1.3 (7019226376).
    """

    FIELDS = ("max_draft_len", "max_matching_ngram_size", "is_keep_all", "is_use_oldest", "is_public_pool")
    DEFAULTS = {"max_matching_ngram_size": profile().get("ngram_size", 0)}  # noqa: RUF012


class EagleDecodingConfig(_Config):
    """EAGLE-3 on the PyTorch flow: drafts inside the model unless told otherwise (llm_args.py, copy 7019226376)."""

    FIELDS = ("max_draft_len", "speculative_model_dir", "eagle3_one_model", *profile().get("eagle_fields", ()))
    DEFAULTS = {"eagle3_one_model": True}  # noqa: RUF012


EagleDecodingConfig.model_fields = dict.fromkeys(EagleDecodingConfig.FIELDS)


@dataclasses.dataclass
class Logprob:
    """One entry of a token's log-probabilities."""

    logprob: float
    rank: int | None = None
