"""The arguments of LLM, and what they import."""

from trtllm_double.llm_types import LoraConfig, TorchLlmArgs

__all__ = ["LoraConfig", "TorchLlmArgs"]
