"""Build for OpenVINO: export, compress, verify."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import inflight.manifest as manifest
from build_engine import preflight, prequantized
from build_engine.errors import UserMistake
from build_engine.job import BuildOptions, Details, Job, Outcome
from build_engine.openvino import recipes
from build_engine.openvino.recipes import Compression
from build_engine.quantization import Recipe
from build_engine.source import Source
from build_engine.verification import corpus
from build_engine.verification.verify import Artifact, prove
from inflight import processor

DEFAULT_CALIBRATION_TOKENS = 4096
EXPORT_BASE_S, EXPORT_S_PER_GB = 9.0, 60.0
"""Expected time of the export: a constant for imports and so much per GB of weights (2 cores, int8)."""

GRAPH = "merged projections, folded zero points"
"""What is done to the graph beside compression: part of the stage's cache key, so no build takes an older graph."""

FOR_WIDENING = {"folded": "zero points folded", "cut": processor.PRODUCTS_CUT}
"""What engine.json calls what the export does for a processor that makes 32-bit numbers of stored integers."""


def prepare(options: BuildOptions, origin: Source, recipe: Recipe, kv_cache: str) -> Callable[[Job], Outcome]:
    """Check options, shapes, disk and memory; raises `UserMistake`."""
    options.refuse_limits("--target openvino: it concerns TensorRT-LLM only")
    if not recipe.calibrated and (options.calibration_text or options.calibration_tokens):
        raise UserMistake(f"--quantization {recipe.name} needs no calibration: leave out the calibration options")
    if options.smoothquant_alpha is not None and recipe.name != "int8-sq":
        raise UserMistake("--smoothquant-alpha goes with --quantization int8-sq only")
    if options.device == "cuda":
        raise UserMistake("--device cuda is not for --target openvino: it calibrates and verifies on the CPU")
    if options.parallel.gpus > 1:
        raise UserMistake("--target openvino builds for one machine: leave out the parallel options")
    if options.speculative != "none":
        raise UserMistake("--speculative is not for --target openvino: speculative decoding is set where it is served")
    prequantized.refuse(origin, "openvino")
    compression = recipes.compression_for(recipe, origin.config, options.smoothquant_alpha)
    preflight.check_disk(options.output, 2 * origin.weight_bytes, "this build")
    preflight.check_memory(preflight.MEMORY_BASE + round(2.5 * origin.weight_bytes), "this build")
    return lambda job: build(job, compression)


def calibration(job: Job, compression: Compression | None) -> dict[str, Any]:
    """The text that a calibrated recipe sees, and how many of its tokens."""
    if compression is None or not compression.calibrated:
        return {}
    options = job.options
    text = corpus.from_file(options.calibration_text) if options.calibration_text else corpus.calibration()
    return {
        "calibration_text": text.text,
        "calibration_tokens": options.calibration_tokens or DEFAULT_CALIBRATION_TOKENS,
        "tokenizer": str(job.output / "tokenizer.json"),
    }


def details(compression: Compression | None) -> Details:
    """What engine.json records of ``compression``."""
    if compression is None:
        return {}
    chosen = {"smoothquant_alpha": compression.alpha, "activation_group": compression.activation_group}
    return {**compression.arguments, **{name: value for name, value in chosen.items() if value is not None}}


def build(job: Job, compression: Compression | None) -> Outcome:
    """Export into ``job.output``."""
    served_by = job.options.processor or processor.kind()
    result = job.run_stage(
        "openvino.export",
        {
            "staged": str(job.staged),
            "output": str(job.output),
            "scratch": str(job.scratch),
            "compression": compression.arguments if compression else None,
            "smoothquant_alpha": compression.alpha if compression else None,
            "activation_group": compression.activation_group if compression else None,
            "widens": served_by == processor.AVX2,
            "graph": GRAPH,
            **calibration(job, compression),
        },
        job.output,
        title=f"exporting to OpenVINO ({job.recipe.name})",
        expected_s=EXPORT_BASE_S + EXPORT_S_PER_GB * job.origin.weight_bytes / 1e9,
    )
    if result["tokenizer_problem"]:
        job.console.warn(
            f"{result['tokenizer_problem']}: no OpenVINO tokenizer models were written, so guided decoding "
            "needs a tokenizer from elsewhere; everything else works"
        )
    for problem, count in result["apart"].items():
        job.console.say(f"not merged in {count} places: {problem}")
    quantization = manifest.Quantization(
        recipe=job.recipe.name,
        algorithm=compression.algorithm if compression else f"none ({job.origin.config.dtype})",
        kv_cache=job.kv_cache,
        details=details(compression),
    )
    figures = None
    if job.options.verify_tokens:
        artifact = Artifact(job.output, job.output, "openvino", quantization, job.max_seq_len)
        figures = prove(artifact, job)
    return Outcome(
        target="openvino",
        quantization=quantization,
        limits=manifest.Limits(max_seq_len=job.max_seq_len),
        requires=manifest.Requires(packages={"openvino": result["packages"]["openvino"]}),
        verification=figures,
        details={
            **result["packages"],
            "peak_memory_bytes": result["peak_bytes"],
            **{f"merged {name}": count for name, count in result["merged"].items()},
            "processor": served_by,
            **{done: result[key] for key, done in FOR_WIDENING.items() if result[key]},
        },
    )
