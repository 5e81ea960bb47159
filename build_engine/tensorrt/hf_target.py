"""Build a Hugging Face-style checkpoint, quantized or not: for vLLM, and for TensorRT-LLM's PyTorch flow."""

from __future__ import annotations

import shutil
from collections.abc import Callable

import inflight.manifest as manifest
from build_engine import devices, preflight, source
from build_engine.errors import UserMistake
from build_engine.job import BuildOptions, Details, Job, Outcome
from build_engine.prequantized import Prequantized, detect, served_by
from build_engine.quantization import SMOOTHED_CHECKPOINTS, Recipe, group_size_for
from build_engine.source import Source
from build_engine.tensorrt.target import (
    DEFAULT_ALPHA,
    DEFAULT_CALIBRATION_TOKENS,
    QUANTIZE_BASE_S,
    QUANTIZE_S_PER_GB,
)
from build_engine.verification import corpus
from build_engine.verification.verify import Artifact, prove

ALGORITHMS = {"fp8": "FP8", "nvfp4": "NVFP4", "int4-awq": "W4A16_AWQ", "w4a8-awq": "W4A8_AWQ", "int8-sq": "W8A8_INT8"}
"""ModelOpt's names, but for the last: that is the compressed-tensors format (`hf_int8`)."""


def prepare(options: BuildOptions, origin: Source, recipe: Recipe, kv_cache: str) -> Callable[[Job], Outcome]:
    """Check options, shapes, disk and memory; raises `UserMistake`."""
    options.refuse_limits("this target: the engine takes it when it loads the checkpoint")
    options.refuse_processor()
    if options.parallel.gpus > 1:
        raise UserMistake("this target writes one checkpoint for any number of GPUs: leave out the parallel options")
    if options.smoothquant_alpha is not None and recipe.name != "int8-sq":
        raise UserMistake("--smoothquant-alpha goes with --quantization int8-sq only")
    devices.for_stage(options.device)
    carried = detect(origin)
    if carried is not None:
        if carried.recipe is None:
            raise UserMistake(
                f"{origin.name} is quantized already ({carried.method}), which this target cannot carry through: "
                f"{served_by(carried)}give the checkpoint it was made from"
            )
        if carried.recipe != recipe.name or (options.kv_cache != "auto" and kv_cache != carried.kv_cache):
            raise UserMistake(
                f"{origin.name} is quantized already ({carried.method}, {carried.recipe}, KV cache {carried.kv_cache}) "
                f"and is not quantized twice: ask for --quantization {carried.recipe} to carry it through"
            )
        return lambda job: carry(job, carried)
    if recipe.name in ("none", "int8-sq") and kv_cache != "none":
        raise UserMistake(f"--quantization {recipe.name} writes no scales for an {kv_cache} KV cache: use fp8")
    if recipe.name == "none":
        if options.calibration_text is not None or options.calibration_tokens is not None:
            raise UserMistake("--quantization none is not calibrated: leave out the calibration options")
        preflight.check_disk(options.output, origin.weight_bytes, "this build")
        return plain
    if recipe.name == "int8-sq" and origin.config.model_type not in SMOOTHED_CHECKPOINTS:
        raise UserMistake(
            f"--quantization int8-sq is built for {', '.join(SMOOTHED_CHECKPOINTS)} here, and this model is "
            f"{origin.config.model_type}: use fp8"
        )
    group = None
    if recipe.group_sizes:
        widths = sorted(
            {origin.config.hidden_size, *mlp_widths(origin), origin.config.num_heads * origin.config.head_dim}
        )
        group = group_size_for(recipe, widths)
        if group is None:
            sizes = " or ".join(str(size) for size in recipe.group_sizes)
            raise UserMistake(
                f"--quantization {recipe.name} needs groups of {sizes}, and the model's widths are "
                f"{', '.join(str(width) for width in widths)}: use fp8"
            )
    preflight.check_disk(options.output, 2 * origin.weight_bytes, "this build")
    preflight.check_memory(preflight.MEMORY_BASE + round(2.5 * origin.weight_bytes), "this build")
    return lambda job: build(job, group)


