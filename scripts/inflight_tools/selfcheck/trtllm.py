"""The parts of the self-check that are TensorRT-LLM's own: facts, perplexity, trtllm-bench."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from inflight.engine_process.ranks import ENVIRONMENT as MPI_ENVIRONMENT
from inflight.engine_process.ranks import mpirun
from inflight.engines.tensorrt_llm.options import TensorRtLlmOptions
from inflight.engines.tensorrt_llm.probe import (
    DirectoryKind,
    directory_kind,
    engine_facts,
    read_config,
)
from inflight.errors import LoadError
from inflight_tools.load.prompts import prompts
from inflight_tools.selfcheck.kind import Setup
from inflight_tools.selfcheck.probes import PROBES
from inflight_tools.selfcheck.report import EngineReport
from inflight_tools.selfcheck.run import child_environment, result_of, run
from inflight_tools.selfcheck.serving import Check

PACKAGE, TARGET = "TensorRT-LLM", "tensorrt-llm"
CONCURRENCIES = "1,8,32"
FACTS_S, PROBE_S, PERPLEXITY_S, BENCH_S = 600, 600, 3600, 1800
PROMPT_TOKENS, ANSWER_TOKENS, REQUESTS = 64, 64, 128


def check_facts(setup: Setup) -> dict[str, Any]:
    """The table against the installed package, in a process of its own."""
    target = setup.output / "facts.json"
    facts = result_of(
        [sys.executable, "-m", "inflight_tools.selfcheck.facts", str(target)], target, FACTS_S, child_environment()
    )
    if "problem" in facts:
        return {"problem": f"tensorrt_llm cannot be looked into: {facts['problem']}"}
    return facts


def probe(setup: Setup, engine: Path | None) -> list[Check]:
    """What only a running library shows: of the library, or of one compiled engine of one rank.

    A question whose process hangs or dies is a fault, and the rest is asked in a new one.
    """
    try:
        if engine is not None and ranks_of(engine) != 1:
            return []
    except LoadError as error:
        return [Check("what only a running engine shows", False, str(error))]
    target = setup.output / (f"probes-{engine.name}.jsonl" if engine else "probes.jsonl")
    target.unlink(missing_ok=True)
    command = [sys.executable, "-m", "inflight_tools.selfcheck.probes", str(target), *([str(engine)] if engine else [])]
    checks: list[Check] = []
    assumed = {"end": "it shuts down"} | {each.name: each.assumed for each in PROBES}
    wanted = [each.name for each in PROBES if each.of_engine == (engine is not None)]
    for _ in range(len(wanted) + 1):  # each process answers one at least, or is blamed for one
        done = [check.name for check in checks]
        problem = run([*command, "--without", ",".join(done)], PROBE_S, {**child_environment(), **MPI_ENVIRONMENT})
        lines = (
            [json.loads(line) for line in target.read_text(encoding="utf-8").splitlines()] if target.is_file() else []
        )
        answered = {line["name"]: line for line in lines if "name" in line}
        begun = next((line["begun"] for line in reversed(lines) if "begun" in line), "start")
        checks = [
            Check(
                name,
                not answered[name]["problem"],
                answered[name]["problem"] or answered[name].get("note") or f"({assumed[name]})",
            )
            for name in [*wanted, "end"]
            if name in answered
        ] + [check for check in checks if check.name not in answered]
        if not problem or begun == "end":
            return [check for check in checks if check.name != "end" or not check.ok]
        checks.append(Check(begun, False, f"its process ended: {problem}"))
        if begun == "start":
            return checks
    return checks


def perplexity(setup: Setup, engine: Path) -> dict[str, Any]:
    """What `perplexity.py` finds, on as many ranks as the engine has."""
    target = setup.output / f"perplexity-{engine.name}.json"
    command = [sys.executable, "-m", "inflight_tools.selfcheck.perplexity", str(engine), str(target)]
    environment = child_environment()
    try:
        ranks = ranks_of(engine)
    except LoadError as error:
        return {"problem": str(error)}
    if ranks > 1:
        environment |= MPI_ENVIRONMENT
        command = [*mpirun(TensorRtLlmOptions(), ranks, environment), *command]
    return result_of(command, target, PERPLEXITY_S, environment)


def ranks_of(engine: Path) -> int:
    """Of a compiled engine; 0 for a checkpoint, whose ranks TensorRT-LLM starts by itself. Raises `LoadError`."""
    config = read_config(engine)
    return engine_facts(engine, config).world_size if directory_kind(config) is DirectoryKind.ENGINE else 0


def bench(setup: Setup, report: EngineReport) -> dict[str, Any]:
    """Throughput of trtllm-bench on the same engine with the load of our widest level, and ours as a share of it."""
    if shutil.which("trtllm-bench") is None:
        return {"note": "left out: trtllm-bench is not on PATH"}
    engine, output, model = Path(report.directory), setup.output, setup.model
    width, ours = widest(report.load or {})
    dataset, target = output / "bench.jsonl", output / f"bench-{report.name}.json"
    texts = islice(prompts("bench", PROMPT_TOKENS), REQUESTS)  # about a token a word
    rows = [{"task_id": number, "prompt": text, "output_tokens": ANSWER_TOKENS} for number, text in enumerate(texts)]
    dataset.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    try:
        compiled = ranks_of(engine) > 0
    except LoadError as error:
        return {"problem": str(error)}
    command = ["trtllm-bench", "--model", str(model), "--model_path", str(model if compiled else engine), "throughput"]
    command += ["--dataset", str(dataset), "--concurrency", str(width), "--streaming", "--report_json", str(target)]
    command += ["--backend", "tensorrt", "--engine_dir", str(engine)] if compiled else ["--backend", "pytorch"]
    found = result_of(command, target, BENCH_S)
    if "problem" in found:
        return found
    try:
        theirs = float(found["performance"]["system_output_throughput_tok_s"])
    except (ValueError, KeyError, TypeError) as error:
        return {"problem": f"its report has no throughput: {error!r}"}
    return {
        "concurrency": width,
        "trtllm_bench_tokens_per_s": theirs,
        "served_tokens_per_s": ours,
        "ratio": ours / theirs if ours is not None and theirs > 0 else None,
    }


def widest(load: Mapping[str, Any]) -> tuple[int, float | None]:
    """(concurrency, tokens/s) of the widest level that was measured; (32, None) where none was."""
    levels = load.get("levels") or []
    if not levels:
        return 32, None
    level = max(levels, key=lambda each: float(each["value"]))
    return int(level["value"]), float(level["tokens_per_s"])
