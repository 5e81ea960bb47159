"""The engine flow's LLM, in the releases that have it here."""

from trtllm_double.options import profile

if not profile()["engine_llm_module"]:
    raise ModuleNotFoundError("No module named 'tensorrt_llm._tensorrt_engine'", name="tensorrt_llm._tensorrt_engine")

from trtllm_double.llm import EngineLLM as LLM

__all__ = ["LLM"]
