#!/usr/bin/env python3
"""Checks on a GPU machine with TensorRT-LLM what could not be checked where Inflight was written, in one command.

Compares every fact the stand-in relies on with the installed package, builds the model unquantized, FP8 and INT8,
serves each, asks for the contract, compares greedy tokens with transformers, measures the load, runs trtllm-bench
beside it, and writes one report (Markdown and JSON). Exit status: 0 all well, 2 something is not, 1 it could not run.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from _layout import CACHE, MODELS, REPOSITORY
from _report import Failure, run_main
from _selfcheck_serving import Check, Served, contract, greedy_agreement
from _server import Server, ServerConfig

FACTS_S, BUILD_S, LOAD_S, BENCH_S, READY_S = 600, 5400, 1800, 1800, 900.0
RECIPES = ("none", "fp8", "int8-sq")
POSITIONS = 96


@dataclass
class EngineReport:
    """One engine: how it was built, what it did."""

    name: str
    directory: str
    built_s: float | None = None
    problem: str = ""
    ready_s: float | None = None
    checks: list[Check] = field(default_factory=list)
    agreement: dict[str, Any] | None = None
    load: Any = None
    bench: str = ""

    @property
    def ok(self) -> bool:
        """Whether it was built and served, and every check held."""
        return not self.problem and all(check.ok for check in self.checks)


@dataclass
class Report:
    """The whole run."""

    machine: dict[str, str]
    facts: dict[str, Any] = field(default_factory=dict)
    engines: list[EngineReport] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether everything held."""
        return (
            not self.facts.get("problem") and not self.facts.get("findings") and all(each.ok for each in self.engines)
        )


