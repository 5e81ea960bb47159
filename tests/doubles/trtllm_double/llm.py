"""The high-level interface: LLM on checkpoints (PyTorch flow), and its outputs."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from trtllm_double import tokens
from trtllm_double.guides import guided_tokens
from trtllm_double.llm_types import ARGUMENTS, GuidedDecodingParams, Logprob, LoRARequest, SamplingParams
from trtllm_double.options import options, profile

BLOCK = 32  # tokens of a KV block


class CompletionOutput:
    """Cumulative; `finish_reason` is stop, length, timeout, cancelled or None."""

    def __init__(self, index: int) -> None:
        self.index = index
        self.token_ids: list[int] = []
        self.logprobs: list[dict[int, Logprob]] = []
        self.cumulative_logprob = 0.0
        self.finish_reason: str | None = None
        self.stop_reason: Any = None
        self.text = ""


class RequestOutput:
    """What generate_async returns: an asynchronous iterator over itself."""

    def __init__(self, request_id: int, outputs: list[CompletionOutput]) -> None:
        self.request_id = request_id
        self.outputs = outputs
        self.finished = False
        self.context_logits: Any = None
        self._aborted = False
        self._changed = asyncio.Event()
        self.error: Exception | None = None

    def abort(self) -> None:
        """Idempotent; the end still comes."""
        self._aborted = True

    def aborted(self) -> bool:
        """Whether abort was called."""
        return self._aborted

    def __aiter__(self) -> AsyncIterator[RequestOutput]:
        return self._iterate()

    async def _iterate(self) -> AsyncIterator[RequestOutput]:
        while True:
            await self._changed.wait()
            self._changed.clear()
            if self.error is not None:
                raise self.error
            yield self
            if self.finished:
                return


class _TorchLLM:
    """Takes checkpoints in Hugging Face's form."""

    def __init__(self, model: Any, tokenizer: Any = None, **kwargs: Any) -> None:
        allowed = (ARGUMENTS | set(profile().get("llm_arguments", ()))) - set(profile().get("llm_arguments_drop", ()))
        unknown = set(kwargs) - allowed
        if unknown:
            raise ValueError(f"LLM got invalid arguments: {', '.join(sorted(unknown))}")
        if options().oom_at_load:
            raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")
        folder = Path(model)
        config = json.loads((folder / "config.json").read_text())
        if "pretrained_config" in config:
            raise ValueError("TensorRT engines are not supported by the PyTorch backend")
        self._vocabulary = int(config["vocab_size"])
        self.args = type(
            "Args", (), {**kwargs, "max_seq_len": kwargs.get("max_seq_len") or config["max_position_embeddings"]}
        )
        self._tokenizer_text = (Path(tokenizer or folder) / "tokenizer.json").read_text()
        self._kwargs = kwargs
        self._ids = iter(range(1, 1 << 62))
        self._tasks: set[asyncio.Task[None]] = set()
        self._made = 0
        self._known: set[tuple[int, ...]] = set()  # first blocks of prompts

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
        """Needs a running event loop. Raises `ValueError` for a request beyond the limits."""
        loop = asyncio.get_running_loop()
        prompt = list(inputs)
        params = sampling_params or SamplingParams()
        if len(prompt) >= self.args.max_seq_len:
            raise ValueError(f"The sum of prompt length ({len(prompt)}) should not exceed max_seq_len")
        if params.guided_decoding is not None and not self._kwargs.get("guided_decoding_backend"):
            raise ValueError("guided decoding is not enabled")
        count = params.best_of or params.n if params.use_beam_search else params.n
        request = RequestOutput(next(self._ids), [CompletionOutput(index) for index in range(params.n)])
        if params.return_context_logits:
            request.context_logits = self._context_logits(prompt)
        adapter = lora_request.lora_int_id if lora_request else 0
        forced = self._forced(params.guided_decoding)
        sampled = None if params.greedy else params.seed
        seeds = [(index or None) if params.use_beam_search else sampled for index in range(count)]
        states = [tokens.start(prompt, seed, index, adapter) for index, seed in enumerate(seeds)]
        task = loop.create_task(self._generate(request, params, states, forced))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return request

    def generate(self, inputs: list[list[int]], sampling_params: SamplingParams | None = None) -> list[RequestOutput]:
        """One output for each prompt, in their order."""

        async def all_of_them() -> list[RequestOutput]:
            outputs = [self.generate_async(each, sampling_params) for each in inputs]
            await asyncio.gather(*self._tasks)
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

    async def _generate(
        self, request: RequestOutput, params: SamplingParams, states: list[int], forced: list[int] | None
    ) -> None:
        widest = self._kwargs.get("max_beam_width", 1)
        if (len(states) if params.use_beam_search else 1) != widest:
            request.error = RuntimeError(
                f"Request beam width {len(states) if params.use_beam_search else 1} is not equal to max_beam_width "
                f"{widest}. This is not supported!"
            )
            request._changed.set()
            return
        while not request.finished:
            await asyncio.sleep(options().step_ms / 1000)
            self._made += 1
            if self._made == options().error_at:
                request.error = RuntimeError("the stand-in was told to answer with an error")
                request._changed.set()
                return
            for place, output in enumerate(request.outputs):
                if output.finish_reason is None:
                    states[place] = self._step(output, params, states[place], forced)
                    if request.aborted():
                        output.finish_reason = "cancelled"
            request.finished = all(output.finish_reason for output in request.outputs)
            request._changed.set()

    def _step(self, output: CompletionOutput, params: SamplingParams, state: int, forced: list[int] | None) -> int:
        made = len(output.token_ids)
        end = options().eos_every and made >= max(options().eos_every, params.min_tokens or 0)
        if (forced is not None and made >= len(forced)) or (forced is None and end and not params.ignore_eos):
            output.finish_reason = "stop"
            return state
        token = forced[made] if forced is not None else tokens.next_token(state, self._vocabulary, output.token_ids)
        output.token_ids.append(token)
        if params.logprobs is not None:
            value = tokens.logprob(state)
            entry = {token: Logprob(value, 1)}
            entry |= {
                token + place + 1: Logprob(value - place - 1.0, place + 2) for place in range(params.logprobs - 1)
            }
            output.logprobs.append(entry)
            output.cumulative_logprob += value
        if token in (params.stop_token_ids or ()):
            output.finish_reason = "stop"
        elif made + 1 >= params.max_tokens:
            output.finish_reason = "length"
        return tokens.advance(state, token)

    def get_stats(self, timeout: float | None = 2) -> list[dict[str, Any]]:
        """One entry, where statistics are on."""
        if not self._kwargs.get("enable_iter_perf_stats"):
            return []
        return [{"iter": 1, "numActiveRequests": len(self._tasks), "kvCacheStats": {"maxNumBlocks": options().blocks}}]

    def shutdown(self) -> None:
        """Nothing is left behind."""


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
