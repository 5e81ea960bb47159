"""The high-level interface: LLM on checkpoints (PyTorch flow), with a worker that is a task of the caller's loop.

As tensorrt_llm/llmapi/llm.py (stored copy 323158958), executor/executor.py (52512512328) and executor/base_worker.py
(2414691874, 1131391427), near 1.2.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import time
from pathlib import Path
from typing import Any

from trtllm_double import tokens
from trtllm_double.guides import guided_tokens
from trtllm_double.llm_adapters import load_adapter
from trtllm_double.llm_results import IterationResult, RequestOutput, Response, nothing
from trtllm_double.llm_samplers import Sampler, Sequence, responses
from trtllm_double.llm_types import ARGUMENTS, GuidedDecodingParams, LoRARequest, SamplingParams
from trtllm_double.llm_worker import (
    Executor,
    Prefixes,
    Request,
    check_arguments,
    end_token,
    greedy_only,
    sampler_of,
    tokenizer_end,
)
from trtllm_double.options import options, profile

BLOCK = 32  # tokens of a KV block
SPAWN_FAILS_WITH = ("SLURM_JOBID", "SLURM_JOB_ID", "SLURM_NODELIST")  # NVIDIA/TensorRT-LLM issue 5495
HANG_S = 3600.0


class _TorchLLM:
    """Takes checkpoints in Hugging Face's form."""

    def __init__(self, model: Any, tokenizer: Any = None, **kwargs: Any) -> None:
        folder = Path(model)
        self._options = options(folder)
        for name in kwargs:
            if name not in ARGUMENTS:
                raise ValueError(f"LLM got invalid argument: {name}")
        check_arguments(kwargs)
        if self._options.spawn_hangs or any(name in os.environ for name in SPAWN_FAILS_WITH):
            time.sleep(HANG_S)  # even one worker is spawned, and MPI has no place for it; nobody is told
        if self._options.oom_at_load:
            raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")
        config = json.loads((folder / "config.json").read_text())
        if kwargs.get("guided_decoding_backend") and tokenizer_end(folder) < 0:
            raise TypeError("GuidedDecodingConfig(): incompatible function arguments: stop_token_ids=[None]")
        if "pretrained_config" in config:
            raise ValueError("TensorRT engines are not supported by the PyTorch backend")
        self._vocabulary = int(config["vocab_size"])
        self._context = int(kwargs.get("max_seq_len") or config["max_position_embeddings"])
        self.args = type("Args", (), {"max_num_tokens": 8192, "max_seq_len": None, **kwargs})
        self._tokenizer_text = (Path(tokenizer or folder) / "tokenizer.json").read_text()
        self._kwargs = kwargs
        self._executor: Executor | None = Executor()
        self._sampler = Sampler(
            sampler_of(kwargs),
            self._vocabulary,
            self._options.eos_token if self._options.eos_token >= 0 else end_token(folder),
            self._options.eos_every,
            profile().get("llm_names_chosen", False),
            tokenizer_end(folder),
        )
        self._ids = iter(range(1, 1 << 62))
        self._requests: list[Request] = []
        self._task: asyncio.Task[None] | None = None
        self._made = 0
        self._failing = False
        self._known: set[tuple[int, ...]] = set()  # first blocks of prompts
        self._prefixes = Prefixes()  # of all prompts

    def generate_async(
        self,
        inputs: Any,
        sampling_params: SamplingParams | None = None,
        lora_request: LoRARequest | None = None,
        prompt_adapter_request: Any = None,
        streaming: bool = False,
        kv_cache_retention_config: Any = None,
        disaggregated_params: Any = None,
        _postproc_params: Any = None,
        scheduling_params: Any = None,
        cache_salt: str | None = None,
    ) -> RequestOutput:
        """Needs a running event loop. Raises `ValueError` for a prompt beyond max_num_tokens, `RuntimeError` once it is
        shut down. What else is wrong with a request is said where its output is read.
        """
        if self._executor is None or self._executor.is_shutdown():
            raise RuntimeError("LLM is shutting down")
        loop = asyncio.get_running_loop()
        prompt = list(inputs)
        params = sampling_params or SamplingParams()
        if params.end_id is None:
            params.end_id = end_token(Path(str(self.args.tokenizer)) if hasattr(self.args, "tokenizer") else None)
        most = getattr(self.args, "max_num_tokens", None)
        if most and len(prompt) > most and not self._kwargs.get("enable_chunked_prefill"):
            raise ValueError(f"The sum of prompt length ({len(prompt)}.0) should not exceed max_num_tokens ({most})")
        self._executor.stats = self._executor.stats or IterationResult()
        self._executor.stats.mark_undone()
        request = self._made_request(prompt, params, lora_request, cache_salt or "")
        self._executor.handle_background_error()
        if params.return_context_logits:
            request.output.context_logits = self._context_logits(prompt)
        if self._task is None or self._task.done() or self._task.get_loop() is not loop:
            self._task = loop.create_task(self._work())
        return request.output

    def _made_request(
        self, prompt: list[int], params: SamplingParams, lora_request: LoRARequest | None, salt: str
    ) -> Request:
        """In the worker; what it refuses comes as a response, and what it trips over kills it."""
        assert self._executor is not None
        beams = params.best_of or 1 if params.use_beam_search else 1
        count = beams if params.use_beam_search else params.n
        sampled = None if params.greedy or greedy_only(self._kwargs) else params.seed
        seeds = [(index or None) if params.use_beam_search else sampled for index in range(count)]
        output = RequestOutput(next(self._ids), params, lambda: request.cancel())
        room = self._context - len(prompt)
        request = Request(output, [], None, min(params.max_tokens, room))
        refusal = ""
        widest = self._kwargs.get("max_beam_width", 1)
        if room <= 0:
            refusal = f"`default_max_tokens` ({room}) must be greater than 0"
        elif beams != widest:
            refusal = f"Request beam width {beams} is not equal to max_beam_width {widest}. This is not supported!"
        elif params.guided_decoding is not None and not self._kwargs.get("guided_decoding_backend"):
            refusal = "guided decoding is not enabled"
        adapter = 0
        if lora_request is not None and self._kwargs.get("lora_config") is not None:
            try:
                load_adapter(lora_request, self._kwargs["lora_config"])
                adapter = lora_request.lora_int_id
            except Exception as error:  # noqa: BLE001 — nothing in the worker catches it (worker.py in 2414691874)
                self._executor.background_error = error
        if refusal:
            output.aqueue.put_nowait(Response(error=refusal, final=True))
            return request
        request.forced = self._forced(params.guided_decoding)
        cache = self._kwargs.get("kv_cache_config")
        reuses = cache is None or cache.enable_block_reuse is not False
        request.sequences = [
            Sequence(
                index,
                tokens.start(prompt, seed, index, adapter),
                self._prefixes.cached(prompt, salt, adapter) if reuses else 0,
            )
            for index, seed in enumerate(seeds)
        ]
        self._requests.append(request)
        return request

    def generate(self, inputs: list[list[int]], sampling_params: SamplingParams | None = None) -> list[RequestOutput]:
        """One output for each prompt, in their order."""

        async def all_of_them() -> list[RequestOutput]:
            outputs = [self.generate_async(each, sampling_params) for each in inputs]
            for output in outputs:
                async for _ in output:
                    pass
            return outputs

        return asyncio.run(all_of_them())

    def _context_logits(self, prompt: list[int]) -> Any:
        """Of every prompt token; where blocks are reused, of those behind the known ones only, without a word."""
        cache = self._kwargs.get("kv_cache_config")
        known = tuple(prompt[:BLOCK])
        skipped = BLOCK if known in self._known and (cache is None or cache.enable_block_reuse is not False) else 0
        self._known.add(known)
        states = itertools.accumulate(prompt, tokens.advance, initial=tokens.start([]))
        return tokens.logits(list(states)[1 + skipped :], self._vocabulary)

    def _forced(self, guide: GuidedDecodingParams | None) -> list[int] | None:
        if guide is None:
            return None
        kinds = {
            "JSON_SCHEMA": guide.json,
            "REGEX": guide.regex,
            "EBNF_GRAMMAR": guide.grammar,
            "JSON": guide.json_object or None,
        }
        kind, text = next((name, value) for name, value in kinds.items() if value is not None)
        return guided_tokens(kind, text if isinstance(text, str) else None, self._tokenizer_text)

    async def _work(self) -> None:
        """The worker's iterations, as long as there is something to do."""
        while self._requests:
            await asyncio.sleep(self._options.step_ms / 1000)
            executor = self._executor
            if executor is None or executor.background_error is not None:
                return  # dead; whoever waits for it waits for ever
            if self._beside_each_other():
                self._fail_all("Beam search is not supported for multiple prompts and logprobs")
                continue
            for request in list(self._requests):
                self._iterate(request)
                if executor.background_error is not None or executor.doing_shutdown:
                    return
            if self._kwargs.get("enable_iter_perf_stats") and executor.stats is not None:
                executor.stats.put(json.dumps(self._statistics()))
            if self._options.stall_at and self._made >= self._options.stall_at:
                await asyncio.sleep(HANG_S)

    def _beside_each_other(self) -> bool:
        beams = any(request.output.sampling_params.use_beam_search for request in self._requests)
        logprobs = any(request.output.sampling_params.logprobs for request in self._requests)
        return self._sampler.kind == "TRTLLMSampler" and beams and logprobs and len(self._requests) > 1

    def _iterate(self, request: Request) -> None:
        """One iteration of one request, and what its reader gets of it."""
        assert self._executor is not None
        output, params = request.output, request.output.sampling_params
        for sequence in request.sequences:
            if request.cancelled:
                sequence.reason = "CANCELLED" if not sequence.ended else sequence.reason
            elif not sequence.ended:
                try:
                    self._sampler.step(sequence, params, request.forced, request.limit)
                except AssertionError as error:  # nothing in the worker catches it
                    self._executor.background_error = error
                    return
                self._made += 1
        if self._made >= self._options.error_at > 0 and (not self._failing or self._options.error_stays):
            self._failing = True
            output.aqueue.put_nowait(Response(error=self._options.error_words, final=True))
            self._requests.remove(request)
            return
        if self._made >= self._options.die_at > 0:
            self._executor.background_error = RuntimeError("MPI worker 0 died: exit status 137")
            return
        if self._made >= self._options.break_at > 0:
            self._executor.shutdown()  # by whoever reads first
            output.aqueue.put_nowait(RuntimeError("the dispatch thread failed"))
            return
        for response in responses(request.sequences, params, params.n):
            output.aqueue.put_nowait(response)
        if all(sequence.ended for sequence in request.sequences):
            self._requests.remove(request)

    def _fail_all(self, words: str) -> None:
        """What py_executor.py does with an exception of a step (`_handle_errors`)."""
        for request in self._requests:
            request.output.aqueue.put_nowait(Response(error=words, final=True))
        self._requests.clear()

    def _statistics(self) -> dict[str, Any]:
        used = sum(1 + len(request.sequences[0].tokens) // BLOCK for request in self._requests if request.sequences)
        cache = {
            "maxNumBlocks": self._options.blocks,
            "usedNumBlocks": used,
            "reusedBlocks": 3,
            "tokensPerBlock": BLOCK,
        }
        return {"iter": self._made, "numActiveRequests": len(self._requests), "kvCacheStats": cache}

    def get_stats(self, timeout: float | None = 2) -> list[dict[str, Any]]:
        """Of the iterations that nobody has asked for yet."""
        stats = self._executor.stats if self._executor is not None else None
        if stats is None:
            return []
        if profile().get("llm_stats_rpc"):
            found = []
            while not stats._queue.empty():
                found.append(json.loads(stats._queue.get_nowait()))
            return found
        stats.timeout = timeout or 2.0
        return stats.get_results()

    def get_stats_async(self, timeout: float | None = 2) -> Any:
        """An asynchronous iterator of them."""
        stats = self._executor.stats if self._executor is not None else None
        if stats is None:
            return nothing()
        if profile().get("llm_stats_rpc"):
            time.sleep(timeout or 2.0)  # the call holds up the event loop
        stats.timeout = timeout or 2.0
        return stats

    def shutdown(self) -> None:
        """Nothing is left behind."""
        if self._executor is not None:
            self._executor.shutdown()
            self._executor = None


class EngineLLM:
    """Takes engines; not used by Inflight, which goes to the executor itself."""

    def __init__(self, model: Any, **_: Any) -> None:
        self.model = model


class LLM(_TorchLLM if profile()["llm"] == "torch" else EngineLLM):  # type: ignore[misc]
    """Which flow it is depends on the release."""


if not profile().get("llm_cache_salt", True):
    _salted = _TorchLLM.generate_async

    def _without_salt(
        self: _TorchLLM,
        inputs: Any,
        sampling_params: SamplingParams | None = None,
        lora_request: LoRARequest | None = None,
        prompt_adapter_request: Any = None,
        streaming: bool = False,
        kv_cache_retention_config: Any = None,
        disaggregated_params: Any = None,
        _postproc_params: Any = None,
    ) -> RequestOutput:
        """As before salts came."""
        return _salted(self, inputs, sampling_params, lora_request, prompt_adapter_request, streaming)

    _TorchLLM.generate_async = _without_salt  # type: ignore[method-assign,assignment]
