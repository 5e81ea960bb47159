"""vLLM on GPUs and CPUs, behind the engine seam: its step-driven LLMEngine, with vLLM's core in this process.

Our one thread adds, aborts and steps; vLLM starts no server, and no second thread schedules. Admission reserves every
request's worst case in vLLM's own blocks before it comes here, so that vLLM never has to preempt. What differs between
releases is found by asking the installed one.

Options (model parameter `engine_options`, JSON): see `VllmOptions`.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from inflight.engines.adapters import adapter_folder
from inflight.engines.base import (
    GUIDED,
    Capability,
    EngineInfo,
    EngineOutput,
    EngineRefusal,
    EngineRequest,
    EngineStats,
    FinishReason,
)
from inflight.engines.faults import concerns_one_request
from inflight.engines.refusals import in_our_words
from inflight.engines.vllm.load import (
    DraftCounts,
    check_checkpoint,
    import_vllm,
    load,
    warm_up_requests,
)
from inflight.engines.vllm.options import (
    VllmOptions,
    capabilities,
    draft_slack,
    engine_arguments,
    environment,
    places,
    read_options,
)
from inflight.engines.vllm.sampling import grammar_text, sampling_values, split_logprobs
from inflight.errors import LoadError
from inflight.model.files import is_folder, read_json_object, stop_token_ids
from inflight.model.operations import longest_step_s

log = logging.getLogger("inflight.engine_worker")

PAUSE_S = 0.001  # between steps that had nothing to do: requests wait for their grammar
QUICK_STEP_S = 0.0005
WARM_UP_S = 300.0

_FINISH = {"stop": FinishReason.STOP, "length": FinishReason.LENGTH, "abort": FinishReason.CANCELLED}


class _Sequence:
    """One sequence of a request, which is a request of its own to vLLM, under the id `key`."""

    __slots__ = ("index", "key", "request", "reused")

    def __init__(self, request: EngineRequest, index: int) -> None:
        self.request = request
        self.index = index
        self.key = f"{request.request_id}.{index}"
        self.reused = False  # its prefix hits are counted


class VllmEngine:
    """See the module's text; the contract is `engines.base.Engine`."""

    def __init__(self, folder: Path, values: Mapping[str, Any], max_running: int) -> None:
        self._options = read_options(values)
        max_seq_len = check_checkpoint(folder, self._options.max_seq_len)
        self._vllm = import_vllm(environment(self._options))
        facts = self._vllm.facts
        if self._options.threads and not facts.on_cpu:
            raise LoadError("engine_options: threads is for vLLM's CPU build, and this one runs on a GPU; remove it.")
        if "gpu_memory_utilization" in values and facts.on_cpu:
            raise LoadError(
                "engine_options: gpu_memory_utilization is for GPUs, and this is vLLM's CPU build; remove it."
            )
        arguments = engine_arguments(folder, self._options, facts, max_running, max_seq_len)
        self._drafts = DraftCounts() if self._options.speculative else None
        self._engine = load(self._vllm, arguments, self._drafts)
        self._scheduler = self._engine.engine_core.engine_core.scheduler
        self._lora_dir = Path(self._options.lora_dir) if self._options.lora_dir else None
        self._adapters: dict[str, Any] = {}
        self._numbers = itertools.count(1)  # of adapters: one that could not be loaded may have left something behind
        self._sequences: dict[str, _Sequence] = {}  # by vLLM's id
        self._of_request: dict[int, list[_Sequence]] = {}  # those that have not ended
        self._ended: list[EngineOutput] = []  # terminal outputs of cancelled sequences, for the next step
        self._reused_tokens = 0
        self.info = self._describe(folder, places(max_running, facts))
        self._warm_up()
        names = ", ".join(sorted(capability.value for capability in self.info.capabilities))
        log.info("vLLM %s (%s); capabilities: %s", self._vllm.version, "CPU" if facts.on_cpu else "GPU", names)

    def _describe(self, folder: Path, max_running: int) -> EngineInfo:
        """What vLLM has settled on. Raises `LoadError` when its KV pool is too small to serve anything."""
        config = self._engine.vllm_config
        block_size, blocks = pool(config.cache_config, self._scheduler, self._options, max_running)
        able = capabilities(self._options, self._vllm.facts)
        if not config.cache_config.enable_prefix_caching:
            able -= {Capability.PREFIX_CACHE}  # vLLM turns it off for some architectures
        vocab_size = int(config.model_config.get_vocab_size())
        stops = stop_token_ids(folder, vocab_size)
        return EngineInfo(
            name="vllm",
            version=self._vllm.version,
            vocab_size=vocab_size,
            max_seq_len=min(int(config.model_config.max_model_len), blocks * block_size),
            max_running=max_running,
            block_size=block_size,
            blocks_total=blocks,
            stop_token_ids=stops,
            capabilities=able if stops else able - GUIDED,  # a grammar ends with the token that ends a text
            longest_step_s=self._longest_step_s(folder) if self._vllm.facts.on_cpu else 0.0,
        )

    def _longest_step_s(self, folder: Path) -> float:
        """On a CPU, where a prompt is computed whole; 0 where config.json does not say how much a model computes."""
        tokens = int(self._engine.vllm_config.scheduler_config.max_num_batched_tokens)
        try:
            config = read_json_object(folder, "config.json")
            return longest_step_s(config, tokens, self._options.threads or len(os.sched_getaffinity(0)))
        except LoadError:
            return 0.0

    def _warm_up(self) -> None:
        """Take every way through vLLM's sampler once (`warm_up_requests`). Raises `LoadError` where one fails."""
        guided = bool(GUIDED & self.info.capabilities)
        problems: list[str] = []
        for request in warm_up_requests(guided, Capability.MIN_P in self.info.capabilities):
            try:
                self.add(request)
            except EngineRefusal as refusal:
                problems.append(str(refusal))
        deadline = time.monotonic() + WARM_UP_S
        while self._sequences:
            problems += [output.error for output in self.step(PAUSE_S) if output.error is not None]
            if time.monotonic() > deadline:
                problems.append(f"no answer in {WARM_UP_S:g} s")
                break
        if problems:
            hint = "; where its tokenizer is the reason, set guided_decoding_backend to none" if guided else ""
            raise LoadError(f"vLLM fails on its first requests ({problems[0]}): the log above has more{hint}.")
        self._reused_tokens = 0

    # -- the seam ----------------------------------------------------------------------------------------------------

    def add(self, request: EngineRequest) -> None:
        lora = self._adapter(request.lora_name) if request.lora_name is not None else None
        grammar = grammar_text(request.guide) if request.guide is not None else None
        sequences = [_Sequence(request, index) for index in range(request.sampling.num_sequences)]
        taken: list[_Sequence] = []
        try:
            for sequence in sequences:
                salt = {"cache_salt": request.cache_salt} if request.cache_salt is not None else {}
                self._engine.add_request(
                    sequence.key,
                    self._vllm.tokens_input(list(request.token_ids), **salt),
                    self._params(request, sequence.index, grammar),
                    lora_request=lora,
                    priority=-request.priority,  # vLLM takes the lowest first
                )
                taken.append(sequence)
        except Exception as error:
            with contextlib.suppress(Exception):  # what ended the request is told, not this
                self._engine.abort_request([sequence.key for sequence in taken])
            if isinstance(error, self._vllm.refusals):
                raise in_our_words(self.info.name, error, request) from None
            raise
        self._of_request[request.request_id] = sequences
        self._sequences.update((sequence.key, sequence) for sequence in sequences)

    def _params(self, request: EngineRequest, index: int, grammar: str | None) -> Any:
        values = sampling_values(request, index, self.info.stop_token_ids)
        if grammar is not None:
            values["structured_outputs"] = self._vllm.structured_outputs(grammar=grammar)
        params = self._vllm.sampling_params(output_kind=self._vllm.delta, **values)
        if request.sampling.bad_words:
            # vLLM's public form is text, which it would tokenize by its own rules; these are the ids it makes of that.
            params._bad_words_token_ids = [list(word) for word in request.sampling.bad_words]
        return params

    def _adapter(self, name: str) -> Any:
        """The LoRARequest of vLLM; the first time the adapter is loaded. Raises `EngineRefusal`."""
        if name in self._adapters:
            return self._adapters[name]
        folder = adapter_folder(self._lora_dir, name)
        if not is_folder(folder):
            raise EngineRefusal(f"{name!r} may not be read by the server: mend its permissions", "lora_name")
        if not (folder / "adapter_model.safetensors").is_file():
            raise EngineRefusal(f"{name!r} has no adapter_model.safetensors; save it again with peft", "lora_name")
        lora = self._vllm.lora_request(name, next(self._numbers), str(folder))
        try:
            self._engine.add_lora(lora)  # else the first step with it would, and a damaged one would end the engine
        except Exception as error:  # noqa: BLE001 — whatever it is, it is the adapter's
            log.warning("the adapter %s cannot be loaded: %s", name, error)
            raise EngineRefusal(f"{name!r} cannot be loaded; see the server's log", "lora_name") from None
        self._adapters[name] = lora
        return lora

    def cancel(self, request_id: int) -> None:
        sequences = self._of_request.get(request_id, [])
        self._engine.abort_request([sequence.key for sequence in sequences])
        self._of_request.pop(request_id, None)
        for sequence in sequences:
            del self._sequences[sequence.key]
            self._ended.append(EngineOutput(request_id, sequence.index, [], FinishReason.CANCELLED))

    def step(self, timeout_s: float) -> list[EngineOutput]:
        outputs, self._ended = self._ended, []
        if not self._sequences:
            return outputs
        began = time.monotonic()
        for result in self._engine.step():
            sequence = self._sequences.get(result.request_id)
            if sequence is None:
                continue
            try:
                self._take(sequence, result, outputs)
            except Exception as error:  # noqa: BLE001 — vLLM's words for one request, which we fail to read
                concerns_one_request(error, sequence.request.request_id)
                self._fail(sequence, outputs)
        if not outputs and time.monotonic() - began < QUICK_STEP_S:
            time.sleep(min(timeout_s, PAUSE_S))
        return outputs

    def _take(self, sequence: _Sequence, result: Any, outputs: list[EngineOutput]) -> None:
        reused = None
        if not sequence.reused:
            sequence.reused = True
            cached = int(result.num_cached_tokens or 0)
            self._reused_tokens += cached
            if sequence.request.perf_metrics and sequence.index == 0:
                reused = cached // self.info.block_size
        (completion,) = result.outputs
        token_ids = [int(token) for token in completion.token_ids]
        finish = error = None
        if completion.finish_reason is not None:
            finish = _FINISH.get(completion.finish_reason)
            if finish is None:
                log.warning("vLLM ended request %s with %r", sequence.key, completion.finish_reason)
                error = "the engine could not compute this request"
            self._forget(sequence)
        elif not token_ids and reused is None:
            return
        chosen, top, ranks = split_logprobs(token_ids, completion.logprobs, sequence.request.sampling.logprobs)
        outputs.append(
            EngineOutput(
                sequence.request.request_id,
                sequence.index,
                token_ids,
                finish,
                error,
                logprobs=chosen,
                top_logprobs=top,
                ranks=ranks,
                reused_blocks=reused,
            )
        )

    def _fail(self, sequence: _Sequence, outputs: list[EngineOutput]) -> None:
        """End a sequence with an error."""
        error = "what vLLM said of it could not be read"
        outputs.append(EngineOutput(sequence.request.request_id, sequence.index, [], error=error))
        if sequence.key in self._sequences:
            self._forget(sequence)
            with contextlib.suppress(Exception):
                self._engine.abort_request([sequence.key])

    def _forget(self, sequence: _Sequence) -> None:
        del self._sequences[sequence.key]
        left = self._of_request[sequence.request.request_id]
        left.remove(sequence)
        if not left:
            del self._of_request[sequence.request.request_id]

    def stats(self) -> EngineStats:
        total = self.info.blocks_total
        return EngineStats(
            blocks_used=min(round(self._scheduler.kv_cache_manager.usage * total), total),
            blocks_max=total,
            reused_tokens_total=self._reused_tokens,
            draft_tokens_total=self._drafts.drafted if self._drafts else 0,
            accepted_tokens_total=self._drafts.accepted if self._drafts else 0,
        )

    def close(self) -> None:
        self._sequences.clear()
        self._of_request.clear()
        with contextlib.suppress(Exception):  # nothing can be done about it, and the process ends
            self._engine.engine_core.shutdown()


def pool(cache: Any, scheduler: Any, options: VllmOptions, max_running: int) -> tuple[int, int]:
    """(tokens of a block, blocks that requests may reserve) of vLLM's KV pool. Raises `LoadError` when there are none.

    Of vLLM's blocks one is its own (a placeholder). Where layers of several kinds share the pool (sliding windows
    beside full attention), a request takes blocks for each kind. Speculative decoding writes past a sequence's end.
    """
    groups = len(scheduler.kv_cache_config.kv_cache_groups) or 1
    block_size = int(cache.block_size)
    blocks = (int(cache.num_gpu_blocks) - 1) // groups - max_running * draft_slack(options, block_size)
    if blocks < 1:
        raise LoadError("vLLM's KV cache is too small to serve anything; raise kv_cache_gb or lower max_running.")
    return block_size, blocks
