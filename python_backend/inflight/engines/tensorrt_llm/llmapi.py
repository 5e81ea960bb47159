"""Hugging Face-style checkpoints, quantized or not, through tensorrt_llm.LLM: the PyTorch flow, behind the engine seam.

LLM answers through asyncio: one thread, `inflight-trtllm-loop`, runs the loop and puts what comes into a queue; the
engine's owner thread takes it out in `step`. LLM's outputs are cumulative and only the latest state is kept, so every
look compares with what was passed on before.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import inspect
import logging
import os
import queue
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from inflight.engines.adapters import adapter_folder
from inflight.engines.base import (
    GUIDED,
    Capability,
    EngineBroken,
    EngineInfo,
    EngineOutput,
    EngineRefusal,
    EngineRequest,
    EngineStats,
    FinishReason,
)
from inflight.engines.faults import concerns_one_request
from inflight.engines.refusals import in_our_words
from inflight.engines.tensorrt_llm.options import TensorRtLlmOptions
from inflight.engines.tensorrt_llm.probe import Installed, first_line
from inflight.engines.tensorrt_llm.sampling import Stops, llm_sampling_params, split_stops
from inflight.errors import LoadError

log = logging.getLogger("inflight.engine_worker")

DEFAULT_MAX_RUNNING = 256
CALL_S = 10.0
STATS_INTERVAL_S = 0.5

_FINISH = {
    "stop": FinishReason.STOP,
    "length": FinishReason.LENGTH,
    "timeout": FinishReason.DEADLINE,
    "cancelled": FinishReason.CANCELLED,
}


class _Live:
    """A request in LLM. `made` counts the tokens passed on, by sequence; `ended` the sequences that have ended."""

    __slots__ = ("cancelled", "ended", "made", "output", "request", "stops")

    def __init__(self, request: EngineRequest, stops: Stops) -> None:
        self.request = request
        self.stops = stops
        self.output: Any = None
        self.cancelled = False
        self.made: dict[int, int] = {}
        self.ended: set[int] = set()


class LlmEngine:
    """See the module's text; the contract is `engines.base.Engine`."""

    def __init__(
        self,
        folder: Path,
        config: Mapping[str, Any],
        options: TensorRtLlmOptions,
        installed: Installed,
        max_running: int,
        stop_tokens: tuple[int, ...],
    ) -> None:
        # Several greedy answers to one prompt are equal, but no mistake; LLM refuses them unless told otherwise.
        os.environ.setdefault("TLLM_ALLOW_N_GREEDY_DECODING", "1")
        self._api = importlib.import_module("tensorrt_llm.llmapi")
        self._lora_dir = Path(options.lora_dir) if options.lora_dir else None
        self._adapters: dict[str, Any] = {}
        old_sampler = installed.executor is not None  # releases that still had engines: penalties need TRTLLMSampler
        self._llm = load_llm(folder, options, installed, max_running or DEFAULT_MAX_RUNNING)
        self._salts = "cache_salt" in inspect.signature(self._llm.generate_async).parameters
        self.info = EngineInfo(
            name="tensorrt_llm",
            version=installed.version,
            vocab_size=number_of(config, "vocab_size"),
            max_seq_len=self._context(options, config),
            max_running=max_running or DEFAULT_MAX_RUNNING,
            block_size=32,
            blocks_total=0,
            stop_token_ids=stop_tokens,
            capabilities=self._capabilities(options, old_sampler),
            max_beam_width=options.max_beam_width,
        )
        self._live: dict[int, _Live] = {}
        self._arrived: queue.SimpleQueue[tuple[int, Any]] = queue.SimpleQueue()
        self._stats = EngineStats()
        self._asked_stats = 0.0
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="inflight-trtllm-loop", daemon=True)
        self._thread.start()

    def _context(self, options: TensorRtLlmOptions, config: Mapping[str, Any]) -> int:
        """Prompt plus output: what LLM settled on, where it says so, else the checkpoint's."""
        known = getattr(getattr(self._llm, "args", None), "max_seq_len", None)
        context = known if isinstance(known, int) else number_of(config, "max_position_embeddings")
        return min(context, options.max_seq_len) if options.max_seq_len else context

    def _capabilities(self, options: TensorRtLlmOptions, old_sampler: bool) -> frozenset[Capability]:
        found = {
            Capability.STREAMING,
            Capability.LOGPROBS,
            Capability.TOP_LOGPROBS,
            Capability.PARALLEL_SAMPLING,
            Capability.NEVER_PREEMPTS,
        }
        wanted = {
            Capability.BEAM_SEARCH: options.max_beam_width > 1,
            Capability.PREFIX_CACHE: options.enable_kv_cache_reuse is not False,
            Capability.CACHE_SALT: self._salts,
            Capability.LORA: self._lora_dir is not None,
            Capability.SPECULATIVE: bool(options.speculative),
            Capability.MIN_P: not old_sampler,
        }
        found |= {capability for capability, has in wanted.items() if has}
        if options.batch_scheduler_policy != "guaranteed_no_evict":
            found.discard(Capability.NEVER_PREEMPTS)
        return frozenset(found | (GUIDED if options.guided_decoding_backend != "none" else frozenset()))

    # -- the seam ----------------------------------------------------------------------------------------------------

    def add(self, request: EngineRequest) -> None:
        self._check_beams(request.sampling.beam_width)
        live = _Live(request, split_stops(request.sampling, self.info.stop_token_ids))
        try:
            params = llm_sampling_params(self._api, request, live.stops)
            extra: dict[str, Any] = {}
            if request.lora_name is not None:
                extra["lora_request"] = self._adapter(request.lora_name)
            if request.cache_salt is not None:
                extra["cache_salt"] = request.cache_salt
            started = asyncio.run_coroutine_threadsafe(self._start(live, params, extra), self._loop)
            try:
                started.result(CALL_S)
            except Exception:
                live.cancelled = True  # LLM may have taken it, or take it yet
                started.cancel()
                self._loop.call_soon_threadsafe(self._take_back, live)
                raise
        except (ValueError, TypeError, RuntimeError) as error:
            self._check_alive()
            raise in_our_words(self.info.name, error, request) from None
        self._live[request.request_id] = live

    def _check_alive(self) -> None:
        """LLM shuts itself down when one of its workers has died, and from then on fails every request. Raises
        `EngineBroken`.
        """
        if getattr(getattr(self._llm, "_executor", None), "doing_shutdown", False):
            raise EngineBroken("tensorrt_llm.LLM has shut itself down")

    def _check_beams(self, width: int) -> None:
        """The PyTorch flow has one beam width for all requests; it would fail a request of another one late, in
        words of its own. Raises `EngineRefusal`.
        """
        if width != self.info.max_beam_width:
            raise EngineRefusal(
                f"is {width}, and on the PyTorch flow every request of this model searches with "
                f"{self.info.max_beam_width} beams (max_beam_width); set it to that, or use a model without it",
                "beam_width",
            )

    def cancel(self, request_id: int) -> None:
        live = self._live.get(request_id)
        if live is not None and not live.cancelled:
            live.cancelled = True
            self._loop.call_soon_threadsafe(live.output.abort)

    def step(self, timeout_s: float) -> list[EngineOutput]:
        outputs: list[EngineOutput] = []
        try:
            item = self._arrived.get(timeout=timeout_s)
            while True:
                try:
                    self._take(*item, outputs)
                except Exception as error:  # noqa: BLE001 — LLM's words for one request, which we fail to read
                    concerns_one_request(error, item[0])
                    self._give_up(item[0], outputs)
                item = self._arrived.get_nowait()
        except queue.Empty:
            pass
        return outputs

    def stats(self) -> EngineStats:
        now = time.monotonic()
        if now - self._asked_stats > STATS_INTERVAL_S:
            self._asked_stats = now
            self._ask_stats()
        if not self._live:
            return EngineStats(blocks_max=self._stats.blocks_max, reused_tokens_total=self._stats.reused_tokens_total)
        return self._stats

    def close(self) -> None:
        for live in self._live.values():
            self._loop.call_soon_threadsafe(live.output.abort)
        closing = threading.Thread(target=self._llm.shutdown, name="inflight-trtllm-shutdown", daemon=True)
        closing.start()
        closing.join(2.0)
        with contextlib.suppress(TimeoutError):
            asyncio.run_coroutine_threadsafe(_cancel_tasks(), self._loop).result(1.0)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(1.0)

    # -- on the loop's thread ----------------------------------------------------------------------------------------

    async def _start(self, live: _Live, params: Any, extra: Mapping[str, Any]) -> None:
        """Hand over; must run inside the loop, because LLM ties its output to the running one."""
        ids = list(live.request.token_ids)
        live.output = self._llm.generate_async(ids, sampling_params=params, streaming=True, **extra)
        if live.cancelled:
            self._take_back(live)
            return
        task = self._loop.create_task(self._follow(live))
        live.output._inflight_task = task  # as long as the request lives, so does its task

    @staticmethod
    def _take_back(live: _Live) -> None:
        if live.output is not None:
            live.output.abort()

    async def _follow(self, live: _Live) -> None:
        """Copy every state into the queue: LLM changes its outputs in place."""
        request_id = live.request.request_id
        try:
            async for state in live.output:
                self._arrived.put((request_id, _snapshot(state, live)))
            self._arrived.put((request_id, None))
        except Exception as error:  # noqa: BLE001 — whatever ended this request ends it for its client as well
            self._arrived.put((request_id, error))

    # -- on the owner's thread ---------------------------------------------------------------------------------------

    def _take(self, request_id: int, state: Any, outputs: list[EngineOutput]) -> None:
        live = self._live.get(request_id)
        if live is None:
            return
        if isinstance(state, Exception):
            self._check_alive()
            log.error("request %d failed in TensorRT-LLM: %s", request_id, first_line(state))
            self._end(live, outputs, error=first_line(state))
        elif state is None:
            self._end(live, outputs)
        else:
            for index, ids, finish, logprobs in state:
                self._advance(live, index, ids, finish, logprobs, outputs)

    def _advance(
        self, live: _Live, index: int, ids: list[int], finish: str | None, logprobs: Any, outputs: list[EngineOutput]
    ) -> None:
        """Pass on what a sequence has gained. `ids` and `logprobs` begin where the last look ended."""
        if index in live.ended or index >= live.request.sampling.num_sequences:
            return
        reason = _FINISH.get(finish) if finish is not None else None
        before = live.made.get(index, 0)
        live.made[index] = before + len(ids)
        stop = live.stops.first_watched(ids, before, live.request.sampling.min_tokens)
        if stop:
            ids, logprobs, reason = ids[:stop], logprobs and logprobs[:stop], FinishReason.STOP
        if not ids and reason is None:
            return
        chosen, top, ranks = _logprobs(ids, logprobs, live.request.sampling.logprobs)
        if reason is not None:
            live.ended.add(index)
        outputs.append(
            EngineOutput(live.request.request_id, index, ids, reason, logprobs=chosen, top_logprobs=top, ranks=ranks)
        )
        if len(live.ended) == live.request.sampling.num_sequences:
            if stop:
                self.cancel(live.request.request_id)
            del self._live[live.request.request_id]

    def _give_up(self, request_id: int, outputs: list[EngineOutput]) -> None:
        """End a request with an error that LLM knows nothing of."""
        live = self._live.get(request_id)
        if live is not None:
            self.cancel(request_id)
            self._end(live, outputs, error="what TensorRT-LLM said of it could not be read")

    def _end(self, live: _Live, outputs: list[EngineOutput], error: str | None = None) -> None:
        """Every sequence that has not ended does now."""
        del self._live[live.request.request_id]
        reason = FinishReason.CANCELLED if live.cancelled else FinishReason.STOP
        for index in range(live.request.sampling.num_sequences):
            if index not in live.ended:
                finish = None if error is not None else reason
                outputs.append(EngineOutput(live.request.request_id, index, [], finish, error=error))

    def _adapter(self, name: str) -> Any:
        """A LoRARequest. Raises `EngineRefusal` for an adapter that is not there."""
        if name not in self._adapters:
            folder = adapter_folder(self._lora_dir, name)
            request = importlib.import_module("tensorrt_llm.executor.request")
            self._adapters[name] = request.LoRARequest(name, len(self._adapters) + 1, str(folder))
        return self._adapters[name]

    def _ask_stats(self) -> None:
        """LLM's statistics have the JSON names of the C++ structures."""
        with contextlib.suppress(Exception):  # they are an extra: no request suffers for them
            found = self._llm.get_stats(timeout=0.001)
            if found:
                cache = found[-1].get("kvCacheStats") or {}
                self._stats = EngineStats(
                    blocks_used=int(cache.get("usedNumBlocks", 0)),
                    blocks_max=int(cache.get("maxNumBlocks", 0)),
                    reused_tokens_total=int(cache.get("reusedBlocks", 0)) * int(cache.get("tokensPerBlock", 32)),
                )


