"""Checks on a GPU machine with TensorRT-LLM or vLLM what could not be checked where Inflight was written.

Compares every fact that Inflight relies on with the installed package, builds the model unquantized, FP8 and INT8,
serves each, asks for the contract, compares greedy tokens with transformers and perplexity with what `verify`
predicted, measures the load, runs trtllm-bench or bare vLLM beside it, and writes one report (Markdown and JSON). Exit
status: 0 all well, 2 something is not, 1 it could not run.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from build_engine.arguments import Parser
from build_engine.errors import UserMistake
from build_engine.inspection.machine import compute_capabilities
from build_engine.loading import dtype_word
from build_engine.tensorrt.gpu_kinds import check_gpus
from build_engine.verification import corpus
from inflight_tools.common.layout import CACHE, MODELS, SCRIPTS
from inflight_tools.common.report import Failure, run_main
from inflight_tools.selfcheck import trtllm, vllm
from inflight_tools.selfcheck.build import build
from inflight_tools.selfcheck.kind import Kind, Setup
from inflight_tools.selfcheck.report import EngineReport, Report
from inflight_tools.selfcheck.run import result_of
from inflight_tools.selfcheck.serving import Served, contract, greedy_agreement
from inflight_tools.server.server import Server, ServerConfig

KINDS: dict[str, Kind] = {"tensorrt_llm": trtllm, "vllm": vllm}
VLLM_PYTHON = CACHE / "vllm" / "bin" / "python"  # of scripts/install_vllm.sh
LOAD_S, READY_S = 1800, 900.0
RECIPES = ("none", "fp8", "int8-sq")
PARTS = {
    "facts": "what is relied on, against the installed package",
    "probes": "what only a running library shows (TensorRT-LLM)",
    "contract": "requests to the server",
    "transformers": "greedy tokens against transformers",
    "load": "load_test.py",
    "perplexity": "against what verify predicted",
    "bench": "trtllm-bench or bare vLLM, beside load",
}
SERVING = {"contract", "transformers", "load"}
POSITIONS = 96


def parse(arguments: Sequence[str] | None = None, program: str | None = None) -> argparse.Namespace:
    """Our options."""
    parser = Parser(prog=program, description=(__doc__ or "").split("\n", 1)[0])
    default = MODELS / "SmolLM2-135M-Instruct"
    parser.add_argument("--engine", choices=tuple(KINDS), default="tensorrt_llm", help="default: %(default)s")
    parser.add_argument("--model", type=Path, default=default, help="a Hugging Face checkpoint (default: SmolLM2)")
    parser.add_argument("--recipes", help=f"what to build (default: of {','.join(RECIPES)} what this GPU can have)")
    parser.add_argument(
        "--artifact", action="append", default=[], metavar="NAME=DIR", help="check this one instead of building"
    )
    parser.add_argument(
        "--python", metavar="PROGRAM", help="of vllm: its Python (default: that of .cache/vllm, else this one)"
    )
    parser.add_argument(
        "--engine-options", type=_options, default={}, metavar="JSON", help="engine_options of the served model"
    )
    levels = ", ".join(f"{kind.CONCURRENCIES} for {name}" for name, kind in KINDS.items())
    parser.add_argument("--concurrency", metavar="N,N", help=f"levels of load (default: {levels})")
    parser.add_argument("--output", type=Path, default=CACHE / "selfcheck", help="for the report and the engines")
    known = "; ".join(f"{name}: {what}" for name, what in PARTS.items())
    parser.add_argument(
        "--parts", type=_parts, default=set(PARTS), metavar="PART,PART", help=f"only these (default: all). {known}"
    )
    return parser.parse_args(arguments)


def recipes_to_build(options: argparse.Namespace, report: Report) -> list[str]:
    """Those that were asked for, else the usual ones; what no engine of this GPU can have is left out and said."""
    if options.recipes is not None:
        return [recipe for recipe in options.recipes.split(",") if recipe]
    found = []
    for recipe in RECIPES:
        try:
            if options.engine == "tensorrt_llm":
                check_gpus(recipe, "none", None, compute_capabilities())
            found.append(recipe)
        except UserMistake as mistake:
            report.machine[f"{recipe} left out"] = str(mistake)
    return found


def _options(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise argparse.ArgumentTypeError("must be a JSON object")
    return found


def setup_of(options: argparse.Namespace, output: Path) -> Setup:
    """What the parts are told. Raises `Failure`."""
    text = options.concurrency or KINDS[options.engine].CONCURRENCIES
    if not all(part.isdigit() and int(part) for part in text.split(",")):
        raise Failure(f"--concurrency must be numbers from 1 on, such as 1,4,16, but is {text!r}.")
    if options.python and options.engine != "vllm":
        raise Failure(f"--python is for vllm: {options.engine} runs in this Python.")
    if options.python and shutil.which(options.python) is None:
        raise Failure(f"--python names {options.python}, which cannot be run: name the bin/python of vLLM.")
    python = options.python or (str(VLLM_PYTHON) if options.engine == "vllm" and VLLM_PYTHON.exists() else "")
    python = os.path.abspath(shutil.which(python) or "") if python else ""  # a link stays one: it is the environment
    levels = tuple(sorted({int(part) for part in text.split(",")}))
    return Setup(options.model, output, levels, python, options.engine_options)


def _parts(text: str) -> set[str]:
    chosen = set(text.split(","))
    if not chosen <= set(PARTS):
        raise argparse.ArgumentTypeError(f"must be some of {','.join(PARTS)}")
    return chosen


def machine() -> dict[str, str]:
    """What this ran on."""
    found = {"python": platform.python_version(), "system": platform.platform(), "cores": str(os.cpu_count())}
    query = ["nvidia-smi", "--query-gpu=name,compute_cap,driver_version,memory.total", "--format=csv,noheader"]
    if shutil.which("nvidia-smi"):
        answer = subprocess.run(query, capture_output=True, encoding="utf-8", errors="replace", timeout=60, check=False)
        found["gpus"] = answer.stdout.strip().replace("\n", "; ")
    else:
        found["gpus"] = "no nvidia-smi here"
    return found


def serve(report: EngineReport, options: argparse.Namespace, setup: Setup) -> None:
    """Serve the engine and ask what was asked for of it."""
    output = setup.output
    repository = output / f"models-{report.name}"
    shutil.rmtree(repository, ignore_errors=True)
    (repository / "llm" / "1").mkdir(parents=True)
    values = {"engine": options.engine, "engine_dir": report.directory}
    if setup.options:
        values["engine_options"] = json.dumps(setup.options)
    if setup.python:
        values["engine_python"] = setup.python
    if options.engine == "vllm":  # as many as bare vLLM may run
        values["max_running"] = str(max(setup.concurrencies))
    parameters = "".join(
        f'parameters {{ key: "{name}" value {{ string_value: {json.dumps(value)} }} }}\n'
        for name, value in values.items()
    )
    (repository / "llm" / "config.pbtxt").write_text(
        'backend: "inflight"\nmax_batch_size: 0\nmodel_transaction_policy { decoupled: true }\n'
        "instance_group [ { count: 1, kind: KIND_CPU } ]\n" + parameters,
        encoding="utf-8",
    )
    with Server(ServerConfig(repository=repository, log=output / f"server-{report.name}.log")) as server:
        try:
            report.ready_s = server.wait_ready(READY_S)
        except Failure as failure:
            report.problem = str(failure)
            return
        served = Served(server.grpc_url, "llm")
        if "contract" in options.parts:
            report.checks = contract(served, capabilities_of(server.log))
        if "transformers" in options.parts:
            report.agreement = agreement(served, options.model, Path(report.directory))
        if "load" in options.parts:
            report.load = load(server, setup, output / f"load-{report.name}")


def capabilities_of(log: Path) -> frozenset[str]:
    """What the engine said it can do when it was ready; the supervisor logs it. Without it: what every engine can."""
    for line in log.read_text(errors="replace", encoding="utf-8").splitlines():
        if "capabilities:" in line:
            return frozenset(word.strip() for word in line.partition("capabilities:")[2].split(","))
    return frozenset({"parallel_sampling", "logprobs", "bad_words", "guided_json"})


def agreement(served: Served, model: Path, engine: Path) -> dict[str, Any]:
    """Greedy next tokens against transformers, beside what `verify` predicted when the engine was built."""
    try:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer, __version__
    except ImportError as error:
        return {"problem": f"{error}; install torch and transformers, or leave the part transformers out"}
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(model))
        reference = AutoModelForCausalLM.from_pretrained(str(model), **{dtype_word(__version__): torch.float32}).eval()
    except (OSError, ValueError) as error:
        return {"problem": f"transformers cannot load {model}: {str(error).splitlines()[0]}"}
    ids = [int(token) for token in tokenizer(corpus.evaluation().text[:6000])["input_ids"]][:768]

    def greedy(tokens: list[int]) -> list[int]:
        with torch.inference_mode():
            logits = reference(torch.tensor([tokens])).logits[0]
        return [int(token) for token in logits.argmax(-1)]

    try:
        share, asked = greedy_agreement(served, greedy, ids, POSITIONS)
    except Failure as failure:
        return {"problem": str(failure)}
    manifest = engine / "engine.json"
    predicted = (
        (json.loads(manifest.read_text(encoding="utf-8")).get("verification") or {}) if manifest.is_file() else {}
    )
    return {"measured": share, "positions": asked, "predicted": predicted.get("greedy_agreement")}


def load(server: Server, setup: Setup, output: Path) -> dict[str, Any]:
    """load_test.py at every concurrency, one after another: a level that fails leaves the others."""
    levels, problems = [], []
    for concurrency in setup.concurrencies:
        folder = output / str(concurrency)
        command = [sys.executable, str(SCRIPTS / "load_test.py"), "--url", server.grpc_url]
        command += ["--concurrency", str(concurrency), "--timeout", str(LOAD_S), "--output", str(folder)]
        found = result_of(command, folder / "results.json", LOAD_S)
        levels += found.get("levels", [])
        if "problem" in found:
            problems.append(f"concurrency {concurrency}: {found['problem']}")
    return {"levels": levels, **({"problem": "; ".join(problems)} if problems else {})}


def main(arguments: Sequence[str] | None = None, program: str | None = None) -> int:
    """Everything in order; one part's trouble does not end the others."""
    options = parse(arguments, program)
    output: Path = options.output.resolve()
    output.mkdir(parents=True, exist_ok=True)
    own, setup = KINDS[options.engine], setup_of(options, output)
    report = Report(machine(), package=own.PACKAGE)
    if "facts" in options.parts:
        print("comparing facts …", flush=True)
        report.facts = own.check_facts(setup)
    if "probes" in options.parts:
        print("asking the library …", flush=True)
        report.probes = own.probe(setup, None)
        report.save(output)
    if not all("=" in item for item in options.artifact):
        raise Failure("--artifact must be NAME=DIR.")
    given = dict(item.split("=", 1) for item in options.artifact)
    names = list(given) or recipes_to_build(options, report)
    if not options.parts - {"facts"} or (options.parts <= {"facts", "probes"} and not given):
        names = []
    elif not given and not (options.model / "config.json").is_file():
        raise Failure(
            f"there is no checkpoint in {options.model}: give one with --model, or what is built with --artifact."
        )
    for name in names:
        print(f"engine {name} …", flush=True)
        known = EngineReport(name, str(Path(given[name]).resolve())) if given else None
        engine = known or build(setup, own.TARGET, name)
        report.engines.append(engine)
        if not engine.problem and options.parts & SERVING:
            serve(engine, options, setup)
        if not engine.problem and "probes" in options.parts:
            engine.checks += own.probe(setup, Path(engine.directory))
        if not engine.problem and "perplexity" in options.parts:
            engine.perplexity = own.perplexity(setup, Path(engine.directory))
        if not engine.problem and "bench" in options.parts:
            engine.bench = own.bench(setup, engine)
        report.save(output)  # after every engine, so that a crash loses little
    report.save(output)
    print(f"{'all well' if report.ok else 'NOT all well'}: {output / 'report.md'}")
    return 0 if report.ok else 2


if __name__ == "__main__":
    run_main(main)
