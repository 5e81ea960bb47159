"""A stand-in for TensorRT-LLM, for machines that cannot have it. See tests/doubles/trtllm_double."""

import sys

from trtllm_double.options import options, profile

if options().import_fails:
    raise ImportError("libnvinfer.so.10: cannot open shared object file: No such file or directory")

from trtllm_double.llm import LLM
from trtllm_double.llm_types import SamplingParams

__version__ = profile()["version"]
print(f"[TensorRT-LLM] TensorRT-LLM version: {__version__}", file=sys.stderr)
__all__ = ["LLM", "SamplingParams"]