async def _cancel_tasks() -> None:
    """End what still runs in this loop."""
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def _snapshot(state: Any, live: _Live) -> list[tuple[int, list[int], str | None, Any]]:
    """(sequence, new ids, finish reason, their log-probabilities) of each sequence.

    Beams change their past, so that they are passed on when all is done.
    """
    found = []
    beams = live.request.sampling.beam_width > 1
    if beams and not state.finished:
        return []
    seen = live.output.__dict__.setdefault("_inflight_seen", {})
    for output in state.outputs:
        begin = seen.get(output.index, 0)
        ids = [int(token) for token in output.token_ids[begin:]]
        logprobs = list(output.logprobs[begin:]) if output.logprobs else None
        seen[output.index] = begin + len(ids)
        end = live.stops.end_id
        if output.finish_reason == "stop" and output.stop_reason is None and end is not None:
            known = output.token_ids[-1] if output.token_ids else None
            if known not in (end, *live.stops.words):  # the C++ sampler leaves the end token out; here it counts
                ids.append(end)
                if logprobs is not None or live.request.sampling.logprobs >= 0:
                    rest = sum(
                        _chosen(token, entry)
                        for token, entry in zip(output.token_ids, output.logprobs or (), strict=False)
                    )
                    logprobs = [*(logprobs or []), min(0.0, float(output.cumulative_logprob or 0.0) - rest)]
        found.append((output.index, ids, output.finish_reason, logprobs))
    return found


