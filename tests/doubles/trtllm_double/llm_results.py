"""What generate_async and get_stats_async return: objects that their reader advances, in place.

As tensorrt_llm/executor/result.py near 1.2 (stored copy 1063746606) has them.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from typing import Any

from trtllm_double.llm_types import Logprob, SamplingParams
from trtllm_double.options import profile


class RequestError(RuntimeError):
    """What is wrong with one request; the executor goes on."""


class CompletionOutput:
    """Cumulative; `finish_reason` is stop, length, timeout, cancelled or None. No other attribute can be set."""

    __slots__ = ("cumulative_logprob", "finish_reason", "index", "logprobs", "stop_reason", "text", "token_ids")

    def __init__(self, index: int) -> None:
        self.index = index
        self.token_ids: list[int] = []
        self.logprobs: list[dict[int, Logprob]] = []
        self.cumulative_logprob: float | None = None
        self.finish_reason: str | None = None
        self.stop_reason: Any = None
        self.text = ""


class Response:
    """One response of the worker about one sequence, or about all beams, or about a request that failed."""

    def __init__(self, sequence: int = 0, *, error: str = "", final: bool = False, cached_tokens: int = 0) -> None:
        self.sequence = sequence
        self.error = error
        self.final = final  # the last one of the whole request
        self.cached_tokens = cached_tokens  # of the prompt of the sequence that it is about
        self.reason = "NOT_FINISHED"
        self.tokens: list[list[int]] = []
        self.logprobs: list[list[dict[int, Logprob]]] | None = None  # of all tokens so far


class RequestOutput:
    """An asynchronous iterator over itself: reading a response changes it."""

    def __init__(self, request_id: int, params: SamplingParams, abort: Callable[[], None]) -> None:
        self.request_id = request_id
        self.sampling_params = params
        self.context_logits: Any = None
        self.aqueue: asyncio.Queue[Response | Exception] = asyncio.Queue()
        self._outputs = [CompletionOutput(index) for index in range(params.best_of or params.n)]
        self._done = False
        self._aborted = False
        self._abort = abort
        self._tells_cached = profile().get("llm_cached_tokens", True)
        if self._tells_cached:  # NVIDIA/TensorRT-LLM pull request 7637
            self.cached_tokens = 0

    @property
    def outputs(self) -> list[CompletionOutput]:
        """The first n; sampled ones are not compared here, because n is never below best_of without beams."""
        return self._outputs[: self.sampling_params.n]

    @property
    def finished(self) -> bool:
        """Whether the response that is the request's last was read."""
        return self._done

    def abort(self) -> None:
        """Idempotent; the end still comes."""
        self._abort()
        self._aborted = True

    def aborted(self) -> bool:
        """Whether abort was called."""
        return self._aborted

    def __aiter__(self) -> RequestOutput:
        return self

    async def __anext__(self) -> RequestOutput:
        if self._done:
            raise StopAsyncIteration
        await self.step()
        return self

    async def step(self) -> None:
        """Read one response. Raises what it says against the request, or against the executor."""
        response = await self.aqueue.get()
        if isinstance(response, Exception):
            raise response
        if response.error:
            raise RequestError(response.error)
        self._done = response.final
        if self._tells_cached:  # the latest response's, whichever sequence it is about
            self.cached_tokens = response.cached_tokens
        if self.sampling_params.use_beam_search:
            for beam in range(len(response.tokens)):
                self._handle(response, beam, beam)
        else:
            self._handle(response, response.sequence, 0)

    def _handle(self, response: Response, sequence: int, source: int) -> None:
        output = self._outputs[sequence]
        if self.sampling_params.use_beam_search:
            output.token_ids = response.tokens[source][:]
        else:
            output.token_ids.extend(response.tokens[source])
        if response.logprobs is not None:
            output.logprobs += response.logprobs[source][len(output.logprobs) :]
            output.cumulative_logprob = sum(_chosen(entry) for entry in response.logprobs[source])
            if response.reason != "CANCELLED":
                assert len(output.logprobs) == len(output.token_ids)
        if response.reason == "CANCELLED":
            output.finish_reason = "cancelled"
        if not self._done:  # whatever ended a sequence before the last one, nobody is told
            return
        if response.reason == "STOP_WORDS":
            output.finish_reason = "stop"
            for word in self.sampling_params.stop_token_ids or ():
                if output.token_ids[-1:] == [word]:
                    output.stop_reason = word
                    if not self.sampling_params.include_stop_str_in_output:
                        output.token_ids = output.token_ids[:-1]
                    break
        elif response.reason == "NOT_FINISHED":
            raise ValueError(f"Unknown finish reason: {response.reason}")
        elif response.reason != "CANCELLED":
            output.finish_reason = {"END_ID": "stop", "LENGTH": "length", "TIMED_OUT": "timeout"}[response.reason]


def _chosen(entry: dict[int, Logprob]) -> float:
    return next(iter(entry.values())).logprob


class IterationResult:
    """Statistics of iterations. Made when the first request comes; when that was inside an event loop, the plain queue
    beside it answers None after its time, which json.loads does not take (llmapi/utils.py at cc4777e9).
    """

    def __init__(self) -> None:
        self._asynchronous = True
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            self._asynchronous = False
        self._queue: asyncio.Queue[str] = asyncio.Queue()
        self._done = False
        self.timeout = 2.0

    def put(self, entry: str) -> None:
        """Bounded, as the worker's own list of iterations is."""
        if self._queue.qsize() < 1000:
            self._queue.put_nowait(entry)

    def mark_undone(self) -> None:
        """More can be had: a request has come."""
        self._done = False

    def get_results(self) -> list[dict[str, Any]]:
        """All there is. Raises `TypeError` in a program with an event loop, and what was read is lost."""
        found = []
        deadline = time.monotonic() + self.timeout
        while not self._done:
            data = None if self._queue.empty() else self._queue.get_nowait()
            if data is None and self._asynchronous:
                time.sleep(max(0.0, min(0.01, deadline - time.monotonic())))
            if data is None and not self._asynchronous:
                self._done = True
                break
            found.append(json.loads(data))  # type: ignore[arg-type]
        return found

    def __aiter__(self) -> IterationResult:
        return self

    async def __anext__(self) -> dict[str, Any]:
        if self._done:
            raise StopAsyncIteration
        try:
            entry: dict[str, Any] = json.loads(await asyncio.wait_for(self._queue.get(), self.timeout))
        except asyncio.TimeoutError:
            self._done = True
            raise StopAsyncIteration from None
        return entry


async def nothing() -> Any:
    """What get_stats_async answers before the first request: an asynchronous iterator without items."""
    for item in ():
        yield item
