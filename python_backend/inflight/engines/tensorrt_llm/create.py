"""TensorRT-LLM: finds out what the directory is and what is installed, checks that they fit, and makes the engine.

Compiled engines run through the bindings' executor (`executor`), Hugging Face-style checkpoints through
tensorrt_llm.LLM (`llmapi`). Never run on real hardware by its authors: docs/engines/tensorrt_llm.md says on what its
correctness rests.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from inflight.engines.base import GUIDED, Capability, Engine, EngineInfo
from inflight.engines.tensorrt_llm.checks import (
    check_checkpoint,
    check_draft,
    check_engine,
    check_manifest,
    check_way_in,
    refuse_uncompiled,
)
from inflight.engines.tensorrt_llm.config import (
    accepts,
    executor_config,
    guided_config,
    retention_config,
    reuse_enabled,
)
from inflight.engines.tensorrt_llm.executor import ExecutorEngine
from inflight.engines.tensorrt_llm.limits import context_of, prompt_limit, shares_of_memory
from inflight.engines.tensorrt_llm.lora import Adapters
from inflight.engines.tensorrt_llm.options import TensorRtLlmOptions, read_options
from inflight.engines.tensorrt_llm.probe import (
    DirectoryKind,
    EngineFacts,
    Gpu,
    Installed,
    directory_kind,
    engine_facts,
    first_line,
    import_installed,
    read_config,
    visible_gpus,
)
from inflight.errors import LoadError
from inflight.model.files import stop_token_ids
from inflight.model.trtllm_parameters import PARAMETERS

log = logging.getLogger("inflight.engine_worker")

ALWAYS = frozenset(
    {
        Capability.STREAMING,
        Capability.LOGPROBS,
        Capability.PARALLEL_SAMPLING,
        Capability.BAD_WORDS,
        Capability.MIN_P,
    }
)


def create(folder: Path, values: Mapping[str, Any], max_running: int) -> Engine:
    """The engine for `folder`. Raises `LoadError` with one sentence for the operator."""
    options = read_options(values)
    config = read_config(folder)
    kind = directory_kind(config)
    gpus = visible_gpus()
    manifest = check_manifest(folder, gpus)
    if kind is DirectoryKind.CHECKPOINT or (manifest is not None and manifest.stage != "engine"):
        refuse_uncompiled(folder)
    without_effect = sorted(name for name in values if name in PARAMETERS and PARAMETERS[name].effect)
    if without_effect:
        log.warning("model parameters without effect here: %s", ", ".join(without_effect))
    facts = None
    if kind is DirectoryKind.ENGINE:
        facts = engine_facts(folder, config)
        check_engine(facts, options, gpus, manifest)
    installed = import_installed()
    check_way_in(kind, installed)
    if facts is None:
        check_checkpoint(config)
    if facts is None:
        from inflight.engines.tensorrt_llm.llm_load import number_of
        from inflight.engines.tensorrt_llm.llmapi import LlmEngine

        stops = end_tokens(folder, number_of(config, "vocab_size"))
        engine: Engine = LlmEngine(folder, config, options, installed, max_running, stops)
    else:
        engine = load_compiled(facts, options, installed, max_running, gpus)
    names = sorted(capability.value for capability in engine.info.capabilities)
    log.info("TensorRT-LLM %s runs this %s; capabilities: %s", installed.version, kind.value, ", ".join(names))
    return engine


def load_compiled(
    facts: EngineFacts,
    options: TensorRtLlmOptions,
    installed: Installed,
    max_running: int,
    gpus: Sequence[Gpu] | None,
) -> Engine:
    """Load a compiled engine, and the one that drafts for it. Raises `LoadError`."""
    trtllm, folder = installed.executor, facts.folder
    guided = guided_config(trtllm, options, str(folder), speculative=facts.speculative_mode != "none")
    draft, of_draft = None, options
    if options.draft_engine_dir:
        draft_folder = Path(options.draft_engine_dir)
        check_manifest(draft_folder, None)
        draft = engine_facts(draft_folder, read_config(draft_folder))
        check_draft(facts, draft, options)
        options, of_draft = _shared(options, facts, draft, gpus)
    executor = make_executor(trtllm, folder, executor_config(trtllm, options, facts, guided))
    capabilities = capabilities_of(trtllm, options, facts, guided is not None)
    info = compiled_info(facts, options, installed.version, capabilities, max_running)
    engine = ExecutorEngine(
        trtllm,
        executor,
        info,
        prompt_limit=prompt_limit(facts, options),
        tokens_per_block=info.block_size,
        adapters=_adapters(trtllm, options, facts),
        retention=retention_config(trtllm, options),
        restarts=options.batch_scheduler_policy == "max_utilization" and not options.enable_chunked_context,
        stall_timeout_s=_stall_timeout_s(options),
    )
    if draft is None:
        return engine
    from inflight.engines.tensorrt_llm.draft import DraftedEngine

    drafting = make_executor(trtllm, draft.folder, executor_config(trtllm, of_draft, draft, None))
    longest = min(context_of(draft) - 1, prompt_limit(draft, of_draft).tokens)
    return DraftedEngine(engine, drafting, options.num_draft_tokens, longest)


def _shared(
    options: TensorRtLlmOptions, facts: EngineFacts, draft: EngineFacts, gpus: Sequence[Gpu] | None
) -> tuple[TensorRtLlmOptions, TensorRtLlmOptions]:
    """Options for the two engines of a pair on one GPU: each takes its share, and the small one its own limits."""
    chosen = options.gpu_device_ids or [0]
    gpu = gpus[chosen[0] : chosen[0] + 1] if gpus else None
    large, small = shares_of_memory(facts, draft, options.kv_cache_free_gpu_mem_fraction, gpu)
    replace = msgspec.structs.replace
    return replace(options, kv_cache_free_gpu_mem_fraction=large), replace(
        options,
        kv_cache_free_gpu_mem_fraction=small,
        max_batch_size=min(options.max_batch_size, draft.limit("max_batch_size")),
        max_num_tokens=min(options.max_num_tokens, draft.limit("max_num_tokens")),
        enable_kv_cache_reuse=None,
        enable_chunked_context=options.enable_chunked_context and draft.paged_context,
        max_attention_window_size=None,
        decoding_mode="",
    )


def _stall_timeout_s(options: TensorRtLlmOptions) -> float:
    """Beams are silent until they end, so that without statistics nothing tells them from an executor that stands."""
    if options.iter_stats_max_iterations:
        return options.stall_timeout_ms / 1000
    log.warning("iter_stats_max_iterations is 0: there are no metrics of the engine, and a stall of it is not noticed")
    return math.inf


def _adapters(trtllm: Any, options: TensorRtLlmOptions, facts: EngineFacts) -> Adapters | None:
    """The adapters of `lora_dir`, which is `lora_prefetch_dir` where that alone is set."""
    folder = options.lora_dir or options.lora_prefetch_dir
    if not folder:
        return None
    return Adapters(
        trtllm,
        Path(folder),
        dtype=str(facts.pretrained.get("dtype", "float16")),
        layers=int(facts.pretrained.get("num_hidden_layers") or 0),
        most_bytes=options.lora_cache_host_memory_bytes,
        prefetched=Path(options.lora_prefetch_dir) if options.lora_prefetch_dir else None,
    )


def make_executor(trtllm: Any, folder: Path, configuration: Any) -> Any:
    """Construct the executor; every rank of an engine does. Raises `LoadError` with what TensorRT-LLM says."""
    try:
        return trtllm.Executor(str(folder), trtllm.ModelType.DECODER_ONLY, configuration)
    except (RuntimeError, TypeError, ValueError) as error:
        raise LoadError(f"TensorRT-LLM cannot load this engine ({first_line(error)}); {_advice(str(error))}.") from None


def _advice(message: str) -> str:
    lowered = message.lower()
    if "out of memory" in lowered:
        return "free GPU memory, lower kv_cache_free_gpu_mem_fraction, or build for more GPUs"
    if "not compatible with this version of tensorrt" in lowered or "incompatible device" in lowered:
        return "compile it again on this machine, in the image that serves it"
    if "mpi" in lowered:
        return "see docs/engines/tensorrt_llm.md on starting the ranks"
    return "compile it again in the image that serves it"


def capabilities_of(
    trtllm: Any, options: TensorRtLlmOptions, facts: EngineFacts, guided: bool
) -> frozenset[Capability]:
    """What this engine, in this release and with these options, can do."""
    speculative = facts.speculative_mode != "none" or bool(options.decoding_mode in ("medusa", "lookahead", "eagle"))
    wanted = {
        Capability.BEAM_SEARCH: options.max_beam_width > 1,
        Capability.PREFIX_CACHE: reuse_enabled(options, facts),
        Capability.CACHE_SALT: accepts(trtllm.Request, "cache_salt_id"),
        Capability.LORA: bool(options.lora_dir or options.lora_prefetch_dir),
        Capability.SPECULATIVE: speculative,
        Capability.NEVER_PREEMPTS: options.batch_scheduler_policy == "guaranteed_no_evict",
    }
    found = ALWAYS | {capability for capability, has in wanted.items() if has}
    return found | GUIDED if guided else found


def compiled_info(
    facts: EngineFacts,
    options: TensorRtLlmOptions,
    version: str,
    capabilities: frozenset[Capability],
    max_running: int,
) -> EngineInfo:
    """What the engine tells the backend about itself."""
    places = facts.limit("max_batch_size")
    for lower in (options.max_batch_size, max_running):
        places = min(places, lower) if lower else places
    context = context_of(facts)
    vocab_size = int(facts.pretrained["vocab_size"])
    return EngineInfo(
        name="tensorrt_llm",
        version=version,
        vocab_size=vocab_size,
        max_seq_len=min(context, options.max_seq_len) if options.max_seq_len else context,
        max_running=places,
        block_size=int(facts.plugins.get("tokens_per_block") or 32),
        blocks_total=0,  # TensorRT-LLM reserves by itself
        stop_token_ids=end_tokens(facts.folder, vocab_size),
        capabilities=capabilities,
        max_beam_width=options.max_beam_width,
    )


def end_tokens(folder: Path, vocab_size: int) -> tuple[int, ...]:
    """The model's end-of-sequence tokens. Raises `LoadError` where nothing says them: engines do not hold them."""
    found = stop_token_ids(folder, vocab_size)
    if not found:
        raise LoadError(
            "the engine directory does not say which token ends a text; copy the checkpoint's generation_config.json, "
            "tokenizer_config.json and tokenizer.json into it (trtllm-build does not)."
        )
    return found