def _chosen(token: int, entry: Any) -> float:
    """The log-probability of the chosen token; an entry is {token: Logprob} or a plain number."""
    return float(entry) if isinstance(entry, (int, float)) else float(entry[token].logprob)


def _logprobs(
    ids: list[int], entries: Any, wanted: int
) -> tuple[list[float] | None, list[dict[int, float]] | None, list[int] | None]:
    """(of the chosen tokens, of the likeliest ones, ranks of the chosen); entries are {token: Logprob} or numbers."""
    if wanted < 0 or not entries:
        return None, None, None
    chosen, top, ranks = [], [], []
    for token, entry in zip(ids, entries, strict=False):
        chosen.append(_chosen(token, entry))
        if isinstance(entry, (int, float)):
            top.append({token: float(entry)})
            continue
        if entry[token].rank is not None:
            ranks.append(int(entry[token].rank))
        values = {int(other): float(value.logprob) for other, value in entry.items()}
        ranked = sorted(values.items(), key=lambda item: -item[1])
        top.append(dict(ranked[:wanted]))
    return chosen, top if wanted > 0 and top else None, ranks if len(ranks) == len(chosen) else None


def llm_arguments(options: TensorRtLlmOptions, api: Any, old_sampler: bool, max_running: int) -> dict[str, Any]:
    """Arguments of tensorrt_llm.LLM; `llm_arguments` of the options come last and win."""
    cache: dict[str, Any] = {
        "enable_block_reuse": options.enable_kv_cache_reuse is not False,
        "free_gpu_memory_fraction": options.kv_cache_free_gpu_mem_fraction,
        "dtype": options.kv_cache_dtype,
    }
    if options.max_tokens_in_paged_kv_cache is not None:
        cache["max_tokens"] = options.max_tokens_in_paged_kv_cache
    if options.kv_cache_host_memory_bytes is not None:
        cache["host_cache_size"] = options.kv_cache_host_memory_bytes
    arguments: dict[str, Any] = {
        "kv_cache_config": api.KvCacheConfig(**cache),
        "tensor_parallel_size": options.tensor_parallel_size,
        "pipeline_parallel_size": options.pipeline_parallel_size,
        "max_batch_size": options.max_batch_size or max_running,
        "max_beam_width": options.max_beam_width,
        "enable_chunked_prefill": options.enable_chunked_context,
        "enable_iter_perf_stats": True,
        "trust_remote_code": False,
    }
    if options.max_num_tokens:
        arguments["max_num_tokens"] = options.max_num_tokens
    if options.max_seq_len:
        arguments["max_seq_len"] = options.max_seq_len
    if options.guided_decoding_backend != "none":
        arguments["guided_decoding_backend"] = options.guided_decoding_backend
    if options.lora_dir:
        arguments["enable_lora"] = True
    if options.speculative == "ngram":
        arguments["speculative_config"] = api.NGramDecodingConfig(max_draft_len=options.num_draft_tokens)
    elif options.speculative == "eagle3":
        arguments["speculative_config"] = api.EagleDecodingConfig(
            max_draft_len=options.num_draft_tokens, speculative_model_dir=options.speculative_model_dir
        )
    if old_sampler and not options.speculative:
        arguments["sampler_type"] = "TRTLLMSampler"  # renamed from enable_trtllm_sampler; `_load` tries both
    return {**arguments, **options.llm_arguments}


