"""Verify an engine directory, or one that is being built."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

import inflight.manifest as manifest
from build_engine import devices, source
from build_engine.console import Console
from build_engine.errors import AccuracyFailure, UserMistake
from build_engine.source import Source
from build_engine.stages import run_stage
from build_engine.verification import corpus
from build_engine.verification.corpus import Corpus
from build_engine.verification.thresholds import no_better_than_chance, too_far
from build_engine.vocabulary import TOKENIZER, check_vocabulary
from build_engine.weights_check import check_weights
from build_engine.work_folder import work_folder

DEFAULT_TOKENS = 20_000
BUILD_TOKENS = 1_024
"""``build`` measures on a short text, to tell a broken engine from a good one; ``verify`` measures properly."""

SECONDS_PER_GB_TOKEN = 0.012
"""Expected seconds per GB of source weights and token, both sides together (2 cores)."""


@dataclass(frozen=True, slots=True)
class Artifact:
    """What is verified: the directory of the tokenizer, that of the weights, and what the manifest says or will say."""

    directory: Path
    weights: Path
    target: manifest.Target
    quantization: manifest.Quantization
    max_seq_len: int


def measure(
    artifact: Artifact,
    origin: Source,
    staged: Path,
    text: Corpus,
    tokens: int,
    console: Console,
    log: Path,
    device: str = "cpu",
) -> tuple[manifest.Verification, dict[str, Any]]:
    """Run the comparison on ``device`` (as --device says it); returns the figures and all that the stage measured."""
    spec = {
        "tokenizer": str(artifact.directory.resolve() / "tokenizer.json"),
        "directory": str(artifact.weights.resolve()),
        "target": artifact.target,
        "kv_cache": artifact.quantization.kv_cache,
        "max_seq_len": artifact.max_seq_len,
        "staged": str(staged),
        "weight_bytes": origin.weight_bytes,
        "text": text.text,
        "tokens": tokens,
        **devices.in_spec(device),
    }
    expected = 6 + SECONDS_PER_GB_TOKEN * tokens * origin.weight_bytes / 1e9
    result = run_stage("verify", spec, console=console, log=log, title="comparing with the source", expected_s=expected)
    if result["tokens"] < tokens:
        console.warn(f"the text has only {result['tokens']} tokens of the {tokens} asked for")
    figures = manifest.Verification(
        perplexity=round(result["perplexity"], 4),
        reference_perplexity=round(result["reference_perplexity"], 4),
        mean_kl=round(result["mean_kl"], 6),
        greedy_agreement=round(result["greedy_agreement"], 4),
        text=f"{text.name}, sha256 {text.sha256[:16]}",
        tokens=result["tokens"],
        weight_error=None if result["weight_error"] is None else round(result["weight_error"], 6),
        worst_weight=result["worst_weight"],
        size_ratio=round(weight_bytes(artifact.weights) / origin.weight_bytes, 4),
    )
    return figures, result


def weight_bytes(directory: Path) -> int:
    """Bytes of the artifact's weights (IR constants, or rank files)."""
    return sum(
        path.stat().st_size
        for path in directory.iterdir()
        if path.suffix == ".safetensors" or path.name == "openvino_model.bin"
    )


def verify(
    directory: Path,
    model: str,
    *,
    tokens: int,
    text: Path | None,
    record: bool,
    console: Console,
    device: str = "auto",
) -> tuple[manifest.Verification, str | None]:
    """Verify ``directory`` against ``model``; returns the figures and which threshold is passed, if any.

    With ``record`` the figures replace those in engine.json, unless the source is noise. Raises `UserMistake` for a
    damaged or foreign directory.
    """
    try:
        described = manifest.check_whole(directory)
    except manifest.ManifestError as error:
        raise UserMistake(str(error)) from None
    if described.target == "tensorrt_llm" and described.stage == "engine":
        raise UserMistake(f"{directory} is compiled and runs on its GPU only: verify the checkpoint it was made from")
    if described.target == "openvino":
        device = "cpu"
    origin = source.resolve(model)
    check_weights(origin)
    if origin.sha256() != described.source.sha256:
        console.warn(f"{model} is not the very checkpoint that this was built from ({described.source.name})")
    weights = directory / "checkpoint" if described.stage == "checkpoint" else directory
    artifact = Artifact(directory, weights, described.target, described.quantization, described.limits.max_seq_len)
    check_vocabulary(origin, console, directory / TOKENIZER)
    with work_folder() as work:
        staged = source.stage(origin, work / "staged")
        chosen = corpus.from_file(text) if text else corpus.evaluation()
        figures, _ = measure(artifact, origin, staged, chosen, tokens, console, work / "verify.log", device)
    noise = no_better_than_chance(figures, origin.config.vocab_size)
    if record and noise is None:
        manifest.write(directory, msgspec.structs.replace(described, verification=figures))
    return figures, noise or too_far(described.target, described.quantization.recipe, figures)


def require(target: str, recipe: str, figures: manifest.Verification, origin: Source, *, enforce: bool) -> None:
    """Raise `AccuracyFailure` when ``origin`` is noise, or, to ``enforce``, beyond the recipe's threshold."""
    noise = no_better_than_chance(figures, origin.config.vocab_size)
    if noise:
        raise AccuracyFailure(noise)
    problem = too_far(target, recipe, figures) if enforce else None
    if problem:
        raise AccuracyFailure(f"the engine is too far from its source: {problem}")


def as_text(figures: manifest.Verification) -> str:
    ratio = figures.perplexity / figures.reference_perplexity
    size = f", weights {figures.size_ratio:.3f} of the source's size" if figures.size_ratio is not None else ""
    weights = ""
    if figures.weight_error is not None:
        weights = f", weights within {100 * figures.weight_error:.2g} % in every layer ({figures.worst_weight})"
    return (
        f"perplexity {figures.perplexity:.3f} (source {figures.reference_perplexity:.3f}, {100 * (ratio - 1):+.2f} %), "
        f"mean KL {figures.mean_kl:.5f} nats, greedy agreement {100 * figures.greedy_agreement:.2f} %{size}{weights}; "
        f"{figures.tokens} tokens of {figures.text}"
    )
