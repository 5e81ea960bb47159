"""The thread on which tensorrt_llm.LLM is spoken to: it answers through asyncio, and ties each answer to a loop.

The thread, `inflight-trtllm-loop`, hands requests over, copies what comes into a queue, and reads statistics. The
engine's owner thread reads the queue.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import queue
import threading
from collections.abc import Mapping
from typing import Any

from inflight.engines.base import EngineStats
from inflight.engines.faults import sparingly
from inflight.engines.tensorrt_llm.llm_output import LiveRequest, Piece, snapshot

STATS_INTERVAL_S = 0.5
STATS_WAIT_S = 2.0  # an iteration that takes longer ends the reading, until the next request comes
STATS_RETRY_S = 10.0
CLOSE_S = 1.0

# (request, what it has gained), (request, None) at its end, (request, what ended it), (None, statistics)
Item = tuple[int | None, "list[Piece] | Exception | EngineStats | None"]


class LlmLoop:
    """See the module's text. Every method but `close` may be called again and again; none blocks but `start`."""

    def __init__(self, llm: Any) -> None:
        self._llm = llm
        self.arrived: queue.SimpleQueue[Item] = queue.SimpleQueue()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="inflight-trtllm-loop", daemon=True)
        self._thread.start()
        self._reading: asyncio.Task[None] | None = None
        self.closing = False  # what LLM says from now on interests nobody

    def start(self, live: LiveRequest, params: Any, extra: Mapping[str, Any], timeout_s: float) -> None:
        """Hand a request over. Raises what LLM says against it, and `TimeoutError`; then it is taken back."""
        started = asyncio.run_coroutine_threadsafe(self._start(live, params, extra), self._loop)
        try:
            started.result(timeout_s)
        except Exception:
            live.cancelled = True  # LLM may have taken it, or take it yet
            started.cancel()
            self.abort(live)
            raise

    def abort(self, live: LiveRequest) -> None:
        """End a request early; its end still comes."""
        self._loop.call_soon_threadsafe(_abort, live)

    def close(self) -> None:
        """End the thread, whatever it does."""
        with contextlib.suppress(TimeoutError, concurrent.futures.TimeoutError):
            asyncio.run_coroutine_threadsafe(_cancel_tasks(), self._loop).result(CLOSE_S)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(CLOSE_S)

    # -- on the loop's thread ----------------------------------------------------------------------------------------

    async def _start(self, live: LiveRequest, params: Any, extra: Mapping[str, Any]) -> None:
        ids = list(live.request.token_ids)
        live.output = self._llm.generate_async(ids, sampling_params=params, streaming=True, **extra)
        if live.cancelled:
            _abort(live)
            return
        if self._reading is None:  # before its first request LLM has no statistics, and says so each time
            self._reading = self._loop.create_task(self._read_statistics())
        task = self._loop.create_task(self._follow(live))
        live.output._inflight_task = task  # as long as the request lives, so does its task

    async def _follow(self, live: LiveRequest) -> None:
        """Copy every state into the queue: LLM changes its outputs in place."""
        request_id = live.request.request_id
        try:
            async for _ in live.output:
                self.arrived.put((request_id, snapshot(live)))
            self.arrived.put((request_id, None))
        except Exception as error:  # noqa: BLE001 — whatever ended this request ends it for its client as well
            self.arrived.put((request_id, error))
            _abort(live)  # LLM may go on with it

    async def _read_statistics(self) -> None:
        """For ever; what goes wrong is logged, and no request suffers for it."""
        while True:
            try:
                await self._read_some()
                await asyncio.sleep(STATS_INTERVAL_S)
            except Exception:  # noqa: BLE001 — another release may word them otherwise
                if self.closing:
                    return
                sparingly.exception(
                    "stats", "TensorRT-LLM's statistics could not be read; metrics of this engine lack them"
                )
                await asyncio.sleep(STATS_RETRY_S)

    async def _read_some(self) -> None:
        """Until an iteration takes long. Once a loop runs, `get_stats` can answer nothing (IterationResult in
        tensorrt_llm.executor.result); where statistics come by a remote call, the asynchronous one holds up this loop.
        """
        if getattr(getattr(self._llm, "_executor", None), "rpc_client", None) is not None:
            for entry in await asyncio.to_thread(self._llm.get_stats, STATS_WAIT_S):
                self.arrived.put((None, statistics(entry)))
            return
        async for entry in self._llm.get_stats_async(STATS_WAIT_S):
            self.arrived.put((None, statistics(entry)))


def statistics(entry: Mapping[str, Any]) -> EngineStats:
    """One iteration's, which has the JSON names of the C++ structures."""
    cache = entry.get("kvCacheStats") or {}
    return EngineStats(
        blocks_used=int(cache.get("usedNumBlocks", 0)),
        blocks_max=int(cache.get("maxNumBlocks", 0)),
        reused_tokens_total=int(cache.get("reusedBlocks", 0)) * int(cache.get("tokensPerBlock", 32)),
    )


def _abort(live: LiveRequest) -> None:
    """LLM's own abort raises once its executor is gone."""
    if live.output is not None:
        try:
            live.output.abort()
        except Exception:  # noqa: BLE001 — the request ends anyway, with its executor
            sparingly.exception("abort", "TensorRT-LLM could not end request %d early", live.request.request_id)


async def _cancel_tasks() -> None:
    """End what still runs in this loop."""
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