def load_llm(folder: Path, options: TensorRtLlmOptions, installed: Installed, max_running: int) -> Any:
    """tensorrt_llm.LLM of a checkpoint. Raises `LoadError` with what it says."""
    old_sampler = installed.executor is not None
    api = importlib.import_module("tensorrt_llm.llmapi")
    return _load(installed.llm, folder, llm_arguments(options, api, old_sampler, max_running), old_sampler)


def _load(llm: Any, folder: Path, arguments: dict[str, Any], old_sampler: bool) -> Any:
    """Construct LLM. Raises `LoadError` with what it says."""
    try:
        return llm(str(folder), tokenizer=str(folder), **arguments)
    except ValueError as error:
        if old_sampler and "sampler_type" in str(error) and "sampler_type" in arguments:
            older = {name: value for name, value in arguments.items() if name != "sampler_type"}
            return _load(llm, folder, {**older, "enable_trtllm_sampler": True}, False)
        raise LoadError(f"tensorrt_llm.LLM refuses its arguments ({first_line(error)}); see engine_options.") from None
    except Exception as error:  # noqa: BLE001 — PyTorch and CUDA raise of all kinds
        message = first_line(error)
        advice = "see the log above"
        if "out of memory" in message.lower():
            advice = "free GPU memory, lower kv_cache_free_gpu_mem_fraction, or raise tensor_parallel_size"
        raise LoadError(f"tensorrt_llm.LLM cannot load this checkpoint ({message}); {advice}.") from None


def number_of(config: Mapping[str, Any], name: str) -> int:
    """A size of the checkpoint's config.json; some families keep it in text_config. Raises `LoadError`."""
    value = config.get(name) or (config.get("text_config") or {}).get(name)
    if not isinstance(value, int):
        raise LoadError(f"config.json of the checkpoint has no {name}; it cannot be served.")
    return value
