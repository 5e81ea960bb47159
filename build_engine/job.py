"""What a build passes to its target, and what it gets back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import inflight.manifest as manifest
from build_engine.cache import StageCache
from build_engine.console import Console
from build_engine.errors import UserMistake
from build_engine.planning.roofline import Parallel
from build_engine.quantization import Recipe
from build_engine.source import Source
from build_engine.stages import run_stage

Details = dict[str, str | int | float | bool | None]
OF_COMPILED_ENGINES = {
    "max_batch_size": "--max-batch-size",
    "max_input_len": "--max-input-len",
    "max_num_tokens": "--max-num-tokens",
    "max_beam_width": "--max-beam-width",
    "stop_after": "--stop-after",
    "gpu": "--gpu",
}
"""Options that say what an engine is compiled for; others take their limits when they are loaded."""


@dataclass(frozen=True, slots=True)
class BuildOptions:
    """The options of one build, as given on the command line; None means the target's default."""

    model: str
    target: str
    quantization: str
    output: Path
    kv_cache: str = "auto"
    parallel: Parallel = field(default_factory=Parallel)
    max_batch_size: int | None = None
    max_input_len: int | None = None
    max_seq_len: int | None = None
    max_num_tokens: int | None = None
    max_beam_width: int | None = None
    speculative: str = "none"
    max_draft_len: int = 0
    stop_after: str | None = None
    gpu: str | None = None
    processor: str | None = None
    device: str = "auto"
    smoothquant_alpha: float | None = None
    calibration_text: Path | None = None
    calibration_tokens: int | None = None
    force: bool = False
    verify_tokens: int = 0
    enforce_thresholds: bool = True
    accept_accuracy: bool = False
    cache: Path | None = None
    command: str = ""

    def refuse_limits(self, where: str) -> None:
        """Raise `UserMistake` for an option of compiled engines alone: "… is not for `where`"."""
        for name, flag in OF_COMPILED_ENGINES.items():
            if getattr(self, name) is not None:
                raise UserMistake(f"{flag} is not for {where}")

    def refuse_processor(self) -> None:
        """Raise `UserMistake` where no processor computes the products."""
        if self.processor is not None:
            raise UserMistake(f"--processor is not for --target {self.target}: it concerns OpenVINO only")


@dataclass(frozen=True, slots=True)
class Job:
    """One build at work: ``output`` is filled, ``scratch`` is thrown away, ``staged`` is what exporters read."""

    options: BuildOptions
    origin: Source
    recipe: Recipe
    kv_cache: str
    max_seq_len: int
    output: Path
    scratch: Path
    staged: Path
    log: Path
    console: Console
    source_sha256: str

    def run_stage(
        self, name: str, spec: dict[str, Any], output: Path, *, title: str, expected_s: float | None = None
    ) -> dict[str, Any]:
        """Run a stage that fills ``output``, or take what an earlier build made of the very same inputs."""
        cache = StageCache(self.options.cache)

        def work() -> dict[str, Any]:
            return run_stage(name, spec, console=self.console, log=self.log, title=title, expected_s=expected_s)

        result, found = cache.run(name, spec, self.source_sha256, output, work)
        if found:
            self.console.say(f"{title}: taken from an earlier build")
        return result


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a target made of a job, for the manifest; ``advice`` is said after the build."""

    target: manifest.Target
    quantization: manifest.Quantization
    limits: manifest.Limits
    requires: manifest.Requires
    verification: manifest.Verification | None
    details: Details
    parallelism: manifest.Parallelism = field(default_factory=manifest.Parallelism)
    stage: str = "engine"
    advice: str | None = None


class Target(Protocol):
    """Checks everything it can before any work, then builds."""

    def prepare(self, options: BuildOptions, origin: Source, recipe: Recipe, kv_cache: str) -> Callable[[Job], Outcome]:
        """Raise `UserMistake` for what cannot be built; return what builds it."""
        ...
