"""Iterations of TensorRT-LLM's executor that fail, and its end."""

from __future__ import annotations

import threading
from typing import Any

from inflight.engines.base import EngineBroken

# TensorRT-LLM ends every active request with these words when an iteration throws, and goes on (executorImpl.cpp at
# b35ac1b6). A CUDA context that has failed once fails for good.
ITERATION_FAILED = ("Encountered an error in forwardAsync", "Encountered an error in forwardSync")
FAILED_ITERATIONS = 3  # one after the other, with no token in between, are no request's fault


# What is said of a request that was in such an iteration; TensorRT-LLM's own words stand above it in the log.
IN_A_FAILED_ITERATION = (
    "an iteration of TensorRT-LLM failed with it in the batch; send it again, and if that fails again, see the "
    "words of TensorRT-LLM above (out of memory: lower max_num_tokens or kv_cache_free_gpu_mem_fraction)"
)


class Iterations:
    """Tells an iteration that failed from an executor that fails for good."""

    def __init__(self) -> None:
        self._failed = 0

    def see(self, responses: Any) -> None:
        """Raises `EngineBroken` where TensorRT-LLM goes on and can serve nobody any more."""
        words = [str(response.error_msg) for response in responses if response.has_error()]
        failed = [each for each in words if each.startswith(ITERATION_FAILED)]
        if len(words) < len(responses):
            self._failed = 0
        if not failed:
            return
        self._failed += 1
        lost = any("CUDA" in each and "out of memory" not in each.lower() for each in failed)
        if lost or self._failed >= FAILED_ITERATIONS:
            raise EngineBroken(f"TensorRT-LLM's iterations fail: {failed[0]}")


def shut_down(executor: Any, limit_s: float) -> None:
    """Its shutdown waits for all requests, so it gets a limit."""
    closing = threading.Thread(target=executor.shutdown, name="inflight-trtllm-shutdown", daemon=True)
    closing.start()
    closing.join(limit_s)
