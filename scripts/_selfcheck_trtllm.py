"""The parts of the self-check that are TensorRT-LLM's own: facts, building an engine, its perplexity, trtllm-bench.

A self-check of another engine has the same four functions in a module of its own, and a line in gpu_selfcheck.KINDS.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from _layout import BACKEND_SOURCE, REPOSITORY
from _prompts import prompts
from _selfcheck_report import EngineReport

if str(BACKEND_SOURCE) not in sys.path:
    sys.path.append(str(BACKEND_SOURCE))
from inflight.engines.tensorrt_llm_mpi import ENVIRONMENT as MPI_ENVIRONMENT
from inflight.engines.tensorrt_llm_mpi import mpirun
from inflight.engines.tensorrt_llm_options import TensorRtLlmOptions
from inflight.engines.tensorrt_llm_probe import (
    DirectoryKind,
    directory_kind,
    engine_facts,
    read_config,
)

FACTS_S, BUILD_S, PERPLEXITY_S, BENCH_S = 600, 5400, 3600, 1800
RECIPES = ("none", "fp8", "int8-sq")
PROMPT_TOKENS, ANSWER_TOKENS, REQUESTS = 64, 64, 128


def run(command: Sequence[str], limit_s: float, **more: Any) -> tuple[str, str]:
    """(why it failed or "", what it printed). The reason is the last line of standard error."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit_s, check=False, **more)
    except subprocess.TimeoutExpired:
        return f"took longer than {limit_s:g} s", ""
    lines = done.stderr.strip().splitlines()
    return ((lines[-1] if lines else f"exit status {done.returncode}") if done.returncode else ""), done.stdout


def check_facts(output: Path) -> dict[str, Any]:
    """The table against the installed package, in a process of its own."""
    target = output / "facts.json"
    target.unlink(missing_ok=True)
    problem, _ = run([sys.executable, str(Path(__file__).with_name("_selfcheck_facts.py")), str(target)], FACTS_S)
    if problem or not target.is_file():
        return {"problem": f"tensorrt_llm cannot be looked into: {problem or 'nothing was written'}"}
    facts: dict[str, Any] = json.loads(target.read_text())
    return facts


def build(model: Path, recipe: str, output: Path) -> EngineReport:
    """Build one engine with build_engine."""
    directory = output / f"engine-{recipe}"
    report = EngineReport(recipe, str(directory))
    command = [sys.executable, "-m", "build_engine", "build", str(model), "--target", "tensorrt-llm"]
    command += ["--quantization", recipe, "--output", str(directory), "--force"]
    path = os.pathsep.join([str(REPOSITORY), str(BACKEND_SOURCE), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    began = time.monotonic()
    problem, _ = run(command, BUILD_S, cwd=REPOSITORY, env={**os.environ, "PYTHONPATH": path})
    report.built_s = time.monotonic() - began
    report.problem = f"build: {problem}" if problem else ""
    return report


def perplexity(engine: Path, output: Path) -> dict[str, Any]:
    """What `_selfcheck_perplexity.py` finds, on as many ranks as the engine has."""
    target = (output / f"perplexity-{engine.name}.json").resolve()
    target.unlink(missing_ok=True)
    command = [sys.executable, str(Path(__file__).with_name("_selfcheck_perplexity.py")), str(engine), str(target)]
    environment = dict(os.environ)
    config = read_config(engine)
    world = engine_facts(engine, config).world_size if directory_kind(config) is DirectoryKind.ENGINE else 1
    if world > 1:
        environment |= MPI_ENVIRONMENT
        command = [*mpirun(TensorRtLlmOptions(), world, environment), *command]
    problem, _ = run(command, PERPLEXITY_S, env=environment)
    if problem or not target.is_file():
        return {"problem": problem or "nothing was written"}
    found: dict[str, Any] = json.loads(target.read_text())
    return found


def bench(report: EngineReport, model: Path, output: Path) -> dict[str, Any]:
    """trtllm-bench on the same engine with the load of our widest level, and our share of its throughput."""
    if shutil.which("trtllm-bench") is None:
        return {"note": "left out: trtllm-bench is not on PATH"}
    engine = Path(report.directory)
    width, ours = widest(report.load or {})
    dataset, result = output / "bench.jsonl", output / f"bench-{report.name}.json"
    result.unlink(missing_ok=True)
    texts = islice(prompts("bench", PROMPT_TOKENS), REQUESTS)  # about a token a word
    rows = [{"task_id": number, "prompt": text, "output_tokens": ANSWER_TOKENS} for number, text in enumerate(texts)]
    dataset.write_text("".join(json.dumps(row) + "\n" for row in rows))
    compiled = directory_kind(read_config(engine)) is DirectoryKind.ENGINE
    command = ["trtllm-bench", "--model", str(model), "--model_path", str(model if compiled else engine), "throughput"]
    command += ["--dataset", str(dataset), "--concurrency", str(width), "--streaming", "--report_json", str(result)]
    command += ["--backend", "tensorrt", "--engine_dir", str(engine)] if compiled else ["--backend", "pytorch"]
    problem, _ = run(command, BENCH_S)
    if problem:
        return {"problem": problem}
    try:
        theirs = float(json.loads(result.read_text())["performance"]["system_output_throughput_tok_s"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        return {"problem": f"its report cannot be read: {error!r}"}
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
