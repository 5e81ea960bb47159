#!/usr/bin/env python3
"""Prints the table of docs/recipes.md from what `build_engine tune --json` wrote into docs/benchmarks/recipes."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from build_engine.arguments import Parser
from inflight_tools.common.layout import REPOSITORY
from inflight_tools.common.report import run_main

FOLDER = REPOSITORY / "docs" / "benchmarks" / "recipes"
TARGETS = ("openvino", "tensorrt-llm", "hf-quantized")


def trials(model: str, target: str) -> dict[str, Any]:
    """The trials of one run, by recipe; nothing where it was not run."""
    path = FOLDER / f"{model}-{target}.json"
    if not path.is_file():
        return {}
    return {trial["recipe"]: trial for trial in json.loads(path.read_text(encoding="utf-8"))}


def quality(trial: dict[str, Any] | None) -> str:
    """Perplexity, KL divergence and agreement as three cells."""
    if trial is None:
        return "| | |"
    if trial["problem"]:
        return "| failed | |"
    change = 100 * (trial["perplexity"] / trial["reference_perplexity"] - 1)
    agreement = 100 * trial["greedy_agreement"]
    return f"| {trial['perplexity']:.3f} ({change:+.2f} %) | {trial['mean_kl']:.4f} | {agreement:.1f} % "


def main(arguments: Sequence[str] | None = None) -> int:
    """See the module's text."""
    Parser(description=__doc__).parse_args(arguments)
    print(
        "| target | recipe | weights | SmolLM2: perplexity | mean KL | same greedy token | build | tokens/s "
        "| control model: perplexity | mean KL | same greedy token |"
    )
    print("|---" * 11 + "|")
    for target in TARGETS:
        control = trials("control", target)
        for recipe, trial in trials("smollm2", target).items():
            rate = f"{trial['tokens_per_second']:.0f}" if trial["tokens_per_second"] else ""
            size, seconds = f"{trial['bytes'] / 1e6:.0f} MB", f"{trial['build_seconds']:.0f} s"
            print(
                f"| {target} | {recipe} | {size} {quality(trial)}| {seconds} | {rate} {quality(control.get(recipe))}|"
            )
    return 0


if __name__ == "__main__":
    run_main(main)
