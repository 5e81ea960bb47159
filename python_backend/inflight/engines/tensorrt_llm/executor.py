"""Compiled TensorRT-LLM engines through `tensorrt_llm.bindings.executor`, behind the engine seam.

TensorRT-LLM batches in flight and reserves KV blocks by itself, in threads of its own; `step` takes what it has ready.
"""

from __future__ import annotations

import contextlib
import datetime
import logging
import time
from typing import Any

import msgspec

from inflight.engines.base import (
    EngineBroken,
    EngineInfo,
    EngineOutput,
    EngineRefusal,
    EngineRequest,
    EngineStats,
    FinishReason,
)
from inflight.engines.faults import concerns_one_request, sparingly
from inflight.engines.refusals import in_our_words, refused_late
from inflight.engines.tensorrt_llm.iterations import IN_A_FAILED_ITERATION, ITERATION_FAILED, Iterations, shut_down
from inflight.engines.tensorrt_llm.limits import PromptLimit
from inflight.engines.tensorrt_llm.lora import MISSING, Adapters
from inflight.engines.tensorrt_llm.sampling import Stops, executor_request, split_stops

log = logging.getLogger("inflight.engine_worker")

STATS_INTERVAL_S = 0.1
CLOSE_S = 2.0

MOST_TOP_K = 1024  # it clips a larger one without a word (samplingTopKKernels.h, stored copy 264519637)

_FINISH = {
    "END_ID": FinishReason.STOP,
    "STOP_WORDS": FinishReason.STOP,
    "LENGTH": FinishReason.LENGTH,
    "TIMED_OUT": FinishReason.DEADLINE,
    "CANCELLED": FinishReason.CANCELLED,
}


class _Live:
    """A request between its acceptance and TensorRT-LLM's final response."""

    __slots__ = ("cancelled", "draft", "ended", "made", "own_id", "request", "resent", "stops")

    def __init__(self, request: EngineRequest, stops: Stops, draft: list[int] | None) -> None:
        self.request = request
        self.draft = draft
        self.stops = stops
        self.own_id = 0
        self.cancelled = False
        self.resent = False  # its adapter's weights were sent again
        self.ended: set[int] = set()
        self.made: dict[int, int] = {}  # sequence → tokens so far

    @property
    def sequences(self) -> int:
        return self.request.sampling.num_sequences

    @property
    def done(self) -> bool:
        return len(self.ended) == self.sequences


