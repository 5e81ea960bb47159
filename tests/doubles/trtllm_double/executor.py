"""The simulated executor: in-flight batching over a pool of KV blocks, in a thread of its own, as the real one."""

from __future__ import annotations

import ctypes
import datetime
import os
import signal
import threading
import time
import traceback
from collections import deque
from pathlib import Path
from typing import Any

from trtllm_double import rules, tokens
from trtllm_double.live import NAMES, LiveRequest
from trtllm_double.loading import load
from trtllm_double.options import options
from trtllm_double.ranks import RANKS
from trtllm_double.surface import SURFACE, signature

NAMES.update(SURFACE.names)


class ExecutorDouble:
    """See `tensorrt_llm.bindings.executor.Executor`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        model_path, _, config = SIGNATURE(args, kwargs)
        self._options = options(Path(model_path))
        if self._options.oom_at_load:
            raise RuntimeError("[TensorRT-LLM][ERROR] CUDA runtime error in cudaMalloc: out of memory")
        if self._options.load_ms:
            ctypes.PyDLL(None).usleep(int(self._options.load_ms * 1000))  # the constructor holds the interpreter lock
        self._config, self._folder = config, Path(model_path)
        self._loaded = load(self._folder, config, self._options)
        self._vocabulary = int(self._loaded.config["pretrained_config"]["vocab_size"])
        self._limits = self._loaded.limits
        self._batch = min(config.max_batch_size or self._limits["max_batch_size"], self._limits["max_batch_size"])
        self._max_tokens = self._loaded.max_num_tokens
        pool = config.kv_cache_config.max_tokens
        self._pool = min(self._options.blocks, pool // self._options.tokens_per_block) if pool else self._options.blocks
        guided = config.guided_decoding_config
        self._tokenizer = guided.tokenizer_str if guided is not None else None
        self._changed = threading.Condition()
        self._ids = iter(range(1, 1 << 62))
        self._waiting: list[LiveRequest] = []
        self._running: list[LiveRequest] = []
        self._ready: deque[Any] = deque()
        self._terminated: set[int] = set()
        self._stats: deque[Any] = deque(maxlen=config.iter_stats_max_iterations or 1)
        prefetch = config.peft_cache_config.lora_prefetch_dir if config.peft_cache_config is not None else None
        self._adapters: dict[int, int] = rules.prefetched(Path(prefetch)) if prefetch else {}
        self._prefixes: dict[int, int] = {}  # hash of a prefix of whole blocks → 1
        self._reused = self._iteration = self._enqueued = self._made = 0
        self._completed = self._thrown = 0
        self._stopping = self._broken = False
        RANKS.meet()
        self._leader = RANKS.rank == 0
        if self._leader:
            self._thread = threading.Thread(target=self._run, name="executor-double", daemon=True)
            self._thread.start()

    # -- the methods of the bindings ---------------------------------------------------------------------------------

    def can_enqueue_requests(self) -> bool:
        """True for the leader."""
        return self._leader and not self._stopping

    def enqueue_request(self, request: Any) -> int:
        """Returns the id. Raises `RuntimeError` for a request beyond the engine's limits."""
        if not isinstance(request, NAMES["Request"]):
            raise TypeError("enqueue_request(): incompatible function arguments.")
        if not self._leader or self._stopping:
            raise RuntimeError("[TensorRT-LLM][ERROR] Assertion failed: requests cannot be enqueued here")
        self._enqueued += 1
        if self._enqueued == self._options.enqueue_raises_at:
            raise RuntimeError("[TensorRT-LLM][ERROR] Assertion failed: the stand-in was told to raise")
        problem = self._problem(request)
        adapter = 0
        if problem is None:
            problem, adapter = self._adapter(request)
        if self._enqueued == self._options.error_at:
            problem = self._options.error_words
        if problem is not None and self._options.errors == "raise" and self._enqueued != self._options.error_at:
            raise RuntimeError(f"[TensorRT-LLM][ERROR] Assertion failed: {problem}")
        request_id = next(self._ids)
        sampling = request.sampling_config
        for _ in range((sampling.num_return_sequences or 1) - 1 if sampling.beam_width == 1 else 0):
            next(self._ids)  # of its other sequences: executorImpl.cpp at b35ac1b6, enqueueRequests
        with self._changed:
            if problem is not None:
                # A cache miss comes as it is (LoraExpectedException there), all else with these words in front.
                prefix = "" if "not found in cache" in problem else "Encountered an error when fetching new request: "
                self._ready.append(NAMES["Response"](request_id, prefix + problem))
            else:
                live = LiveRequest(request_id, request, self._vocabulary, self._tokenizer, adapter)
                self._waiting.append(self._cut(live))
            self._changed.notify_all()
        return request_id

    def enqueue_requests(self, requests: list[Any]) -> list[int]:
        """One bad request fails them all, as the real one does."""
        return [self.enqueue_request(request) for request in requests]

    def await_responses(self, *args: Any, **kwargs: Any) -> Any:
        """(timeout) → responses; (id, timeout) → its responses; (ids, timeout) → lists.

        An int is an id, never a time. Waits for ever without a timeout, but for an id that has had everything: an error
        answers that (executorImpl.cpp at b35ac1b6, awaitResponses).
        """
        names = (
            ("id", "timeout")
            if args and not isinstance(args[0], (datetime.timedelta, float, type(None)))
            else ("timeout",)
        )
        values = {**dict(zip(names, args, strict=False)), **kwargs}
        wanted, timeout = values.get("id", values.get("ids")), values.get("timeout")
        if timeout is not None and not isinstance(timeout, (datetime.timedelta, float)):
            raise TypeError("await_responses(): incompatible function arguments.")
        if isinstance(wanted, list):
            return [self.await_responses(each, timeout) for each in wanted]
        until = None
        if timeout is not None:
            until = time.monotonic() + (timeout if isinstance(timeout, float) else timeout.total_seconds())
        with self._changed:
            while True:
                if self._broken or self._stopping:
                    raise RuntimeError("[TensorRT-LLM][ERROR] Assertion failed: Shutdown called")
                if wanted in self._terminated:
                    said = f"ReqId {wanted} has already been processed and was terminated."
                    return [NAMES["Response"](wanted, said)]
                found = [response for response in self._ready if wanted in (None, response.request_id)]
                if found:
                    self._ready = deque(item for item in self._ready if item not in found)
                    over = (item for item in found if item.has_error() or item.result.is_final)
                    self._terminated.update(item.request_id for item in over)
                    return found
                left = None if until is None else until - time.monotonic()
                if left is not None and left <= 0:
                    return []
                self._changed.wait(left)

    def get_num_responses_ready(self, id: int | None = None) -> int:
        """Responses that wait to be taken."""
        with self._changed:
            return sum(1 for response in self._ready if id in (None, response.request_id))

    def cancel_request(self, id: int) -> None:
        """Asynchronous; the final response still follows. Unknown ids are ignored."""
        with self._changed:
            for live in [*self._waiting, *self._running]:
                if live.id == id:
                    live.cancelled = True
            self._changed.notify_all()

    def get_latest_iteration_stats(self) -> list[Any]:
        """Drains."""
        with self._changed:
            found = list(self._stats) if self._config.iter_stats_max_iterations else []
            self._stats.clear()
            return found

    def get_latest_debug_tensors(self) -> list[Any]:
        """Always empty: debugging is off."""
        return []

    def get_kv_cache_event_manager(self) -> None:
        """None: events are off."""

    def get_latest_request_stats(self) -> list[Any]:
        """Always empty: request statistics are off."""
        return []

    def shutdown(self) -> None:
        """Blocks until every request has ended; of another rank than 0: until the leader shuts down."""
        if not self._leader:
            RANKS.follow()
            return
        with self._changed:
            if self._stopping:
                return
            self._stopping = True
            self._changed.notify_all()
        self._thread.join()
        RANKS.release()

    def __enter__(self) -> ExecutorDouble:
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()

    # -- checks ------------------------------------------------------------------------------------------------------

    def _problem(self, request: Any) -> str | None:
        """Why this engine cannot take the request."""
        length, limits, sampling = len(request.input_token_ids), self._limits, request.sampling_config
        longest = self._loaded.max_input_len
        if length > longest:  # llmRequest.cpp at 119c6e60, validate
            return (
                f"Prompt length ({length}) exceeds maximum input length ({longest}). Set log level to info and check "
                "TRTGptModel logs for how maximum input length is set"
            )
        if request.end_id is not None and not -1 <= request.end_id < self._vocabulary:
            return f"EndId ({request.end_id}) is not within acceptable range [-1, {self._vocabulary})."
        drafts = request.external_draft_tokens_config
        if drafts is not None and len(drafts.tokens) > self._loaded.draft_len:
            return f"Draft tokens length ({len(drafts.tokens)}) exceeds maximum draft tokens length"
        if sampling.beam_width > self._config.max_beam_width:
            return (
                f"Requested beam width {sampling.beam_width} is larger than configured ({self._config.max_beam_width})."
            )
        evicts = self._config.scheduler_config.capacity_scheduler_policy.name != "GUARANTEED_NO_EVICT"
        begun_anew = request.streaming and evicts and not self._loaded.chunked
        if begun_anew and length + request.max_tokens - 1 > longest:
            return "Request sequence length is potentially greater than max input length."
        output = request.output_config
        if output.return_context_logits and not limits.get("gather_context_logits"):
            return "Return context logit need to build engine with gather_context_logits"
        if output.return_generation_logits and not self._config.gather_generation_logits:
            return "To return generation logits, gather_generation_logits must be enabled in ExecutorConfig"
        if not 0.0 <= request.priority <= 1.0:
            return "priority must be between 0 and 1"
        if request.max_tokens < 1:
            return "max_tokens must be at least 1"
        if any(not 0 <= token < self._vocabulary for token in request.input_token_ids):
            return "input token ids are out of range"
        queued = self._config.max_queue_size
        if queued and len(self._waiting) >= queued:
            return "Maximum queue size reached, rejecting the request."
        return None

    def _adapter(self, request: Any) -> tuple[str | None, int]:
        """Find or take in the request's adapter; the least recently used one leaves when the slots are full."""
        lora = request.lora_config
        if lora is None:
            return None, 0
        if lora.weights is None and lora.task_id not in self._adapters:
            return f"LoRA task {lora.task_id} not found in cache. Please send LoRA weights with request", 0
        if lora.weights is not None:
            problem = rules.adapter_problem(lora.weights, lora.config, self._loaded.config)
            if problem is not None:
                return problem, 0
        if lora.task_id in self._adapters:  # weights of a number that it knows are passed over: loraCache.cpp, put
            self._adapters[lora.task_id] = self._adapters.pop(lora.task_id)
        else:
            self._adapters[lora.task_id] = rules.fingerprint(lora.weights) & tokens.MASK
            while len(self._adapters) > self._options.lora_slots:
                del self._adapters[next(iter(self._adapters))]
        return None, self._adapters[lora.task_id]

    # -- the loop ----------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            self._loop()
        except Exception:  # noqa: BLE001 — as the real one: its callers hear of it, they do not wait for ever
            traceback.print_exc()
            with self._changed:
                self._broken = True
                self._changed.notify_all()

    def _loop(self) -> None:
        while True:
            with self._changed:
                while not (self._waiting or self._running):
                    if self._stopping:
                        return
                    self._changed.wait(0.2)
                begin = time.monotonic()
                self._end_cancelled()
                self._schedule()
                made = 0 if self._throws() else self._iterate()
                self._record(time.monotonic() - begin)
                self._changed.notify_all()
            self._faults(made)
            time.sleep(self._options.step_ms / 1000)

    def _cut(self, live: LiveRequest) -> LiveRequest:
        """Fewer new tokens than asked for, where prompt, answer and a step's drafts do not fit: llmRequest.cpp at
        119c6e60, validate, with a warning in the log and no word to the client.
        """
        drafts = live.request.external_draft_tokens_config
        step = len(drafts.tokens) if drafts is not None else self._loaded.draft_len
        decoding = self._config.decoding_config
        mode = decoding.decoding_mode.name if decoding is not None and decoding.decoding_mode is not None else "Auto"
        top_k = live.request.sampling_config.top_k or 0
        # Each layer leaves out what is the other's, and nothing is written then: samplingLayer.cpp (2750191263).
        live.unsampled = (mode == "TopK" and top_k == 0) or (mode == "TopP" and top_k > 0)
        live.max_tokens = min(live.max_tokens, self._limits["max_seq_len"] - live.prefill_left - step)
        return live

    def _throws(self) -> bool:
        """An iteration that throws ends all active requests, each sequence under its own id, and the loop goes on:
        executorImpl.cpp at b35ac1b6, forwardAsync and terminateActiveRequests.
        """
        words = self._loaded.throws
        if words is None:
            if not self._options.break_at or self._made < self._options.break_at:
                return False
            if self._options.break_times and self._thrown >= self._options.break_times:
                return False
            words = self._options.break_words
        self._thrown += 1
        words = f"Encountered an error in forwardAsync function: {words}"
        for live in self._running:
            for sequence in live.sequences if live.beam_width == 1 else live.sequences[:1]:
                if sequence.finish is None:
                    self._ready.append(NAMES["Response"](live.id + sequence.index, words))
        self._running = []
        return True

    def _end_cancelled(self) -> None:
        for live in [*self._waiting, *self._running]:
            if live.cancelled:
                live.end("CANCELLED")
                self._deliver(live)
        self._waiting = [live for live in self._waiting if not live.cancelled]

    def _schedule(self) -> None:
        no_evict = self._config.scheduler_config.capacity_scheduler_policy.name == "GUARANTEED_NO_EVICT"
        size = self._options.tokens_per_block
        self._waiting.sort(key=lambda live: -live.priority)
        while self._waiting:
            live = self._waiting[0]
            if self._running and live.beam_width != self._running[0].beam_width:
                return  # one beam width at a time; the head of the queue holds up those behind it
            places = sum(len(other.sequences) for other in self._running) + len(live.sequences)
            used = sum(other.blocks(size, no_evict) for other in self._running)
            if self._running and (places > self._batch or used + live.blocks(size, no_evict) > self._pool):
                return
            self._waiting.pop(0)
            self._reuse(live, size)
            live.scheduled_at = live.scheduled_at or time.monotonic()
            self._running.append(live)

    def _reuse(self, live: LiveRequest, size: int) -> None:
        """Count the whole blocks of the prompt that an earlier one with the same salt left behind."""
        if not self._loaded.reuse:
            return
        salt = getattr(live.request, "cache_salt_id", None) or 0  # not in every release
        state, matching, prompt = salt, True, live.request.input_token_ids
        for place, token in enumerate(prompt[:-1], 1):
            state = tokens.advance(state, token)
            if place % size == 0:
                matching = matching and state in self._prefixes
                live.reused_blocks += matching
                self._prefixes[state] = 1
        self._reused += live.reused_blocks

    def _iterate(self) -> int:
        budget, made = self._max_tokens, 0
        for live in list(self._running):
            if live.prefill_left:
                spent = min(budget, live.prefill_left)
                live.prefill_left -= spent
                budget -= spent
            if not live.prefill_left:
                made += live.decode(self._options.eos_every)
                self._deliver(live)
        return made

    def _deliver(self, live: LiveRequest) -> None:
        self._ready.extend(live.responses())
        if all(sequence.finish for sequence in live.sequences):
            self._completed += 1
            if live in self._running:
                self._running.remove(live)

    def _record(self, seconds: float) -> None:
        self._iteration += 1
        stats = NAMES["IterationStats"]()
        stats.timestamp = time.strftime("%m-%d-%Y %H:%M:%S.000000")
        stats.iter, stats.iter_latency_ms = self._iteration, seconds * 1000 + self._options.step_ms
        stats.num_active_requests, stats.num_queued_requests = len(self._running), len(self._waiting)
        stats.num_completed_requests, stats.max_num_active_requests = self._completed, self._batch
        cache = stats.kv_cache_stats = NAMES["KvCacheStats"]()
        used = sum(live.blocks(self._options.tokens_per_block, False) for live in self._running)
        cache.max_num_blocks, cache.used_num_blocks, cache.free_num_blocks = self._pool, used, self._pool - used
        cache.tokens_per_block, cache.reused_blocks = self._options.tokens_per_block, self._reused
        self._stats.append(stats)

    def _faults(self, made: int) -> None:
        before, self._made = self._made, self._made + made
        if before < self._options.die_at <= self._made:
            os.kill(os.getpid(), signal.SIGKILL)
        if before < self._options.stall_at <= self._made:
            time.sleep(1e6)


_EXECUTOR = SURFACE.table["classes"]["Executor"]
ExecutorDouble.__init__.__doc__ = "\n".join(signature(init) for init in _EXECUTOR["init"])


def SIGNATURE(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any, Any]:
    """The decoder-only constructor, with the bindings' strictness."""
    names = ("model_path", "model_type", "executor_config")
    values = {**dict(zip(names, args, strict=False)), **kwargs}
    fitting = (
        set(values) == set(names)
        and isinstance(values["model_path"], (str, os.PathLike))
        and isinstance(values["model_type"], NAMES["ModelType"])
        and isinstance(values["executor_config"], NAMES["ExecutorConfig"])
    )
    if not fitting:
        raise TypeError("__init__(): incompatible function arguments.")
    return values["model_path"], values["model_type"], values["executor_config"]
