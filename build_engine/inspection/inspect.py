"""Look at an engine directory and say what it is, whether it is whole, and what this machine can do with it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

import inflight.manifest as manifest
from build_engine.console import Console, format_bytes
from build_engine.errors import UserMistake
from build_engine.inspection import checkpoint
from build_engine.inspection.machine import compute_capabilities
from build_engine.stages import run_stage
from build_engine.verification.verify import as_text as verification_text
from build_engine.work_folder import work_folder


@dataclass(frozen=True, slots=True)
class Inspection:
    """``damaged`` and ``obstacles`` are sentences; an engine is usable here when both are empty."""

    directory: Path
    manifest: manifest.Manifest
    damaged: list[str]
    obstacles: list[str]
    fused: dict[str, Any] = field(default_factory=dict)

    @property
    def usable(self) -> bool:
        return not self.damaged and not self.obstacles


def inspect(directory: Path, *, benchmark: bool, console: Console) -> Inspection:
    """Read, hash and (where it can run) compile the engine. `UserMistake` when there is none."""
    try:
        described = manifest.read(directory)
    except manifest.ManifestError as error:
        raise UserMistake(str(error)) from None
    with console.step("hashing the files"):
        damaged = list(manifest.damaged_files(directory, described, deep=True))
    obstacles = find_obstacles(directory, described)
    if benchmark and described.target != "openvino":
        raise UserMistake("--benchmark-fusion times OpenVINO engines: this one is for " + described.target)
    fused: dict[str, Any] = {}
    if described.target == "openvino" and not damaged and not obstacles:
        fused = openvino_fusions(directory, described, benchmark, console)
    elif described.target == "tensorrt_llm":
        fused = tensorrt_fusions(directory)
    return Inspection(directory, described, damaged, obstacles, fused)


def find_obstacles(directory: Path, described: manifest.Manifest) -> list[str]:
    """What keeps this machine from running the engine, each with what to do."""
    found = []
    try:
        manifest.check_packages(directory, described, manifest.installed_version)
    except manifest.ManifestError as error:
        found.append(str(error))
    needed = described.requires.compute_capability
    if needed:
        here = compute_capabilities()
        if not here:
            found.append(f"it was compiled for compute capability {needed} and this machine shows no NVIDIA GPU")
        elif needed not in here:
            found.append(
                f"it was compiled for compute capability {needed} and this machine's GPU has {', '.join(here)}: "
                f"rebuild it here with {manifest.rebuild_command(directory, described)}"
            )
    if described.target == "tensorrt_llm" and described.stage == "checkpoint":
        found += checkpoint.obstacles(directory, described)
    ranks = described.parallelism.tensor * described.parallelism.pipeline
    if described.target != "openvino" and ranks > 1:
        gpus = len(compute_capabilities())
        if gpus < ranks:
            found.append(f"it is split over {ranks} GPUs and this machine shows {gpus}")
    return found


def openvino_fusions(
    directory: Path, described: manifest.Manifest, benchmark: bool, console: Console
) -> dict[str, Any]:
    spec = {
        "model": str((directory / "openvino_model.xml").resolve()),
        "kv_cache": described.quantization.kv_cache,
        "benchmark": benchmark,
    }
    with work_folder() as work:
        log = work / "inspect.log"
        return run_stage("inspect.openvino", spec, console=console, log=log, title="compiling the model")


def tensorrt_fusions(directory: Path) -> dict[str, Any]:
    """The fusion switches that ``trtllm-build`` recorded in the engine's config.json."""
    try:
        config = msgspec.json.decode((directory / "config.json").read_bytes(), type=dict[str, Any])
        plugins = config["build_config"]["plugin_config"]
    except (OSError, msgspec.DecodeError, KeyError, TypeError):
        return {}
    return {"plugins": {name: value for name, value in sorted(plugins.items()) if value not in (None, False)}}


def as_text(found: Inspection) -> str:
    """The inspection as a page of text."""
    described = found.manifest
    limits = described.limits
    size = sum(entry.bytes for entry in described.files)
    shown = (
        ("batch", limits.max_batch_size),
        ("input", limits.max_input_len),
        ("sequence", limits.max_seq_len),
        ("tokens a step", limits.max_num_tokens),
        ("beams", limits.max_beam_width),
    )
    lines = [
        f"{found.directory}: {described.source.name} ({described.source.architecture}) for {described.target}",
        f"weights: {described.quantization.recipe} ({described.quantization.algorithm}); "
        f"KV cache: {described.quantization.kv_cache}",
        f"parallelism: tensor {described.parallelism.tensor}, pipeline {described.parallelism.pipeline}; limits: "
        + ", ".join(f"{name} {value}" for name, value in shown if value is not None),
        f"files: {len(described.files)}, {format_bytes(size)}; built {described.built.date} by {described.built.by} "
        f"in {described.built.seconds:.0f} s: {described.built.command}",
        "accuracy: " + (verification_text(described.verification) if described.verification else "not measured"),
        "whole: " + ("yes, every hash is right" if not found.damaged else "NO: " + "; ".join(found.damaged)),
        "runs here: " + ("yes" if not found.obstacles else "no: " + "; ".join(found.obstacles)),
    ]
    if "kernels" in found.fused:
        lines += _openvino_lines(found.fused)
    if found.fused.get("plugins"):
        lines.append("fused by the compiler: " + ", ".join(f"{k}={v}" for k, v in found.fused["plugins"].items()))
    return "\n".join(lines)


def _openvino_lines(fused: dict[str, Any]) -> list[str]:
    lines = [
        f"graph: {fused['operations_before']} operations became {fused['kernels_after']} kernels"
        + (" (paged attention)" if fused["paged_attention"] else "")
    ]
    if fused["merged"]:
        merged = ", ".join(f"{name} x {count}" for name, count in sorted(fused["merged"].items()))
        lines.append(f"  merged by the builder: {merged}")
    for each in fused["absorbed"]:
        parts = (f"{name} {n['before']} -> {n['after']}" for name, n in each["operations"].items())
        lines.append(f"  {each['kernel']:<16} x {each['count']:<4} absorbed " + ", ".join(parts))
    alone = (f"{each['kernel']} {each['count']} ({each['precision']})" for each in fused["kernels"])
    lines.append("  all kernels: " + ", ".join(alone))
    timing = fused.get("benchmark")
    if timing:
        gain = timing["tokens_per_second_fused"] / timing["tokens_per_second_unfused"]
        lines.append(
            f"fusion: {timing['tokens_per_second_fused']} tokens/s with it ({timing['kernels_fused']} kernels), "
            f"{timing['tokens_per_second_unfused']} without RMSNorm, rotary and SwiGLU fusion "
            f"({timing['kernels_unfused']} kernels): {gain:.2f} times"
        )
    return lines


def as_json(found: Inspection) -> dict[str, Any]:
    data: dict[str, Any] = msgspec.to_builtins(found.manifest)
    return {
        "manifest": data,
        "whole": not found.damaged,
        "damaged": found.damaged,
        "runs_here": not found.obstacles,
        "obstacles": found.obstacles,
        "fused": found.fused,
    }
