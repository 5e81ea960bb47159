"""Verify an engine directory, or one that is being built."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

import inflight.manifest as manifest
from build_engine import devices, hf_config, source
from build_engine.console import Console, format_seconds
from build_engine.errors import AccuracyFailure, UserMistake
from build_engine.gguf_files.checkpoint import checkpoint_of
from build_engine.job import Job
from build_engine.source import Source
from build_engine.stages import run_stage
from build_engine.verification import corpus
from build_engine.verification.confidence import Part, interval
from build_engine.verification.corpus import Corpus
from build_engine.verification.thresholds import no_better_than_chance, too_far, way_out
from build_engine.vocabulary import TOKENIZER, check_vocabulary
from build_engine.weights_check import check_weights
from build_engine.work_folder import work_folder

DEFAULT_TOKENS = 20_000
BUILD_TOKENS = 1_024
"""``build`` measures on a short text, to tell a broken engine from a good one; ``verify`` measures properly."""

BUILD_PATIENCE_S = 180.0
"""How long ``build`` looks beyond one border of the configuration, by what is expected; ``verify`` takes the time."""

MOST_FAULTS = 20
"""How many phrases about tensors are kept."""

MOST_EXPONENT = 700.0
"""The exponential of more is no number any more."""

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
    patience_s: float = math.inf,
) -> tuple[manifest.Verification, dict[str, Any]]:
    """Run the comparison on ``device`` (as --device says it); returns the figures and all that the stage measured.

    A border of the configuration is left out, with a word, where looking beyond it is expected to take longer than
    ``patience_s``.
    """
    gigabytes = origin.weight_bytes / 1e9
    borders = [border for border in hf_config.borders(origin.config) if border < artifact.max_seq_len - 1]
    for border in list(borders):
        seconds = SECONDS_PER_GB_TOKEN * gigabytes * border
        if seconds > patience_s:
            borders.remove(border)
            console.warn(
                f"how near it is beyond {border} tokens is not measured here, which would take about "
                f"{format_seconds(seconds)}: build_engine verify does"
            )
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
        "borders": borders,
        **devices.in_spec(device),
    }
    expected = 6 + SECONDS_PER_GB_TOKEN * gigabytes * (tokens + sum(borders))
    result = run_stage("verify", spec, console=console, log=log, title="comparing with the source", expected_s=expected)
    if result["tokens"] < tokens:
        console.warn(f"the text has only {result['tokens']} tokens of the {tokens} asked for")
    missed = sorted({*borders} - {each["border"] for each in result["beyond"]})
    if missed:
        console.warn(f"the text is too short to look beyond {missed[0]} tokens")
    parts = [Part(*part) for part in result["parts"]]
    tokens_of = [part.tokens for part in parts]
    change = interval([(part.loss - part.reference_loss) / part.tokens for part in parts], tokens_of)
    divergence = interval([part.divergence / part.tokens for part in parts], tokens_of)
    bounded = math.isfinite(change.low) and change.high < MOST_EXPONENT
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
        perplexity_change=(round(math.expm1(change.low), 5), round(math.expm1(change.high), 5)) if bounded else None,
        mean_kl_low=round(divergence.low, 6) if math.isfinite(divergence.low) else None,
        beyond=[_beyond(each) for each in result["beyond"]],
        faults=result["faults"][:MOST_FAULTS],
    )
    return figures, result


def _beyond(measured: dict[str, Any]) -> manifest.Beyond:
    parts = [Part(*part) for part in measured["parts"]]
    divergence = interval([part.divergence / part.tokens for part in parts], [part.tokens for part in parts])
    return manifest.Beyond(
        border=measured["border"],
        tokens=measured["tokens"],
        mean_kl=round(divergence.mean, 6),
        mean_kl_low=round(divergence.low, 6) if math.isfinite(divergence.low) else round(divergence.mean, 6),
        greedy_agreement=round(measured["greedy_agreement"], 4),
    )


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
    origin = source.resolve(checkpoint_of(model, console))
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


def prove(artifact: Artifact, job: Job) -> manifest.Verification:
    """Measure what a build has made; raises `AccuracyFailure` (`require`)."""
    options, target = job.options, artifact.target
    figures, _ = measure(
        artifact,
        job.origin,
        job.staged,
        corpus.evaluation(),
        options.verify_tokens,
        job.console,
        job.log,
        options.device,
        patience_s=BUILD_PATIENCE_S,
    )
    enforce, accept = options.enforce_thresholds, options.accept_accuracy
    figures = require(target, job.recipe.name, figures, job.origin, enforce=enforce, accept=accept)
    if figures.accepted:
        job.console.warn(f"accepted although {figures.accepted}")
    return figures


def require(
    target: str, recipe: str, figures: manifest.Verification, origin: Source, *, enforce: bool, accept: bool = False
) -> manifest.Verification:
    """Raise `AccuracyFailure` when ``origin`` is noise, or, to ``enforce``, beyond the recipe's threshold; the message
    says what else can be done. With ``accept`` the figures that are given back say what was accepted.
    """
    noise = no_better_than_chance(figures, origin.config.vocab_size)
    if noise:
        raise AccuracyFailure(noise)
    problem = too_far(target, recipe, figures) if enforce else None
    if problem is None:
        return figures
    if accept:
        return msgspec.structs.replace(figures, accepted=problem)
    raise AccuracyFailure(
        f"the engine is too far from its source: {problem}; "
        f"{way_out(target, recipe, origin.config.model_type)}build_engine build --accept-accuracy keeps this one"
    )


def as_text(figures: manifest.Verification) -> str:
    ratio = figures.perplexity / figures.reference_perplexity
    size = f", weights {figures.size_ratio:.3f} of the source's size" if figures.size_ratio is not None else ""
    weights = ""
    if figures.weight_error is not None:
        weights = f", weights within {100 * figures.weight_error:.2g} % in every layer ({figures.worst_weight})"
    sure = ""
    if figures.perplexity_change is not None:
        low, high = figures.perplexity_change
        sure = f", surely {100 * low:+.2f} to {100 * high:+.2f} %"
    for each in figures.beyond:
        weights += f", beyond {each.border} tokens mean KL {each.mean_kl:.5f} on {each.tokens}"
    if figures.accepted:
        weights += f"; accepted although {figures.accepted}"
    return (
        f"perplexity {figures.perplexity:.3f} (source {figures.reference_perplexity:.3f}, {100 * (ratio - 1):+.2f} %"
        f"{sure}), "
        f"mean KL {figures.mean_kl:.5f} nats, greedy agreement {100 * figures.greedy_agreement:.2f} %{size}{weights}; "
        f"{figures.tokens} tokens of {figures.text}"
    )