def parse() -> argparse.Namespace:
    """Our options."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    default = MODELS / "SmolLM2-135M-Instruct"
    parser.add_argument("--model", type=Path, default=default, help="a Hugging Face checkpoint (default: SmolLM2)")
    parser.add_argument("--recipes", default=",".join(RECIPES), help="what to build (default: %(default)s)")
    parser.add_argument(
        "--engine", action="append", default=[], metavar="NAME=DIR", help="check this engine instead of building"
    )
    parser.add_argument("--output", type=Path, default=CACHE / "selfcheck", help="for the report and the engines")
    for name in ("facts", "load", "transformers", "bench"):
        parser.add_argument(f"--no-{name}", action="store_true", help=f"leave out: {name}")
    return parser.parse_args()


def machine() -> dict[str, str]:
    """What this ran on."""
    found = {"python": platform.python_version(), "system": platform.platform(), "cores": str(os.cpu_count())}
    query = ["nvidia-smi", "--query-gpu=name,compute_cap,driver_version,memory.total", "--format=csv,noheader"]
    if shutil.which("nvidia-smi"):
        answer = subprocess.run(query, capture_output=True, text=True, timeout=60, check=False)
        found["gpus"] = answer.stdout.strip().replace("\n", "; ")
    else:
        found["gpus"] = "no nvidia-smi here"
    return found


def check_facts(output: Path) -> dict[str, Any]:
    """The table against the package, in a process of its own."""
    target = output / "facts.json"
    target.unlink(missing_ok=True)
    command = [sys.executable, str(Path(__file__).with_name("_selfcheck_facts.py")), str(target)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=FACTS_S, check=False)
    except subprocess.TimeoutExpired:
        return {"problem": f"importing tensorrt_llm took longer than {FACTS_S} s"}
    if done.returncode or not target.is_file():
        lines = done.stderr.strip().splitlines()
        return {"problem": f"tensorrt_llm cannot be looked into: {lines[-1] if lines else done.returncode}"}
    facts: dict[str, Any] = json.loads(target.read_text())
    return facts


def build(model: Path, recipe: str, output: Path) -> EngineReport:
    """Build one engine with build_engine."""
    directory = output / f"engine-{recipe}"
    report = EngineReport(recipe, str(directory))
    command = [sys.executable, "-m", "build_engine", "build", str(model), "--target", "tensorrt-llm"]
    command += ["--quantization", recipe, "--output", str(directory), "--force"]
    began = time.monotonic()
    try:
        done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=BUILD_S, check=False)
    except subprocess.TimeoutExpired:
        report.problem = f"the build took longer than {BUILD_S} s"
        return report
    report.built_s = time.monotonic() - began
    if done.returncode:
        report.problem = "build: " + (done.stderr.strip().splitlines() or ["no message"])[-1]
    return report


def serve(report: EngineReport, options: argparse.Namespace, output: Path) -> None:
    """Serve the engine and ask everything of it."""
    repository = output / f"models-{report.name}"
    shutil.rmtree(repository, ignore_errors=True)
    (repository / "llm" / "1").mkdir(parents=True)
    parameter = 'parameters { key: "engine_dir" value { string_value: ' + json.dumps(str(report.directory)) + " } }\n"
    (repository / "llm" / "config.pbtxt").write_text(
        'backend: "inflight"\nmax_batch_size: 0\nmodel_transaction_policy { decoupled: true }\n'
        "instance_group [ { count: 1, kind: KIND_MODEL } ]\n" + parameter
    )
    with Server(ServerConfig(repository=repository, log=output / f"server-{report.name}.log")) as server:
        try:
            report.ready_s = server.wait_ready(READY_S)
        except Failure as failure:
            report.problem = str(failure)
            return
        served = Served(server.grpc_url, "llm")
        report.checks = contract(served, capabilities_of(server.log))
        if not options.no_transformers:
            report.agreement = agreement(served, options.model, Path(report.directory))
        if not options.no_load:
            report.load = load(server, output / f"load-{report.name}")


def capabilities_of(log: Path) -> frozenset[str]:
    """What the engine said it can do when it was ready; the supervisor logs it. Without it: what every engine can."""
    for line in log.read_text(errors="replace").splitlines():
        if "capabilities:" in line:
            return frozenset(word.strip() for word in line.partition("capabilities:")[2].split(","))
    return frozenset({"parallel_sampling", "logprobs", "bad_words", "guided_json"})


def agreement(served: Served, model: Path, engine: Path) -> dict[str, Any]:
    """Greedy next tokens against transformers, beside what `verify` predicted when the engine was built."""
    try:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer
    except ImportError as error:
        return {"problem": f"left out: {error}"}
    tokenizer = AutoTokenizer.from_pretrained(str(model))
    reference = AutoModelForCausalLM.from_pretrained(str(model), torch_dtype=torch.float32).eval()
    text = (REPOSITORY / "README.md").read_text(encoding="utf-8")[:6000]
    ids = [int(token) for token in tokenizer(text)["input_ids"]][:768]

    def greedy(tokens: list[int]) -> list[int]:
        with torch.inference_mode():
            logits = reference(torch.tensor([tokens])).logits[0]
        return [int(token) for token in logits.argmax(-1)]

    share, asked = greedy_agreement(served, greedy, ids, POSITIONS)
    manifest = engine / "engine.json"
    predicted = (json.loads(manifest.read_text()).get("verification") or {}) if manifest.is_file() else {}
    return {"measured": share, "positions": asked, "predicted": predicted.get("greedy_agreement")}


def load(server: Server, output: Path) -> Any:
    """load_test.py at three concurrencies."""
    command = [sys.executable, str(Path(__file__).with_name("load_test.py")), "--url", server.grpc_url]
    command += ["--concurrency", "1,8,32", "--output", str(output)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LOAD_S, check=False)
    results = output / "results.json"
    if done.returncode or not results.is_file():
        return {"problem": (done.stderr.strip().splitlines() or ["no message"])[-1]}
    return json.loads(results.read_text())


def bench(report: EngineReport, model: Path, output: Path) -> str:
    """trtllm-bench on the same engine, after the server has gone; its last lines."""
    if shutil.which("trtllm-bench") is None:
        return "left out: trtllm-bench is not on PATH"
    dataset = output / "bench.jsonl"
    lines = [json.dumps({"task_id": n, "prompt": "The sea " * 30, "output_tokens": 64}) for n in range(128)]
    dataset.write_text("\n".join(lines) + "\n")
    command = ["trtllm-bench", "--model", str(model), "--model_path", str(model), "throughput"]
    command += ["--dataset", str(dataset), "--engine_dir", report.directory, "--backend", "tensorrt"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=BENCH_S, check=False)
    return "\n".join((done.stdout + done.stderr).strip().splitlines()[-25:])


def markdown(report: Report) -> str:
    """The report for a person."""
    lines = ["# Self-check on a GPU machine", ""]
    lines += [f"- {name}: {value}" for name, value in report.machine.items()]
    lines += ["", "## Facts about TensorRT-LLM", ""]
    facts = report.facts
    if "problem" in facts:
        lines.append(f"**Not checked**: {facts['problem']}.")
    elif facts:
        lines.append(
            f"TensorRT-LLM {facts['version']} against profile {facts['profile']}: {facts['checked']} facts, "
            f"{len(facts['findings'])} do not hold."
        )
        lines += ["", "| fact | table | installed |", "|---|---|---|"] if facts["findings"] else []
        lines += [f"| {each['what']} | {each['table']} | {each['installed']} |" for each in facts["findings"]]
    for engine in report.engines:
        lines += ["", f"## Engine {engine.name}: {'well' if engine.ok else 'NOT well'}", ""]
        if engine.problem:
            lines.append(f"**{engine.problem}**")
        for label, value in (("built in", engine.built_s), ("ready after", engine.ready_s)):
            lines += [f"- {label} {value:.0f} s"] if value is not None else []
        lines += [f"- {'ok' if check.ok else 'FAILED'}: {check.name} {check.note}".rstrip() for check in engine.checks]
        if engine.agreement:
            lines.append(f"- greedy agreement with transformers: {json.dumps(engine.agreement)}")
        if engine.load:
            lines += ["", "```json", json.dumps(engine.load, indent=1)[:4000], "```"]
        if engine.bench:
            lines += ["", "trtllm-bench:", "```", engine.bench, "```"]
    return "\n".join(lines) + "\n"


def main() -> int:
    """Everything in order; one part's trouble does not end the others."""
    options = parse()
    output: Path = options.output.resolve()
    output.mkdir(parents=True, exist_ok=True)
    report = Report(machine())
    if not options.no_facts:
        print("comparing facts …", flush=True)
        report.facts = check_facts(output)
    given = dict(item.split("=", 1) for item in options.engine)
    if not given and not (options.model / "config.json").is_file():
        raise Failure(f"there is no checkpoint in {options.model}: give one with --model, or engines with --engine.")
    names = list(given) or [recipe for recipe in options.recipes.split(",") if recipe]
    for name in names:
        print(f"engine {name} …", flush=True)
        known = EngineReport(name, str(Path(given[name]).resolve())) if given else None
        engine = known or build(options.model, name, output)
        report.engines.append(engine)
        if not engine.problem:
            serve(engine, options, output)
        if not options.no_bench and not engine.problem:
            engine.bench = bench(engine, options.model, output)
        save(report, output)
    save(report, output)
    print(f"{'all well' if report.ok else 'NOT all well'}: {output / 'report.md'}")
    return 0 if report.ok else 2


def save(report: Report, output: Path) -> None:
    """Write both forms; after every engine, so that a crash loses little."""
    (output / "report.json").write_text(json.dumps({"ok": report.ok, **asdict(report)}, indent=1) + "\n")
    (output / "report.md").write_text(markdown(report), encoding="utf-8")


if __name__ == "__main__":
    run_main(main)
