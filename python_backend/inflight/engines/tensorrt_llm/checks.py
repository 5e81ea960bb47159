"""Does this engine fit this machine? Every mismatch is one sentence that says what to do. Pure, but for the manifest.

Run before TensorRT-LLM is imported: its own errors come late, from C++, and name neither the image nor the command.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from inflight.engines.tensorrt_llm.limits import WORKSPACE, context_of
from inflight.engines.tensorrt_llm.options import (
    LOOKAHEAD_OPTIONS,
    SPECULATIVE_MODES,
    TensorRtLlmOptions,
    lookahead_drafts,
    lookahead_sizes,
)
from inflight.engines.tensorrt_llm.probe import DirectoryKind, EngineFacts, Gpu, Installed, installed_version
from inflight.errors import LoadError
from inflight.manifest import MANIFEST_NAME, Manifest, ManifestError, check, check_whole, rebuild_command

log = logging.getLogger("inflight.engine_worker")

COMPILE_AGAIN = "compile it again here (python -m build_engine compile)"
LAST_WITH_ENGINES = "TensorRT-LLM 1.2.1 (image tritonserver:26.04 to 26.07-trtllm-python-py3)"

# Triton images by the TensorRT-LLM release they carry (facts sheet, section 1.2).
IMAGES = {
    "0.21": "25.08",
    "1.0": "25.10",
    "1.1": "26.02",
    "1.2": "26.07",
}
MODE_OF_ENGINE = {
    "medusa": "medusa",
    "lookahead_decoding": "lookahead",
    "explicit_draft_tokens": "redrafter",
    "eagle": "eagle",
}


def check_manifest(folder: Path, gpus: Sequence[Gpu] | None) -> Manifest | None:
    """The directory's manifest, checked against the installed packages and the GPU; None where there is none (an engine
    that trtllm-build made by itself). Raises `LoadError`.
    """
    if not (folder / MANIFEST_NAME).is_file():
        log.warning("the engine directory has no %s: its files and packages cannot be verified", MANIFEST_NAME)
        return None
    capability = gpus[0].compute_capability if gpus else None
    try:
        manifest = check_whole(folder)
        if manifest.target == "tensorrt_llm":
            installed = {name: installed_version(name) for name in manifest.requires.packages}
            found = {name: version for name, version in installed.items() if version}
            return check(folder, target="tensorrt_llm", installed=found, compute_capability=capability)
    except ManifestError as error:
        raise LoadError(f"{error}.") from None
    return manifest


def check_engine(
    facts: EngineFacts, options: TensorRtLlmOptions, gpus: Sequence[Gpu] | None, manifest: Manifest | None
) -> None:
    """Raises `LoadError` with the first of `problems`."""
    for problem in problems(facts, options, gpus, manifest):
        raise LoadError(problem)


def problems(
    facts: EngineFacts, options: TensorRtLlmOptions, gpus: Sequence[Gpu] | None, manifest: Manifest | None
) -> Iterator[str]:
    """One sentence for each mismatch, the most telling first."""
    again = rebuild_command(facts.folder, manifest) if manifest is not None else COMPILE_AGAIN
    installed = installed_version("tensorrt_llm")
    if facts.version and installed and facts.version != installed:
        image = IMAGES.get(".".join(facts.version.split(".")[:2]))
        served = f", or serve in the image tritonserver:{image}-trtllm-python-py3" if image else ""
        yield (
            f"the engine was compiled by TensorRT-LLM {facts.version} and {installed} is installed; engines load "
            f"only in the release that made them: rebuild with {again}{served}."
        )
    world = facts.world_size
    missing = [rank for rank in range(world) if rank not in facts.ranks]
    if missing:
        yield (
            f"the engine was built for {world} GPUs and rank{missing[0]}.engine is missing; copy the whole directory "
            f"or rebuild with {again}."
        )
    if set(facts.ranks) - set(range(world)):
        yield (
            f"the engine's config.json is for {world} ranks but there are {len(facts.ranks)} rank files; rebuild with "
            f"{again}."
        )
    yield from _gpu_problems(facts, options, gpus, missing)
    yield from _build_problems(facts, again)
    yield from _option_problems(facts, options, again)


def _gpu_problems(
    facts: EngineFacts, options: TensorRtLlmOptions, gpus: Sequence[Gpu] | None, missing: Sequence[int]
) -> Iterator[str]:
    if gpus is None or missing:
        return
    world = facts.world_size
    here = -(-world // options.num_nodes)
    if not gpus:
        yield "no NVIDIA GPU is visible here (CUDA_VISIBLE_DEVICES, or the container's --gpus): TensorRT-LLM needs one."
        return
    if len(gpus) < here:
        yield (
            f"the engine needs {here} GPUs on this node and {len(gpus)} are visible; give the container more, or build "
            f"with --tensor-parallel {len(gpus)}."
        )
        return
    ids = options.gpu_device_ids if options.gpu_device_ids is not None else list(range(here))
    if len({*ids}) != here or len(ids) != here or any(not 0 <= each < len(gpus) for each in ids):
        yield f"gpu_device_ids names {ids}, but the engine needs {here} of the {len(gpus)} GPUs that are visible."
        return
    for rank in range(min(here, world)):
        gpu, needed = gpus[ids[rank]], int(facts.ranks[rank] * WORKSPACE * options.gpu_weights_percent)
        if gpu.free_bytes < needed:
            yield (
                f"rank {rank} of the engine needs {needed / 2**30:.1f} GiB and GPU {ids[rank]} ({gpu.name}) has "
                f"{gpu.free_bytes / 2**30:.1f} GiB free; end what else uses it, or build for more GPUs."
            )


def _build_problems(facts: EngineFacts, again: str) -> Iterator[str]:
    kind = str(facts.build.get("kv_cache_type", "PAGED")).lower().removeprefix("kvcachetype.")
    if kind != "paged":
        yield (
            f"the engine was built with kv_cache_type {kind} and in-flight batching needs paged; rebuild with {again}."
        )
    for plugin, flag in (("gpt_attention_plugin", "auto"), ("remove_input_padding", "enable")):
        value = facts.plugins.get(plugin, True)
        if value in (None, False, "disable"):
            yield (
                f"the engine was built without {plugin} and in-flight batching needs it; compile it again with "
                f"trtllm-build --{plugin} {flag}."
            )
    if facts.pretrained.get("architecture") in ("EncoderModel", "DecoderModel", "WhisperEncoder"):
        yield "the engine is an encoder-decoder model's; only decoder-only models are served."


def _option_problems(facts: EngineFacts, options: TensorRtLlmOptions, again: str) -> Iterator[str]:
    beams = facts.limit("max_beam_width")
    if options.max_beam_width > beams:
        yield (
            f"model parameter max_beam_width is {options.max_beam_width} and the engine was built for {beams}; lower "
            "it or rebuild with --max-beam-width."
        )
    yield from _cache_problems(facts, options)
    if options.gpu_weights_percent < 1 and not facts.build.get("weight_streaming"):
        yield (
            f"model parameter gpu_weights_percent is {options.gpu_weights_percent:g} and the engine keeps all its "
            "weights on the GPU; leave it out or compile again with trtllm-build --weight_streaming."
        )
    built_for = {name: facts.limit(name) for name in ("max_batch_size", "max_num_tokens")}
    for name, limit in {**built_for, "max_seq_len": context_of(facts)}.items():
        value = getattr(options, name)
        if value > limit:
            yield f"engine_options: {name} is {value} and the engine was built for {limit}; lower it."
    if options.participant_ids is not None and len(options.participant_ids) != facts.world_size:
        yield (
            f"model parameter participant_ids names {len(options.participant_ids)} ranks and the engine has "
            f"{facts.world_size}; name as many, or leave it out."
        )
    mode = facts.speculative_mode
    built = MODE_OF_ENGINE.get(mode, "")
    if options.decoding_mode in SPECULATIVE_MODES and options.decoding_mode != built:
        yield (
            f"model parameter decoding_mode is {options.decoding_mode} and the engine was built for "
            f"{built or 'none'}; set it so, or rebuild with --speculative."
        )
    if mode == "lookahead_decoding":
        yield from _lookahead_problems(facts, options)
    if mode != "none" and options.max_beam_width > 1:
        yield (
            f"model parameter max_beam_width is {options.max_beam_width} and the engine was built for speculative "
            f"decoding ({mode}), which works without beams only; set it to 1."
        )
    if (options.draft_engine_dir != "") != (mode == "draft_tokens_external"):
        if options.draft_engine_dir:
            yield (
                "draft_engine_dir needs an engine compiled with trtllm-build --speculative_decoding_mode "
                "draft_tokens_external; compile it so, or remove draft_engine_dir."
            )
        else:
            log.info("the engine can verify drafts; set draft_engine_dir to a smaller model's engine to use that")
    adapters = "lora_dir" if options.lora_dir else "lora_prefetch_dir"
    if (options.lora_dir or options.lora_prefetch_dir) and facts.plugins.get("lora_plugin") in (None, False, "disable"):
        yield (
            f"model parameter {adapters} is set and the engine was built without lora_plugin; remove it or compile "
            "again with trtllm-build --lora_plugin auto."
        )


def _cache_problems(facts: EngineFacts, options: TensorRtLlmOptions) -> Iterator[str]:
    """What of the KV cache is asked for and cannot be."""
    for name, wanted, able in (
        ("enable_kv_cache_reuse", options.enable_kv_cache_reuse, facts.can_reuse),
        ("enable_chunked_context", options.enable_chunked_context, facts.paged_context),
    ):
        if wanted and not able:
            yield f"model parameter {name} cannot be true: {_why_not_paged(facts)}."
    if facts.speculative_mode == "draft_tokens_external":
        if not facts.can_reuse:
            yield f"the engine verifies drafts, which needs KV reuse, and {_why_not_paged(facts)}."
        elif options.enable_kv_cache_reuse is False:
            yield (
                "model parameter enable_kv_cache_reuse is false and the engine verifies drafts, which needs KV reuse; "
                "leave it out."
            )
    if facts.paged_context and not options.kv_cache_onboard_blocks:
        yield (
            "model parameter kv_cache_onboard_blocks is false and the engine reads its KV cache block by block "
            "(use_paged_context_fmha), from the GPU alone; leave it out."
        )
    if facts.paged_context and options.sink_token_length:
        yield (
            "model parameter sink_token_length needs an engine without use_paged_context_fmha; leave it out or compile "
            "again with trtllm-build --use_paged_context_fmha disable."
        )


def _why_not_paged(facts: EngineFacts) -> str:
    """Why the engine has no KV reuse, and what to do: words after "cannot be true:"."""
    algo = str((facts.pretrained.get("quantization") or {}).get("quant_algo") or "no quantization")
    if facts.paged_context:
        return (
            "the engine was built with gather_context_logits, which needs whole prompts; leave it out or build without"
        )
    if facts.kv_kind and not (facts.kv_kind == "FP8" and algo in ("FP8", "W4A8_AWQ", "NVFP4")):
        return (
            f"TensorRT-LLM builds no paged-context attention for an {facts.kv_kind} KV cache with {algo}; leave it out "
            "or build again with --kv-cache none"
        )
    return (
        "the engine was built without use_paged_context_fmha; leave it out or compile again with trtllm-build "
        "--use_paged_context_fmha enable"
    )


def _lookahead_problems(facts: EngineFacts, options: TensorRtLlmOptions) -> Iterator[str]:
    sizes, built = lookahead_sizes(options), int(facts.build.get("max_draft_len") or 0)
    shown = ", ".join(f"{name} {size}" for name, size in zip(LOOKAHEAD_OPTIONS, sizes, strict=True))
    drafts = lookahead_drafts(sizes)
    if drafts > built:
        yield (
            f"lookahead decoding with {shown} drafts {drafts} tokens and the engine was built for {built} "
            f"(max_draft_len); set smaller sizes, or rebuild with --max-draft-len {drafts}."
        )


def check_way_in(kind: DirectoryKind, installed: Installed) -> None:
    """Whether this release can run this kind of directory at all. Raises `LoadError` with the sentence that helps."""
    if kind is DirectoryKind.ENGINE and installed.executor is None:
        raise LoadError(
            f"TensorRT-LLM {installed.version} cannot run compiled engines any more; serve this one with "
            f"{LAST_WITH_ENGINES}, or serve a Hugging Face-style checkpoint of the model (FP8 and others) here."
        )
    if kind is DirectoryKind.HUGGING_FACE and installed.llm is None:
        raise LoadError(
            f"TensorRT-LLM {installed.version} has no PyTorch flow that serves checkpoints (1.0 and later have); "
            "compile an engine with python -m build_engine build MODEL --target tensorrt-llm, or use a newer image."
        )


def check_checkpoint(config: Mapping[str, Any]) -> None:
    """Whether TensorRT-LLM reads a checkpoint's quantization as it is meant. Raises `LoadError`.

    It takes 8-bit compressed-tensors for FP8 (its public source), and would answer nonsense from integers.
    """
    quantization = config.get("quantization_config")
    if not isinstance(quantization, Mapping) or quantization.get("quant_method") != "compressed-tensors":
        return
    groups = quantization.get("config_groups")
    weights = [group.get("weights") for group in groups.values()] if isinstance(groups, Mapping) else []
    if any(isinstance(each, Mapping) and each.get("type") == "int" for each in weights):
        raise LoadError(
            "this checkpoint has integer weights in the compressed-tensors form, which TensorRT-LLM takes for FP8; "
            "serve it with vLLM (model parameter engine), or build it again with --quantization fp8."
        )


def check_draft(facts: EngineFacts, draft: EngineFacts, options: TensorRtLlmOptions) -> None:
    """Whether the two engines of a pair fit each other. Raises `LoadError`."""
    installed = installed_version("tensorrt_llm")
    if draft.version and installed and draft.version != installed:
        raise LoadError(
            f"the engine in draft_engine_dir was compiled by TensorRT-LLM {draft.version} and {installed} is "
            f"installed; {COMPILE_AGAIN}."
        )
    if 0 not in draft.ranks:
        raise LoadError("the engine in draft_engine_dir has no rank0.engine; copy the whole directory.")
    if draft.speculative_mode != "none":
        raise LoadError(
            f"the engine in draft_engine_dir was built for speculative decoding itself ({draft.speculative_mode}); "
            "compile it without --speculative."
        )
    if draft.pretrained.get("vocab_size") != facts.pretrained.get("vocab_size"):
        raise LoadError(
            f"the engine in draft_engine_dir has {draft.pretrained.get('vocab_size')} tokens in its vocabulary and the "
            f"model {facts.pretrained.get('vocab_size')}; a draft model has to share the model's tokenizer."
        )
    if facts.world_size > 1 or draft.world_size > 1:
        raise LoadError("draft_engine_dir works with engines for one GPU only; remove it or build both for one GPU.")
    longest = facts.build.get("max_draft_len", 0)
    if not 1 <= options.num_draft_tokens <= longest:
        raise LoadError(
            f"engine_options: num_draft_tokens is {options.num_draft_tokens} and the engine was built for 1 to "
            f"{longest} (max_draft_len)."
        )


def refuse_uncompiled(folder: Path) -> None:
    """For a directory that has weights in TensorRT-LLM's form and no engine yet."""
    raise LoadError(
        f"the engine in {folder} has not been compiled yet: run python -m build_engine compile {folder} --output "
        "ENGINE on the GPU host that will serve it."
    )