def mlp_widths(origin: Source) -> set[int]:
    experts = origin.config.experts
    if experts is None:
        return {origin.config.intermediate_size}
    return {
        experts.intermediate_size,
        *([experts.shared_intermediate_size] if experts.shared_intermediate_size else []),
    }


def build(job: Job, group: int | None) -> Outcome:
    """Quantize into ``job.output``."""
    options = job.options
    text = corpus.from_file(options.calibration_text) if options.calibration_text else corpus.calibration()
    alpha = DEFAULT_ALPHA if options.smoothquant_alpha is None else options.smoothquant_alpha
    result = job.run_stage(
        "tensorrt.hf_int8" if job.recipe.name == "int8-sq" else "tensorrt.hf_checkpoint",
        {
            "staged": str(job.staged),
            "output": str(job.output),
            "recipe": job.recipe.name,
            "kv_cache": job.kv_cache,
            "group_size": group if job.recipe.name.endswith("awq") else None,
            "alpha": alpha if job.recipe.name == "int8-sq" else 0.0,
            "tokenizer": str(job.output / "tokenizer.json"),
            "calibration_text": text.text,
            "calibration_tokens": options.calibration_tokens or DEFAULT_CALIBRATION_TOKENS,
            "max_seq_len": job.max_seq_len,
            **devices.in_spec(options.device),
        },
        job.output,
        title=f"quantizing for vLLM and tensorrt_llm.LLM ({job.recipe.name})",
        expected_s=QUANTIZE_BASE_S + QUANTIZE_S_PER_GB * job.origin.weight_bytes / 1e9,
    )
    details: Details = {"quant_algo": ALGORITHMS[job.recipe.name], "calibration_text": text.name}
    details["calibration_tokens"] = result["calibration_tokens"]
    algorithm = ALGORITHMS[job.recipe.name] + (f", group {group}" if group else "")
    if job.recipe.name == "int8-sq":
        details["smoothquant_alpha"] = alpha
        algorithm += f", alpha {alpha:g}"
    quantization = manifest.Quantization(
        recipe=job.recipe.name, algorithm=algorithm, kv_cache=job.kv_cache, details=details
    )
    return finish(job, quantization, {**result["packages"], "peak_memory_bytes": result["peak_bytes"]})


def plain(job: Job) -> Outcome:
    """Copy the checkpoint as it is, and measure what its own precision costs."""
    for path in job.origin.files():
        shutil.copyfile(path, job.output / path.name)
    algorithm = f"none ({job.origin.config.dtype})"
    return finish(job, manifest.Quantization(recipe="none", algorithm=algorithm, kv_cache="none"), {})


def finish(job: Job, quantization: manifest.Quantization, details: Details) -> Outcome:
    """Compare with the source, where the build is to, and describe."""
    options = job.options
    figures = None
    if options.verify_tokens:
        artifact = Artifact(job.output, job.output, "hf_quantized", quantization, job.max_seq_len)
        figures = prove(artifact, job)
    return Outcome(
        target="hf_quantized",
        quantization=quantization,
        limits=manifest.Limits(max_seq_len=job.max_seq_len),
        requires=manifest.Requires(),
        verification=figures,
        details=details,
    )


def carry(job: Job, carried: Prequantized) -> Outcome:
    """Copy a checkpoint that ModelOpt has quantized before; nothing is measured, for its source is not known."""
    for path in job.origin.files():
        shutil.copyfile(path, job.output / path.name)
    source.copy_tokenizer(job.origin, job.output, with_config=True)
    job.console.say(f"{job.origin.name} is quantized already ({carried.method}): carried through as it is")
    algorithm = ALGORITHMS[job.recipe.name]
    return Outcome(
        target="hf_quantized",
        quantization=manifest.Quantization(
            recipe=job.recipe.name, algorithm=f"{algorithm}, carried through", kv_cache=carried.kv_cache
        ),
        limits=manifest.Limits(max_seq_len=job.max_seq_len),
        requires=manifest.Requires(),
        verification=None,
        details={"carried": carried.method},
    )
