"""The high-level names that the engine uses."""

from trtllm_double.llm_types import (
    EagleDecodingConfig,
    GuidedDecodingParams,
    KvCacheConfig,
    LookaheadDecodingConfig,
    NGramDecodingConfig,
    SamplingParams,
)

__all__ = [
    "EagleDecodingConfig",
    "GuidedDecodingParams",
    "KvCacheConfig",
    "LookaheadDecodingConfig",
    "NGramDecodingConfig",
    "SamplingParams",
]