class ExecutorEngine:
    """See the module's text; the contract is `engines.base.Engine`.

    `retention` is a KvCacheRetentionConfig for every request, or None. `restarts`: the scheduler may evict a sequence
    and begin it anew with its answer in its prompt, which has to fit the longest prompt. `stall_timeout_s`: with work
    under way, and neither a response nor an iteration for this long, `step` raises; infinity where iterations are not
    told.
    """

    def __init__(
        self,
        trtllm: Any,
        executor: Any,
        info: EngineInfo,
        *,
        prompt_limit: PromptLimit,
        tokens_per_block: int,
        adapters: Adapters | None = None,
        retention: Any = None,
        restarts: bool = False,
        stall_timeout_s: float = 30.0,
    ) -> None:
        self.info = info
        self.bindings = trtllm
        self._executor = executor
        self._prompt_limit = prompt_limit
        self._tokens_per_block = tokens_per_block
        self._adapters = adapters
        self._retention = retention
        self._restarts = restarts
        self.stall_timeout_s = stall_timeout_s
        self._live: dict[int, _Live] = {}  # by TensorRT-LLM's id
        self._own_id: dict[int, int] = {}  # ours → TensorRT-LLM's, while any sequence goes on
        self._of_child: dict[int, int] = {}  # ids of sequences after the first, which only errors bear → the request's
        self._iterations = Iterations()
        self._stats = EngineStats(reused_tokens_total=0, draft_tokens_total=0)
        self._asked_stats = self._progress = time.monotonic()
        self._draft_tokens = self._accepted_tokens = 0

    # -- the seam ----------------------------------------------------------------------------------------------------

    def add(self, request: EngineRequest) -> None:
        self.check(request)
        self.add_round(request, None)

    @property
    def max_input_len(self) -> int:
        """Tokens of the longest prompt that TensorRT-LLM holds, which may be more than a request may have."""
        return self._prompt_limit.held

    def check(self, request: EngineRequest) -> None:
        """Raises `EngineRefusal` for what this engine cannot take, before TensorRT-LLM sees it."""
        if len(request.token_ids) > self._prompt_limit.tokens:
            raise EngineRefusal(
                f"has {len(request.token_ids)} tokens and the engine takes {self._prompt_limit.tokens} at most in one "
                f"prompt ({self._prompt_limit.reason}); shorten it",
                "input_ids",
            )
        if MOST_TOP_K < request.sampling.top_k < self.info.vocab_size:
            raise EngineRefusal(
                f"is {request.sampling.top_k} and this engine chooses among {MOST_TOP_K} tokens at most; lower it, or "
                "leave it out for all of them",
                "top_k",
            )
        total = len(request.token_ids) + request.sampling.max_tokens - 1
        if self._restarts and request.sampling.beam_width == 1 and total > self.max_input_len:
            raise EngineRefusal(
                f"is {request.sampling.max_tokens}, and with batch_scheduler_policy max_utilization prompt and answer "
                f"together may have {self.max_input_len + 1} tokens at most; lower it, or set the model parameter "
                "enable_chunked_context",
                "max_tokens",
            )

    def add_round(self, request: EngineRequest, draft: list[int] | None) -> None:
        """Take a request whose first tokens may be known from a draft. Raises `EngineRefusal`."""
        if request.sampling.top_k >= self.info.vocab_size:  # all tokens, for which the library says 0
            sampling = msgspec.structs.replace(request.sampling, top_k=0)
            request = msgspec.structs.replace(request, sampling=sampling)
        live = _Live(request, split_stops(request.sampling, self.info.stop_token_ids), draft)
        if not self._live:
            self._progress = time.monotonic()  # an idle engine has not been standing still
        self._enqueue(live)
        self._own_id[request.request_id] = live.own_id

    def cancel(self, request_id: int) -> None:
        live = self._live.get(self._own_id.get(request_id, 0))
        if live is not None and not live.cancelled:
            live.cancelled = True
            self._executor.cancel_request(live.own_id)

    def step(self, timeout_s: float) -> list[EngineOutput]:
        if not self._live:
            return []
        # Always with a timeout, and a timedelta: a number would be taken for a request's id.
        responses = self._executor.await_responses(timeout=datetime.timedelta(seconds=timeout_s))
        outputs: list[EngineOutput] = []
        self._iterations.see(responses)
        for response in responses:
            live = self._live.get(self._of_child.get(response.request_id, response.request_id))
            if live is None:
                continue
            try:
                self._take(live, response, outputs)
            except Exception as error:  # noqa: BLE001 — TensorRT-LLM's words for one request, which we fail to read
                concerns_one_request(error, live.request.request_id)
                self._give_up(live, outputs)
        now = time.monotonic()
        if responses:
            self._progress = now
        if now - self._asked_stats >= STATS_INTERVAL_S or not self._live:  # nobody will ask once it is idle
            self._ask_stats(now)
        if self._live and now - self._progress > self.stall_timeout_s:
            raise RuntimeError(f"TensorRT-LLM made no progress for {self.stall_timeout_s:g} s with requests under way")
        return outputs

    def stats(self) -> EngineStats:
        return self._stats if self._own_id else _idle(self._stats)

    def close(self) -> None:
        """Cancel what is left and shut down."""
        for live in self._live.values():
            with contextlib.suppress(RuntimeError):
                self._executor.cancel_request(live.own_id)
        with contextlib.suppress(RuntimeError):
            deadline = time.monotonic() + CLOSE_S / 2
            while self._live and time.monotonic() < deadline:
                self.step(0.02)
        shut_down(self._executor, CLOSE_S)

    # -- requests ----------------------------------------------------------------------------------------------------

    def _enqueue(self, live: _Live) -> None:
        """Hand over. Raises `EngineRefusal` with what TensorRT-LLM says."""
        name = live.request.lora_name
        if name is not None and self._adapters is None:
            raise EngineRefusal("is not supported: this model has no lora_dir", "lora_name")
        try:
            lora = self._adapters.config(name) if name is not None and self._adapters is not None else None
            made = executor_request(self.bindings, live.request, live.stops, lora, self._retention, live.draft)
            live.own_id = self._executor.enqueue_request(made)
        except (RuntimeError, TypeError, ValueError) as error:
            if name is not None and self._adapters is not None and MISSING in str(error) and not live.resent:
                live.resent = True
                self._adapters.forget(name)
                self._enqueue(live)
                return
            if isinstance(error, RuntimeError) and not self._executor.can_enqueue_requests():
                raise EngineBroken("TensorRT-LLM takes no requests any more") from error
            raise in_our_words(self.info.name, error, live.request) from None
        self._live[live.own_id] = live
        if live.request.sampling.beam_width == 1:  # it numbers what it makes of a request one after the other
            self._of_child.update(dict.fromkeys(_children(live), live.own_id))
        if name is not None and self._adapters is not None:
            self._adapters.taken(name)

    def _take(self, live: _Live, response: Any, outputs: list[EngineOutput]) -> None:
        if response.has_error():
            self._failed(live, str(response.error_msg), outputs)
            return
        result = response.result
        if live.request.perf_metrics and result.is_final:
            self._tell_reuse(live, result, outputs)
        if live.request.sampling.beam_width > 1:
            if result.is_final:
                self._beams(live, result, outputs)
        else:
            self._increment(live, result, outputs)
        if result.is_final:
            for index in range(live.sequences):
                reason = FinishReason.CANCELLED if live.cancelled else FinishReason.STOP
                self._finish(live, index, reason, [], None, outputs)
            self._forget(live)

    @staticmethod
    def _tell_reuse(live: _Live, result: Any, outputs: list[EngineOutput]) -> None:
        """How much of the prompt was in the cache, before the sequence's end."""
        metrics = result.request_perf_metrics
        if metrics is not None and 0 not in live.ended:
            reused = int(metrics.kv_cache_metrics.num_reused_blocks)
            outputs.append(EngineOutput(live.request.request_id, 0, [], reused_blocks=reused))

    def _increment(self, live: _Live, result: Any, outputs: list[EngineOutput]) -> None:
        """One sequence's new tokens. Its log-probabilities are all so far: the new ones are the last."""
        index = result.sequence_index
        if index in live.ended or not 0 <= index < live.sequences:
            return
        ids: list[int] = list(result.output_token_ids[0])
        logprobs: list[float] | None = None
        if live.request.sampling.logprobs >= 0:
            logprobs = list(result.log_probs[0][-len(ids) :]) if ids and result.log_probs else []
        before = live.made.get(index, 0)
        live.made[index] = before + len(ids)
        hit = live.stops.first_watched(ids, before, live.request.sampling.min_tokens)
        if hit:
            self._finish(live, index, FinishReason.STOP, ids[:hit], logprobs and logprobs[:hit], outputs)
            if live.done and not live.cancelled:
                live.cancelled = True
                self._executor.cancel_request(live.own_id)
            return
        if result.is_sequence_final or (result.is_final and live.sequences == 1):
            reason = self._reason(live, result.finish_reasons, 0, live.made[index])
            if result.finish_reasons and result.finish_reasons[0].name == "END_ID":
                self._add_end_token(live, result, ids, logprobs)
            self._finish(live, index, reason, ids, logprobs, outputs)
        elif ids:
            outputs.append(EngineOutput(live.request.request_id, index, ids, logprobs=logprobs))

    @staticmethod
    def _add_end_token(live: _Live, result: Any, ids: list[int], logprobs: list[float] | None) -> None:
        """TensorRT-LLM leaves the end token out of its output; here it counts, as on every engine. Its log-probability
        is what the sum has more than the tokens.
        """
        end = live.stops.end_id
        if end is None or (ids and ids[-1] == end):
            return
        ids.append(end)
        live.made[result.sequence_index] += 1
        if logprobs is not None and result.cum_log_probs and result.log_probs is not None:
            logprobs.append(min(0.0, float(result.cum_log_probs[0]) - float(sum(result.log_probs[0]))))

    def _beams(self, live: _Live, result: Any, outputs: list[EngineOutput]) -> None:
        """Beams come once, whole, best first."""
        wants = live.request.sampling.logprobs >= 0
        for index, ids in enumerate(result.output_token_ids[: live.sequences]):
            logprobs = list(result.log_probs[index])[: len(ids)] if wants and result.log_probs else None
            reason = self._reason(live, result.finish_reasons, index, len(ids))
            hit = live.stops.first_watched(ids, 0, live.request.sampling.min_tokens)
            if hit:
                ids, logprobs, reason = ids[:hit], logprobs and logprobs[:hit], FinishReason.STOP
            self._finish(live, index, reason, list(ids), logprobs, outputs)

    @staticmethod
    def _reason(live: _Live, reasons: Any, index: int, made: int) -> FinishReason:
        """TensorRT-LLM leaves reasons out, or NOT_FINISHED, in some modes (beams): then the length decides."""
        name = reasons[index].name if reasons and index < len(reasons) else "NOT_FINISHED"
        if name in _FINISH:
            return _FINISH[name]
        if live.cancelled:
            return FinishReason.CANCELLED
        return FinishReason.LENGTH if made >= live.request.sampling.max_tokens else FinishReason.STOP

    def _finish(
        self,
        live: _Live,
        index: int,
        reason: FinishReason,
        ids: list[int],
        logprobs: list[float] | None,
        outputs: list[EngineOutput],
    ) -> None:
        """The one terminal output of a sequence; does nothing when it has had it."""
        if index in live.ended:
            return
        live.ended.add(index)
        outputs.append(EngineOutput(live.request.request_id, index, ids, reason, logprobs=logprobs))
        if live.done:
            self._own_id.pop(live.request.request_id, None)

    def _failed(self, live: _Live, message: str, outputs: list[EngineOutput]) -> None:
        """An error in place of a result. An evicted adapter is sent again, once; anything else ends the request: what
        fails before its first token is a request that TensorRT-LLM does not take, for which it has no other way to say.
        """
        self._forget(live)
        refusal: EngineRefusal | None = None
        name = live.request.lora_name
        if (
            name is not None
            and self._adapters is not None
            and MISSING in message
            and not (live.resent or live.cancelled)
        ):
            live.resent = True
            self._adapters.forget(name)
            try:
                self._enqueue(live)
            except EngineRefusal as refused:
                refusal = refused
            else:
                self._own_id[live.request.request_id] = live.own_id
                return
        failed = message.startswith(ITERATION_FAILED)
        if refusal is None and not failed and not live.made and not live.ended:
            refusal = in_our_words(self.info.name, RuntimeError(message), live.request)
        if refusal is None:
            log.error("request %d failed in TensorRT-LLM: %s", live.request.request_id, message[:1000])
        broken = "TensorRT-LLM ended it with an error, which stands above; send it again"
        self._end_with(IN_A_FAILED_ITERATION if failed else broken, live, outputs, refusal)

    def _forget(self, live: _Live) -> bool:
        """Whether it was known until now."""
        for child in _children(live):
            self._of_child.pop(child, None)
        return self._live.pop(live.own_id, None) is not None

    def _give_up(self, live: _Live, outputs: list[EngineOutput]) -> None:
        """End a request with an error that TensorRT-LLM knows nothing of."""
        if self._forget(live):
            with contextlib.suppress(RuntimeError):
                self._executor.cancel_request(live.own_id)
        self._end_with("what TensorRT-LLM said of it could not be read", live, outputs)

    def _end_with(
        self, message: str, live: _Live, outputs: list[EngineOutput], refusal: EngineRefusal | None = None
    ) -> None:
        """End what has not ended: with a `message` for the log, or a `refusal` for the client."""
        request_id = live.request.request_id
        for index in range(live.sequences):
            if index not in live.ended:
                live.ended.add(index)
                said = EngineOutput(request_id, index, [], error=message)
                outputs.append(said if refusal is None else refused_late(refusal, request_id, index))
        self._own_id.pop(live.request.request_id, None)

    # -- statistics --------------------------------------------------------------------------------------------------

    def _ask_stats(self, now: float) -> None:
        """Drain the iterations. An idle engine has none: nothing new then."""
        self._asked_stats = now
        iterations = self._executor.get_latest_iteration_stats()
        if not iterations:
            return
        self._progress = now
        try:
            self._count(iterations)
        except Exception:  # noqa: BLE001 — no request suffers for statistics that another release words otherwise
            sparingly.exception("stats", "TensorRT-LLM's statistics could not be read")

    def _count(self, iterations: Any) -> None:
        for each in iterations:
            drafts = getattr(each, "specdec_stats", None)  # not in every release
            if drafts is not None:
                self._draft_tokens += int(drafts.num_draft_tokens)
                self._accepted_tokens += int(drafts.num_accepted_tokens)
        last = iterations[-1]
        cache = last.kv_cache_stats
        reused = int(cache.reused_blocks) * (int(cache.tokens_per_block) or self._tokens_per_block) if cache else 0
        self._stats = EngineStats(
            blocks_used=int(cache.used_num_blocks) if cache else 0,
            blocks_max=int(cache.max_num_blocks) if cache else 0,
            reused_tokens_total=max(reused, self._stats.reused_tokens_total or 0),
            draft_tokens_total=self._draft_tokens,
            accepted_tokens_total=self._accepted_tokens,
        )


def _children(live: _Live) -> range:
    """The ids of a request's sequences after the first."""
    return range(live.own_id + 1, live.own_id + live.sequences)


def _idle(last: EngineStats) -> EngineStats:
    """Without work nothing iterates, so the last iteration's blocks are free again."""
    return EngineStats(
        blocks_max=last.blocks_max,
        reused_tokens_total=last.reused_tokens_total,
        draft_tokens_total=last.draft_tokens_total,
        accepted_tokens_total=last.accepted_tokens_total,
    )
