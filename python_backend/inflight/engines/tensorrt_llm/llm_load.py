"""tensorrt_llm.LLM of a checkpoint: its arguments out of our options, by what the installed release takes."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from inflight.engines.base import GUIDED, Capability
from inflight.engines.tensorrt_llm.llm_adapters import AdapterShape, limits_of
from inflight.engines.tensorrt_llm.llm_output import Sampler
from inflight.engines.tensorrt_llm.options import TensorRtLlmOptions
from inflight.engines.tensorrt_llm.probe import Installed, first_line
from inflight.errors import LoadError
from inflight.model.files import end_token_of_tokenizer

log = logging.getLogger("inflight.engine_worker")


SAMPLERS = "tensorrt_llm._torch.pyexecutor.sampler"


@dataclasses.dataclass(frozen=True, slots=True)
class SamplerFeatures:
    """What the sampler does with a request's parameters; the others it would leave out without a word."""

    penalties: bool
    min_p: bool
    seeds: bool


@dataclasses.dataclass(frozen=True, slots=True)
class LoadedLlm:
    """tensorrt_llm.LLM, with the sampler that it runs, what that one takes, the adapters it has room for, and whether
    there are guides.
    """

    llm: Any
    sampler: Sampler
    features: SamplerFeatures
    adapters: AdapterShape | None
    guided: bool


def load_llm(folder: Path, options: TensorRtLlmOptions, installed: Installed, max_running: int) -> LoadedLlm:
    """tensorrt_llm.LLM of a checkpoint. Raises `LoadError` with what it says."""
    api = importlib.import_module("tensorrt_llm.llmapi")
    types = importlib.import_module("tensorrt_llm.llmapi.llm_args")
    old_sampler = installed.executor is not None  # releases that still had engines: penalties need TRTLLMSampler
    adapters = limits_of(Path(options.lora_dir), options) if options.lora_dir else None
    if end_token_of_tokenizer(folder) is None:
        log.warning("guided decoding is off: the tokenizer has no end token, and LLM does not load with guides then")
        options = msgspec.structs.replace(options, guided_decoding_backend="none")
    arguments = llm_arguments(options, api, types, adapters, old_sampler, max_running)
    llm = _construct(installed.llm, folder, arguments)
    sampler = sampler_of(arguments)
    features = features_of(sampler)
    if not features.seeds:
        log.warning("the sampler of this TensorRT-LLM takes no seeds: the same seed gives another answer each time")
    return LoadedLlm(llm, sampler, features, adapters, guided=arguments.get("guided_decoding_backend") is not None)


def llm_arguments(
    options: TensorRtLlmOptions,
    api: Any,
    types: Any,
    adapters: AdapterShape | None,
    old_sampler: bool,
    max_running: int,
) -> dict[str, Any]:
    """Arguments of tensorrt_llm.LLM; `llm_arguments` of the options come last and win.

    `types` is tensorrt_llm.llmapi.llm_args, whose TorchLlmArgs says which arguments there are.
    """
    known = frozenset(types.TorchLlmArgs.model_fields)
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
    if options.max_beam_width > 1 and old_sampler:  # TRTLLMSampler's conditions for beams
        arguments |= {"disable_overlap_scheduler": True, "cuda_graph_config": None}
    if options.max_num_tokens:
        arguments["max_num_tokens"] = options.max_num_tokens
    if options.max_seq_len:
        arguments["max_seq_len"] = options.max_seq_len
    if adapters is not None:  # `enable_lora` alone would give no adapters, and no word about it
        arguments["lora_config"] = types.LoraConfig(
            max_lora_rank=adapters.rank, lora_target_modules=sorted(adapters.modules)
        )
    arguments |= _speculation(options, api) | _sampling(options, known, old_sampler)
    return {**arguments, **options.llm_arguments}


def _speculation(options: TensorRtLlmOptions, api: Any) -> dict[str, Any]:
    if options.speculative == "ngram":
        config = api.NGramDecodingConfig(
            max_draft_len=options.num_draft_tokens, max_matching_ngram_size=options.max_matching_ngram_size
        )
        return {"speculative_config": config}
    if options.speculative == "eagle3":
        kind = getattr(api, "Eagle3DecodingConfig", api.EagleDecodingConfig)
        # One model is faster. Releases that cannot sample in it take the likeliest tokens whatever a request says.
        samples = "allow_advanced_sampling" in kind.model_fields
        config = kind(
            max_draft_len=options.num_draft_tokens,
            speculative_model_dir=options.speculative_model_dir,
            **({"allow_advanced_sampling": True} if samples else {"eagle3_one_model": False}),
        )
        return {"speculative_config": config}
    return {}


