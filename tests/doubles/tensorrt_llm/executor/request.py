"""LoRA requests of the high-level interface."""

from trtllm_double.llm_types import LoRARequest

__all__ = ["LoRARequest"]
