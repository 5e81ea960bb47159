"""Does this engine fit this machine? Every mismatch is one sentence that says what to do. Pure, but for the manifest.

Run before TensorRT-LLM is imported: its own errors come late, from C++, and name neither the image nor the command.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from inflight.engines.tensorrt_llm.limits import WORKSPACE
from inflight.engines.tensorrt_llm.option_checks import option_problems
from inflight.engines.tensorrt_llm.options import TensorRtLlmOptions
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
    yield from option_problems(facts, options)


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