def _sampling(options: TensorRtLlmOptions, known: frozenset[str], old_sampler: bool) -> dict[str, Any]:
    """The sampler, and guides. With speculation TensorRT-LLM takes a sampler of its own, and up to 1.1 no guides."""
    if options.speculative:
        return {}
    found: dict[str, Any] = {}
    first_releases = "sampler_type" not in known and "enable_trtllm_sampler" in known  # up to 1.0
    if old_sampler:
        found |= {"enable_trtllm_sampler": True} if first_releases else {"sampler_type": Sampler.TRTLLM.value}
    if options.guided_decoding_backend != "none":
        found["guided_decoding_backend"] = options.guided_decoding_backend
        if first_releases:
            found["disable_overlap_scheduler"] = True  # they refuse guides beside it, at load
    return found


def sampler_of(arguments: Mapping[str, Any]) -> Sampler:
    """The sampler that LLM runs when it is made with `arguments`."""
    speculation = arguments.get("speculative_config")
    if speculation is not None:
        return Sampler.ONE_MODEL if getattr(speculation, "eagle3_one_model", False) else Sampler.TORCH
    if "enable_trtllm_sampler" in arguments:
        return Sampler.TRTLLM if arguments["enable_trtllm_sampler"] else Sampler.TORCH
    named = str(getattr(arguments.get("sampler_type"), "value", arguments.get("sampler_type", "")))
    if named == "auto":
        return Sampler.TRTLLM if int(arguments.get("max_beam_width", 1)) > 1 else Sampler.TORCH
    return Sampler.TRTLLM if named == Sampler.TRTLLM.value else Sampler.TORCH


def features_of(sampler: Sampler) -> SamplerFeatures:
    """The C++ decoder has penalties and seeds from the beginning, TorchSampler got them one by one: by its modules."""
    if sampler is Sampler.TRTLLM:
        return SamplerFeatures(penalties=True, min_p=False, seeds=True)
    if sampler is Sampler.ONE_MODEL:
        return SamplerFeatures(penalties=False, min_p=False, seeds=False)
    handler = getattr(_module("sampler"), "_OccurrencePenaltyHandler", None)
    values = [getattr(_module(name), "UtilsSamplingParams", None) for name in ("sampler_common", "sampling_utils")]
    names = {field.name for kind in values if dataclasses.is_dataclass(kind) for field in dataclasses.fields(kind)}
    return SamplerFeatures(
        penalties=_module("penalties") is not None or handler is not None,
        min_p="min_p" in names,
        seeds=_module("seed_manager") is not None,
    )


def _module(name: str) -> Any:
    """A module of TorchSampler's, or None."""
    try:
        return importlib.import_module(f"{SAMPLERS}.{name}")
    except ImportError:
        return None


def capabilities_of(loaded: LoadedLlm, options: TensorRtLlmOptions) -> frozenset[Capability]:
    """What this model, in this release, with its sampler and with these options, can do."""
    wanted = {
        Capability.STREAMING: True,
        Capability.PARALLEL_SAMPLING: True,
        Capability.LOGPROBS: options.max_beam_width == 1 and loaded.sampler is not Sampler.ONE_MODEL,
        Capability.TOP_LOGPROBS: options.max_beam_width == 1 and loaded.sampler is Sampler.TORCH,
        Capability.BEAM_SEARCH: options.max_beam_width > 1,
        Capability.PREFIX_CACHE: options.enable_kv_cache_reuse is not False,
        Capability.CACHE_SALT: "cache_salt" in inspect.signature(loaded.llm.generate_async).parameters,
        Capability.LORA: bool(options.lora_dir),
        Capability.SPECULATIVE: bool(options.speculative),
        Capability.MIN_P: loaded.features.min_p,
        Capability.NEVER_PREEMPTS: options.batch_scheduler_policy == "guaranteed_no_evict",
    }
    found = frozenset(capability for capability, has in wanted.items() if has)
    return found | GUIDED if loaded.guided else found


def _construct(llm: Any, folder: Path, arguments: dict[str, Any]) -> Any:
    """Construct LLM. Raises `LoadError` with what it says."""
    try:
        return llm(str(folder), tokenizer=str(folder), **arguments)
    except ValueError as error:
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
