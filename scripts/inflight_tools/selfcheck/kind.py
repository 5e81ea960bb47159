"""What a self-check was asked for, and what an engine's own module has to bring to take part in it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from inflight_tools.selfcheck.report import EngineReport
from inflight_tools.selfcheck.serving import Check


@dataclass(frozen=True, slots=True)
class Setup:
    """`python` runs the engine where it has an environment of its own (empty: this one); `options` are the
    engine_options of the served model; `concurrencies` the levels of load.
    """

    model: Path
    output: Path
    concurrencies: tuple[int, ...]
    python: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)


class Kind(Protocol):
    """An engine's module: `selfcheck.trtllm` and `selfcheck.vllm`."""

    PACKAGE: str  # as people call it
    TARGET: str  # of build_engine
    CONCURRENCIES: str

    def check_facts(self, setup: Setup) -> dict[str, Any]:
        """What the engine relies on, against the installed package: version, profile, checked, findings; or problem."""

    def probe(self, setup: Setup, engine: Path | None) -> list[Check]:
        """What only the running library shows, or with it one engine."""

    def perplexity(self, setup: Setup, engine: Path) -> dict[str, Any]:
        """As the engine's own library computes it, beside the predicted one."""

    def bench(self, setup: Setup, report: EngineReport) -> dict[str, Any]:
        """The library without Inflight, at the load that was measured through tritonserver."""
