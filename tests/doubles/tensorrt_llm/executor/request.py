"""LoRA requests of the high-level interface."""

from trtllm_double.llm import LoRARequest

__all__ = ["LoRARequest"]
