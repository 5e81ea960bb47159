"""Build for TensorRT-LLM: quantize and write the checkpoint, prove it, compile it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import inflight.manifest as manifest
from build_engine import devices, preflight, prequantized
from build_engine.console import Console
from build_engine.errors import StageFailure, UserMistake
from build_engine.inspection.machine import compute_capabilities
from build_engine.job import BuildOptions, Details, Job, Outcome
from build_engine.planning.gpus import gpu_named
from build_engine.planning.plan import check_parallel
from build_engine.quantization import Recipe
from build_engine.source import Source
from build_engine.tensorrt import compile as compiler
from build_engine.tensorrt import config as checkpoint_config
from build_engine.tensorrt import gpu_kinds, recipes
from build_engine.tensorrt.compile import CompileLimits
from build_engine.verification import corpus
from build_engine.verification.verify import Artifact, prove

CHECKPOINT = "checkpoint"

DEFAULT_LIMITS = CompileLimits(
    max_batch_size=256, max_input_len=0, max_seq_len=0, max_num_tokens=8192, max_beam_width=1
)
DEFAULT_ALPHA = 0.85
DEFAULT_CALIBRATION_TOKENS = 8192
QUANTIZE_BASE_S, QUANTIZE_S_PER_GB = 20.0, 60.0


def prepare(options: BuildOptions, origin: Source, recipe: Recipe, kv_cache: str) -> Callable[[Job], Outcome]:
    """Check model, splits, limits, disk, memory and the compiler; raises `UserMistake` before any work."""
    if options.stop_after not in (None, CHECKPOINT):
        raise UserMistake(f"--stop-after {options.stop_after} is unknown: it can be {CHECKPOINT}")
    options.refuse_processor()
    prequantized.refuse(origin, "tensorrt-llm")
    if options.smoothquant_alpha is not None and recipe.name != "int8-sq":
        raise UserMistake("--smoothquant-alpha goes with --quantization int8-sq only")
    compiles_here = options.stop_after is None
    visible = compute_capabilities() if compiles_here else ()
    gpu_kinds.check_gpus(recipe.name, kv_cache, gpu_named(options.gpu) if options.gpu else None, visible)
    check_parallel(origin.config, options.parallel)
    recipes.check_model(origin.config, recipe, options.parallel)
    group = recipes.group_size(origin.config, recipe, options.parallel)
    limits = limits_for(options, origin)
    compiler.check_limits(limits)
    compiler.check_drafts(recipe.name, kv_cache, limits)
    if compiles_here:
        compiler.find_program()
    devices.for_stage(options.device)
    preflight.check_disk(options.output, 2 * origin.weight_bytes, "this build")
    preflight.check_memory(preflight.MEMORY_BASE + round(2.5 * origin.weight_bytes), "this build")
    return lambda job: build(job, group, limits)


def limits_for(options: BuildOptions, origin: Source) -> CompileLimits:
    """The limits asked for, with defaults where nothing was."""
    max_seq_len = options.max_seq_len or min(origin.config.max_position_embeddings, 8192)
    return CompileLimits(
        max_batch_size=options.max_batch_size or DEFAULT_LIMITS.max_batch_size,
        max_input_len=options.max_input_len or max_seq_len - 1,
        max_seq_len=max_seq_len,
        max_num_tokens=options.max_num_tokens or DEFAULT_LIMITS.max_num_tokens,
        max_beam_width=options.max_beam_width or DEFAULT_LIMITS.max_beam_width,
        speculative=options.speculative,
        max_draft_len=options.max_draft_len,
    )


def build(job: Job, group: int | None, limits: CompileLimits) -> Outcome:
    """Fill ``job.output`` with a checkpoint, and with engines unless the build stops after that."""
    options, origin = job.options, job.origin
    checkpoint = job.output / CHECKPOINT
    checkpoint.mkdir()
    compiler.say_what_lacks(job.recipe.name, job.kv_cache, job.console)
    windows = checkpoint_config.attention_windows(origin.config)
    alpha = DEFAULT_ALPHA if options.smoothquant_alpha is None else options.smoothquant_alpha
    text = corpus.from_file(options.calibration_text) if options.calibration_text else corpus.calibration()
    result = job.run_stage(
        "tensorrt.checkpoint",
        {
            "staged": str(job.staged),
            "output": str(checkpoint),
            "recipe": job.recipe.name,
            "kv_cache": job.kv_cache,
            "tensor": options.parallel.tensor,
            "pipeline": options.parallel.pipeline,
            "group_size": group,
            "alpha": alpha,
            "tokenizer": str(job.output / "tokenizer.json"),
            "calibration_text": text.text,
            "calibration_tokens": options.calibration_tokens or DEFAULT_CALIBRATION_TOKENS,
            "max_seq_len": limits.max_seq_len,
            "form": checkpoint_config.FORM,
            **devices.in_spec(options.device),
        },
        checkpoint,
        title=f"quantizing for TensorRT-LLM ({job.recipe.name})",
        expected_s=QUANTIZE_BASE_S + QUANTIZE_S_PER_GB * origin.weight_bytes / 1e9,
    )
    flags = compiler.choose_flags(origin.config, job.recipe.name, job.kv_cache, options.parallel, limits)
    recorded = {"flags": flags, "limits": asdict(limits), checkpoint_config.WINDOWS: windows}
    beside = checkpoint / checkpoint_config.FLAGS_FILE
    beside.unlink(missing_ok=True)  # it may be a link into the cache
    beside.write_text(json.dumps(recorded, indent=2) + "\n", encoding="utf-8")
    quantization = describe(job, group, alpha, text.name, result["calibration_tokens"])
    figures = None
    if options.verify_tokens:
        artifact = Artifact(job.output, checkpoint, "tensorrt_llm", quantization, limits.max_seq_len)
        figures = prove(artifact, job)
    details: Details = {**result["packages"], "peak_memory_bytes": result["peak_bytes"]}
    details["corrections"] = "; ".join(result["corrections"])
    outcome = Outcome(
        target="tensorrt_llm",
        stage="checkpoint",
        quantization=quantization,
        limits=manifest_limits(limits, windows),
        parallelism=manifest.Parallelism(tensor=options.parallel.tensor, pipeline=options.parallel.pipeline),
        requires=manifest.Requires(),
        verification=figures,
        details=details,
    )
    if options.stop_after == CHECKPOINT:
        words = compiler.command(f"{options.output}/{CHECKPOINT}", "ENGINE", flags)
        advice = (
            f"on the GPU host: python -m build_engine compile {options.output} --output ENGINE\n"
            f"which runs: {' '.join(words)}"
        )
        return replace(outcome, advice=advice)
    requires = compile_checkpoint(checkpoint, job.output, flags, options.parallel.gpus, job.console, job.log)
    shutil.rmtree(checkpoint)
    return replace(outcome, stage="engine", requires=requires)


def describe(job: Job, group: int | None, alpha: float, text: str, tokens: int) -> manifest.Quantization:
    """What was done, for the manifest."""
    recipe = recipes.RECIPES[job.recipe.name]
    details: Details = {"quant_algo": recipe.algo, "kv_cache_quant_algo": recipes.KV_ALGOS[job.kv_cache]}
    algorithm = recipe.algo or f"none ({job.origin.config.dtype})"
    if recipe.at_load:
        algorithm += ", quantized by TensorRT-LLM as it compiles"
    if group:
        details["group_size"] = group
        algorithm += f", group {group}"
    if job.recipe.name == "int8-sq":
        details["smoothquant_alpha"] = alpha
        algorithm += f", alpha {alpha:g}"
    if tokens:
        details["calibration_text"], details["calibration_tokens"] = text, tokens
    return manifest.Quantization(recipe=job.recipe.name, algorithm=algorithm, kv_cache=job.kv_cache, details=details)


def manifest_limits(limits: CompileLimits, windows: list[int] | None) -> manifest.Limits:
    return manifest.Limits(
        max_seq_len=limits.max_seq_len,
        max_batch_size=limits.max_batch_size,
        max_input_len=limits.max_input_len,
        max_num_tokens=limits.max_num_tokens,
        max_beam_width=limits.max_beam_width,
        max_attention_window=windows,
    )


def compile_checkpoint(
    checkpoint: Path, output: Path, flags: dict[str, str], world_size: int, console: Console, log: Path
) -> manifest.Requires:
    """Compile into ``output`` and return what the engine needs: this release, and this GPU's capability."""
    capabilities = compute_capabilities()
    workers = max(1, min(world_size, len(capabilities)))  # ranks that are compiled at a time need a GPU each
    flags = {**flags, "workers": str(workers)}
    compiler.run_compiler(checkpoint, output, flags, world_size=world_size, console=console, log=log)
    try:
        written = json.loads((output / "config.json").read_text(encoding="utf-8"))
        version = str(written["version"])
        mapping = written["pretrained_config"]["mapping"]
        paged = bool(written["build_config"]["plugin_config"]["use_paged_context_fmha"])
    except (OSError, ValueError, KeyError, TypeError):
        raise StageFailure(f"trtllm-build wrote a config.json that is no engine's (log: {log})") from None
    if int(mapping["world_size"]) != world_size:
        raise StageFailure(f"trtllm-build compiled for {mapping['world_size']} ranks instead of {world_size}")
    if flags.get("use_paged_context_fmha") == "enable" and not paged:
        console.say(
            f"TensorRT-LLM {version} has switched paged-context attention off: this engine has neither KV reuse nor "
            "chunked prefill; build the checkpoint again with --kv-cache none"
        )
    return manifest.Requires(
        packages={"tensorrt_llm": version}, compute_capability=capabilities[0] if capabilities else None
    )
