"""What a self-check on a GPU machine found: what of it is well, and the report, for a person and for a program."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from inflight_tools.selfcheck.serving import Check
from inflight_tools.selfcheck.tables import against_plain, bench_table

BENCHES = {"TensorRT-LLM": "trtllm-bench", "vLLM": "bare vLLM"}
"""What each library is driven with, where Inflight is not in between."""

AGREEMENT_SLACK = 0.1
"""How far the greedy agreement of the served engine may lie below what `verify` predicted. It is asked at 96 places, so
that its standard error near 0.9 is 0.03, and at other places than `verify` measured at: three of these are no fault.
"""

PERPLEXITY_SLACK = 0.05
"""How far the perplexity may be from the predicted one, as a share of it, either way. What `verify` does not imitate,
16-bit sums and fused FP8 attention, is smaller than the recipes' own error, for which it allows 0.5 to 8 %; a wrong
scale, or a text or a tokenizer other than those of the prediction, make many times as much.
"""


@dataclass
class EngineReport:
    """One engine: how it was built, what it did. A part that was not asked for is None; one that could not be carried
    out has a `problem`.
    """

    name: str
    directory: str
    built_s: float | None = None
    problem: str = ""
    ready_s: float | None = None
    checks: list[Check] = field(default_factory=list)
    agreement: dict[str, Any] | None = None
    perplexity: dict[str, Any] | None = None
    load: dict[str, Any] | None = None
    bench: dict[str, Any] | None = None

    def faults(self) -> Iterator[str]:
        """All that is not well, a phrase each."""
        if self.problem:
            yield self.problem
        for check in self.checks:
            if not check.ok:
                yield f"{check.name}: {check.note}"
        for part in ("agreement", "perplexity", "load", "bench"):
            found = getattr(self, part)
            if found is not None and found.get("problem"):
                yield f"{part}: {found['problem']}"
        yield from _disagreement(self.agreement or {})
        yield from _perplexity_fault(self.perplexity or {})

    @property
    def ok(self) -> bool:
        """Whether it was built and served, and everything that was asked held."""
        return not any(self.faults())


def _disagreement(found: dict[str, Any]) -> Iterator[str]:
    measured, predicted = found.get("measured"), found.get("predicted")
    if measured is None or predicted is None:
        return
    if not measured >= predicted - AGREEMENT_SLACK:
        yield f"greedy agreement {measured:.3f} where {predicted:.3f} was predicted"


def _perplexity_fault(found: dict[str, Any]) -> Iterator[str]:
    measured, predicted = found.get("measured"), found.get("predicted")
    if measured is None or predicted is None:
        return
    if not abs(measured / predicted - 1) <= PERPLEXITY_SLACK:  # also true for NaN
        yield f"perplexity {measured:.3f} where {predicted:.3f} was predicted"


@dataclass
class Report:
    """The whole run. `facts` is what comparing the table with the installed package gave, empty if it was left out;
    `package` is the library that runs the engines.
    """

    machine: dict[str, str]
    facts: dict[str, Any] = field(default_factory=dict)
    engines: list[EngineReport] = field(default_factory=list)
    package: str = "TensorRT-LLM"
    probes: list[Check] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether everything held."""
        known = not self.facts.get("problem") and not self.facts.get("findings")
        return known and all(each.ok for each in self.probes) and all(each.ok for each in self.engines)

    def save(self, output: Path) -> None:
        """Write report.json and report.md into `output`."""
        engines = [{**asdict(each), "ok": each.ok, "faults": list(each.faults())} for each in self.engines]
        content = {"ok": self.ok, "package": self.package, "machine": self.machine}
        content |= {"facts": self.facts, "probes": [asdict(each) for each in self.probes], "engines": engines}
        (output / "report.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        (output / "report.md").write_text(markdown(self), encoding="utf-8")


def markdown(report: Report) -> str:
    """The report for a person."""
    lines = [f"# Self-check of {report.package}", ""]
    lines += [f"- {name}: {value}" for name, value in report.machine.items()]
    facts = report.facts
    if facts:
        lines += ["", f"## Facts about {report.package}", ""]
    if "problem" in facts:
        lines.append(f"**Not checked**: {facts['problem']}.")
    elif facts:
        lines.append(
            f"{report.package} {facts['version']} against profile {facts['profile']}: {facts['checked']} facts, "
            f"{len(facts['findings'])} do not hold."
        )
        lines += ["", "| fact | table | installed |", "|---|---|---|"] if facts["findings"] else []
        lines += [f"| {each['what']} | {each['table']} | {each['installed']} |" for each in facts["findings"]]
    if report.probes:
        lines += ["", f"## What only a running {report.package} shows", ""]
        lines += [f"- {'ok' if each.ok else '**NOT so**'}: {each.name} {each.note}".rstrip() for each in report.probes]
    for engine in report.engines:
        lines += [
            "",
            f"## Engine {engine.name}: {'well' if engine.ok else 'NOT well'}",
            "",
            *_engine_lines(engine, report.package),
        ]
    lines += against_plain({engine.name: asdict(engine) for engine in report.engines})
    return "\n".join(lines) + "\n"


def _engine_lines(engine: EngineReport, package: str) -> Iterator[str]:
    for fault in engine.faults():
        yield f"- **{fault}**"
    for label, value in (("built in", engine.built_s), ("ready after", engine.ready_s)):
        if value is not None:
            yield f"- {label} {value:.0f} s"
    for check in engine.checks:
        if check.ok:
            yield f"- ok: {check.name} {check.note}".rstrip()
    for label, found in (
        ("greedy agreement with transformers", engine.agreement),
        (f"perplexity, as {package} computes it", engine.perplexity),
        (f"beside {BENCHES[package]}", engine.bench),
    ):
        if found and not found.get("problem"):
            single = {name: value for name, value in found.items() if value is not None and name != "levels"}
            yield f"- {label}: " + ", ".join(f"{name} {value}" for name, value in single.items())
    for level in (engine.load or {}).get("levels", ()):
        yield (
            f"- {level['load']}: {level['tokens_per_s']:.1f} tokens/s, TTFT {level['ttft']['p50']:.1f} ms, "
            f"ITL {level['itl']['p50']:.2f} ms (p50)"
        )
    yield from bench_table((engine.bench or {}).get("levels", ()))
