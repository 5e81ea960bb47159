"""The high-level interface: LLM on checkpoints (PyTorch flow), its parameters and its outputs.

Field names: tensorrt_llm/llmapi/llm_args.py and tensorrt_llm/sampling_params.py near 1.2 (facts sheet, section 3).
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from trtllm_double import tokens
from trtllm_double.guides import guided_tokens
from trtllm_double.options import options, profile

ARGUMENTS = frozenset(
    [
        "model",
        "tokenizer",
        "tokenizer_mode",
        "skip_tokenizer_init",
        "trust_remote_code",
        "tensor_parallel_size",
        "dtype",
        "revision",
        "tokenizer_revision",
        "pipeline_parallel_size",
        "context_parallel_size",
        "gpus_per_node",
        "moe_cluster_parallel_size",
        "moe_tensor_parallel_size",
        "moe_expert_parallel_size",
        "enable_attention_dp",
        "load_format",
        "enable_lora",
        "lora_config",
        "kv_cache_config",
        "enable_chunked_prefill",
        "guided_decoding_backend",
        "iter_stats_max_iterations",
        "request_stats_max_iterations",
        "peft_cache_config",
        "scheduler_config",
        "speculative_config",
        "max_batch_size",
        "max_input_len",
        "max_seq_len",
        "max_beam_width",
        "max_num_tokens",
        "gather_generation_logits",
        "num_postprocess_workers",
        "return_perf_metrics",
        "cuda_graph_config",
        "disable_overlap_scheduler",
        "moe_config",
        "attn_backend",
        "sampler_type",
        "enable_iter_perf_stats",
        "enable_iter_req_stats",
        "print_iter_log",
        "torch_compile_config",
        "stream_interval",
    ]
)


@dataclasses.dataclass(kw_only=True)
class SamplingParams:
    """The fields of the real dataclass, with its defaults and its checks."""

    end_id: int | None = None
    pad_id: int | None = None
    max_tokens: int = 32
    bad: Any = None
    bad_token_ids: Any = None
    stop: Any = None
    stop_token_ids: Any = None
    include_stop_str_in_output: bool = False
    embedding_bias: Any = None
    n: int = 1
    best_of: int | None = None
    use_beam_search: bool = False
    top_k: int | None = None
    top_p: float | None = None
    top_p_min: float | None = None
    top_p_reset_ids: int | None = None
    top_p_decay: float | None = None
    seed: int | None = None
    temperature: float | None = None
    min_tokens: int | None = None
    beam_search_diversity_rate: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    length_penalty: float | None = None
    early_stopping: int | None = None
    no_repeat_ngram_size: int | None = None
    min_p: float | None = None
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    exclude_input_from_output: bool = True
    return_perf_metrics: bool = False
    guided_decoding: Any = None
    ignore_eos: bool = False
    detokenize: bool = True
    add_special_tokens: bool = True
    skip_special_tokens: bool = True

    def __post_init__(self) -> None:
        allowed = os.environ.get("TLLM_ALLOW_N_GREEDY_DECODING")
        if self.n > 1 and self.greedy and not self.use_beam_search and not allowed:
            raise ValueError("Greedy decoding in the LLM API does not allow multiple returns.")
        if self.n > (self.best_of or self.n):
            raise ValueError("n cannot be larger than best_of")

    @property
    def greedy(self) -> bool:
        """As in 1.1 and later."""
        named = (self.temperature, self.top_p, self.top_k)
        return named == (None, None, None) or self.top_k == 1 or self.top_p == 0 or self.temperature == 0


@dataclasses.dataclass(kw_only=True)
class GuidedDecodingParams:
    """Exactly one field is set."""

    json: Any = None
    regex: str | None = None
    grammar: str | None = None
    json_object: bool = False
    structural_tag: str | None = None


@dataclasses.dataclass
class LoRARequest:
    """Raises `ValueError` when the path does not exist."""

    lora_name: str
    lora_int_id: int
    lora_path: str = ""
    lora_ckpt_source: str = "hf"

    def __post_init__(self) -> None:
        if not Path(self.lora_path).exists():
            raise ValueError(f"lora_path ({self.lora_path}) does not exist.")


class _Config:
    def __init__(self, **values: Any) -> None:
        unknown = set(values) - set(self.FIELDS)
        if unknown:
            raise ValueError(f"Extra inputs are not permitted: {', '.join(sorted(unknown))}")
        self.__dict__.update(dict.fromkeys(self.FIELDS) | values)

    FIELDS: tuple[str, ...] = ()


class KvCacheConfig(_Config):
    """Of the high-level interface; not the bindings' class."""

    FIELDS = ("enable_block_reuse", "max_tokens", "free_gpu_memory_fraction", "host_cache_size", "dtype")
    FIELDS += ("enable_partial_reuse", "max_attention_window", "sink_token_length", "tokens_per_block")


class LookaheadDecodingConfig(_Config):
    """Engines only."""

    FIELDS = ("max_window_size", "max_ngram_size", "max_verification_set_size")


class NGramDecodingConfig(_Config):
    """Prompt lookup."""

    FIELDS = ("max_draft_len", "max_matching_ngram_size", "is_keep_all", "is_use_oldest", "is_public_pool")


class EagleDecodingConfig(_Config):
    """EAGLE-3 on the PyTorch flow."""

    FIELDS = ("max_draft_len", "speculative_model_dir", "eagle3_one_model")


@dataclasses.dataclass
class Logprob:
    """One entry of a token's log-probabilities."""

    logprob: float
    rank: int | None = None


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
        adapter = lora_request.lora_int_id if lora_request else 0
        forced = self._forced(params.guided_decoding)
        seed = None if params.greedy or params.use_beam_search else params.seed
        states = [tokens.start(prompt, seed, index, adapter) for index in range(count)]
        task = loop.create_task(self._generate(request, params, states, forced))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return request

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
