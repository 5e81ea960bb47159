"""What vLLM's releases 0.20.2 and 0.32.0 both can be told, as far as the engine tells it (read from both packages'
sources; tests/integration/test_vllm_engine.py holds it against the one that is installed).
"""

from __future__ import annotations

from inflight.engines.vllm.options import VllmFacts

ARGUMENTS = frozenset(
    {
        "block_size",
        "disable_log_stats",
        "dtype",
        "enable_chunked_prefill",
        "enable_lora",
        "enable_prefix_caching",
        "enforce_eager",
        "generation_config",
        "gpu_memory_utilization",
        "kv_cache_dtype",
        "kv_cache_memory_bytes",
        "load_format",
        "max_logprobs",
        "max_lora_rank",
        "max_loras",
        "max_model_len",
        "max_num_batched_tokens",
        "max_num_seqs",
        "model",
        "pipeline_parallel_size",
        "quantization",
        "scheduling_policy",
        "seed",
        "skip_tokenizer_init",
        "speculative_config",
        "structured_outputs_config",
        "tensor_parallel_size",
        "tokenizer",
        "trust_remote_code",
    }
)
GPU = VllmFacts(on_cpu=False, arguments=ARGUMENTS)
CPU = VllmFacts(on_cpu=True, arguments=ARGUMENTS)
