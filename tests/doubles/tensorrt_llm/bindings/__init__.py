"""As the real package: a module with the submodule `executor`."""

from tensorrt_llm.bindings import executor

__all__ = ["executor"]
