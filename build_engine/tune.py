"""The ``tune`` command: a few recipes for one model side by side, and which of them are worth having."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from build_engine import svg
from build_engine.architectures import OPENVINO, TENSORRT_LLM
from build_engine.build import build
from build_engine.console import Console, format_bytes
from build_engine.errors import BuilderError, UserMistake
from build_engine.inspection.inspect import openvino_fusions
from build_engine.job import BuildOptions
from build_engine.quantization import BY_TARGET


@dataclass(frozen=True, slots=True)
class Trial:
    """One recipe's figures; ``tokens_per_second`` only where the engine runs here; ``problem`` when it failed."""

    recipe: str
    bytes: int = 0
    perplexity: float = float("nan")
    reference_perplexity: float = float("nan")
    mean_kl: float = float("nan")
    greedy_agreement: float = float("nan")
    tokens_per_second: float | None = None
    build_seconds: float = 0.0
    problem: str | None = None


def tune(
    model: str, target: str, recipes: Sequence[str], *, tokens: int, cache: Path | None, console: Console
) -> list[Trial]:
    """Build, verify and (OpenVINO) time each recipe; a recipe that fails is reported and the others go on."""
    for recipe in recipes:
        if recipe not in BY_TARGET[target]:
            raise UserMistake(f"--quantization {recipe} cannot be built for {target}: {', '.join(BY_TARGET[target])}")
    work = Path(tempfile.mkdtemp(prefix="build_engine-tune-"))
    try:
        return [_try(model, target, recipe, work / recipe, tokens, cache, console) for recipe in recipes]
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _try(
    model: str, target: str, recipe: str, output: Path, tokens: int, cache: Path | None, console: Console
) -> Trial:
    options = BuildOptions(
        model=model,
        target=target,
        quantization=recipe,
        output=output,
        stop_after="checkpoint" if target == TENSORRT_LLM else None,
        verify_tokens=tokens,
        enforce_thresholds=False,
        cache=cache,
    )
    try:
        made = build(options, console)
        rate = None
        if target == OPENVINO:
            timing = openvino_fusions(output, made, benchmark=True, console=console)["benchmark"]
            rate = float(timing["tokens_per_second_fused"])
    except UserMistake:
        raise
    except BuilderError as error:
        return Trial(recipe, problem=str(error))
    finally:
        shutil.rmtree(output, ignore_errors=True)
    figures = made.verification
    assert figures is not None
    return Trial(
        recipe=recipe,
        bytes=sum(entry.bytes for entry in made.files if entry.path.endswith((".bin", ".safetensors"))),
        perplexity=figures.perplexity,
        reference_perplexity=figures.reference_perplexity,
        mean_kl=figures.mean_kl,
        greedy_agreement=figures.greedy_agreement,
        tokens_per_second=rate,
        build_seconds=made.built.seconds,
    )


def pareto(trials: Sequence[Trial]) -> set[str]:
    """Recipes that no other one beats in size and in KL divergence at once."""
    good = [trial for trial in trials if trial.problem is None]
    return {
        trial.recipe
        for trial in good
        if not any(
            other.bytes <= trial.bytes
            and other.mean_kl <= trial.mean_kl
            and (other.bytes, other.mean_kl) != (trial.bytes, trial.mean_kl)
            for other in good
        )
    }


def as_text(trials: Sequence[Trial]) -> str:
    """A table; a star marks the Pareto front of size against KL divergence."""
    front = pareto(trials)
    header = (
        f"  {'recipe':<10} {'weights':>9} {'perplexity':>20} {'mean KL':>9} {'greedy':>8} {'tokens/s':>9} {'build':>8}"
    )
    lines = [header]
    for trial in trials:
        if trial.problem:
            lines.append(f"  {trial.recipe:<10} failed: {trial.problem}")
            continue
        change = 100 * (trial.perplexity / trial.reference_perplexity - 1)
        rate = f"{trial.tokens_per_second:.0f}" if trial.tokens_per_second else "-"
        lines.append(
            f"{'*' if trial.recipe in front else ' '} {trial.recipe:<10} {format_bytes(trial.bytes):>9} "
            f"{f'{trial.perplexity:.3f} ({change:+.2f} %)':>20} {trial.mean_kl:>9.5f} "
            f"{100 * trial.greedy_agreement:>7.2f}% {rate:>9} {trial.build_seconds:>6.0f} s"
        )
    return "\n".join(lines)


def as_json(trials: Sequence[Trial]) -> list[dict[str, Any]]:
    """A dictionary per trial; figures that a failed one does not have are None, for JSON has no NaN."""
    front = pareto(trials)
    return [{**_known(asdict(trial)), "pareto": trial.recipe in front} for trial in trials]


def _known(figures: dict[str, Any]) -> dict[str, Any]:
    return {name: None if value != value else value for name, value in figures.items()}


def as_svg(trials: Sequence[Trial], title: str) -> str:
    """Size against KL divergence, the Pareto front joined."""
    front = pareto(trials)
    good = sorted((trial for trial in trials if trial.problem is None), key=lambda trial: trial.bytes)
    joined = [trial for trial in good if trial.recipe in front]
    others = [trial for trial in good if trial.recipe not in front]
    series = [
        svg.Series(
            name,
            [(trial.bytes / 1e6, trial.mean_kl) for trial in group],
            line=name == "Pareto front",
            labels=[trial.recipe for trial in group],
        )
        for name, group in (("Pareto front", joined), ("beaten", others))
        if group
    ]
    if not series:
        raise UserMistake("--plot has nothing to draw: every recipe failed")
    return svg.chart(title, svg.Axis("weights, MB"), svg.Axis("mean KL divergence, nats a token"), series)
