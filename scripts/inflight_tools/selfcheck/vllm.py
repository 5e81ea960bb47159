"""The parts of the self-check that are vLLM's own: facts, its perplexity, bare vLLM and the memory roofline.

vLLM lives in a Python of its own, so each part is a child process under that one (vllm_child.py).
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from build_engine import hf_config
from build_engine.planning import model_size
from build_engine.quantization import RECIPES as ALL_RECIPES
from inflight.engines.python import foreign_environment, python_executable
from inflight_tools.common.layout import BACKEND_SOURCE, REPOSITORY, SCRIPTS
from inflight_tools.load.lengths import Lengths
from inflight_tools.load.load_test import plan
from inflight_tools.load.perf_analyzer import Load
from inflight_tools.load.profile_export import Request
from inflight_tools.load.stats import LevelResult, Run, summarize
from inflight_tools.load.workload import PROBE, Workload, ratio_of_probe
from inflight_tools.selfcheck.kind import Setup
from inflight_tools.selfcheck.report import EngineReport
from inflight_tools.selfcheck.run import result_of
from inflight_tools.selfcheck.serving import Check
from inflight_tools.selfcheck.windows import beside_prediction, chosen_windows, described

PACKAGE, TARGET = "vLLM", "hf-quantized"
CONCURRENCIES = "1,4,16,64,256,512"
PROMPT_TOKENS, ANSWER_TOKENS = 64, 64
FACTS_S, PERPLEXITY_S, BENCH_S = 600, 1800, 7200
PERPLEXITY_RUNNING = 8  # windows of 512 tokens: more would only take memory


def child(setup: Setup, what: str, name: str, spec: Mapping[str, Any], limit_s: float) -> dict[str, Any]:
    """What `vllm_child` finds, under vLLM's Python."""
    python = setup.python or python_executable()
    given, target = setup.output / f"{what}{name}-spec.json", setup.output / f"{what}{name}.json"
    given.write_text(json.dumps({"options": dict(setup.options), **spec}), encoding="utf-8")
    environment = foreign_environment(Path(python), None)
    environment["PYTHONPATH"] = os.pathsep.join(str(path) for path in (BACKEND_SOURCE, REPOSITORY, SCRIPTS))
    command = [python, "-m", "inflight_tools.selfcheck.vllm_child", what, str(given), str(target)]
    return result_of(command, target, limit_s, environment)


def check_facts(setup: Setup) -> dict[str, Any]:
    """What the engine relies on, against the installed vLLM."""
    facts = child(setup, "facts", "", {}, FACTS_S)
    return {"problem": f"vLLM cannot be looked into: {facts['problem']}"} if "problem" in facts else facts


def probe(_setup: Setup, _engine: Path | None) -> list[Check]:
    """Nothing: vLLM's CPU build runs in development, so that no behaviour of it is only assumed."""
    return []


def perplexity(setup: Setup, engine: Path) -> dict[str, Any]:
    """As vLLM computes it, over the text and the windows of `verify`."""
    longest = hf_config.load(engine).max_position_embeddings
    spec = {
        "engine": str(engine),
        "max_running": PERPLEXITY_RUNNING,
        "windows": chosen_windows(engine, min(longest, int(setup.options.get("max_seq_len", 0)) or longest)),
    }
    found = child(setup, "perplexity", f"-{engine.name}", spec, PERPLEXITY_S)
    return found if "problem" in found else beside_prediction(engine, found["loss"], found["tokens"])


def bench(setup: Setup, report: EngineReport) -> dict[str, Any]:
    """Bare vLLM with the requests that load_test.py sent through tritonserver, and both against the roofline."""
    engine = Path(report.directory)
    spec = {
        "engine": str(engine),
        "max_running": max(setup.concurrencies),
        "max_tokens": ANSWER_TOKENS,
        "cores": len(os.sched_getaffinity(0)),
        "levels": [workload(engine, concurrency) for concurrency in setup.concurrencies],
    }
    found = child(setup, "bench", f"-{engine.name}", spec, BENCH_S)
    if "problem" in found:
        return found
    served = {int(level["value"]): level for level in (report.load or {}).get("levels", ())}
    step = StepBytes(engine, found["dtype"], found["kv_cache_dtype"])
    bandwidth = float(found["bandwidth"]) * int(found["devices"])  # tensor parallelism divides what is read
    levels = [
        level_row(bare_level(level), served.get(level["concurrency"], {}), step, bandwidth) for level in found["levels"]
    ]
    return {
        **{name: found[name] for name in ("version", "dtype", "kv_cache_dtype", "devices")},
        "bandwidth_gb_s": bandwidth / 1e9,
        "bandwidth_of": found["bandwidth_of"],
        "weights_gb": step.weights(1) / 1e9,
        "kv_bytes_per_token": step.keys_and_values(1),
        "levels": levels,
    }


def workload(engine: Path, concurrency: int) -> dict[str, Any]:
    """The token ids of what load_test.py sends at this level."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(engine / "tokenizer.json"))
    prompt, answer = (Lengths("fixed", count, count, count) for count in (PROMPT_TOKENS, ANSWER_TOKENS))
    work = Workload(prompt, answer, ratio_of_probe(len(tokenizer.encode(PROBE).ids)), seed=0)
    load = Load(concurrency=concurrency)
    count, warmup = plan(argparse.Namespace(requests=None, warmup=None), load)
    texts = [str(each["text_input"][0]) for each in work.requests(f"{load} run 0", warmup + count)]
    prompts = [encoding.ids for encoding in tokenizer.encode_batch(texts)]
    return {"concurrency": concurrency, "warmup": warmup, "prompts": prompts}


def bare_level(level: Mapping[str, Any]) -> LevelResult:
    """The figures of load_test.py, of bare vLLM's requests."""
    requests = [
        Request(
            sent=int(each["sent"]),
            arrivals=tuple((int(at), int(tokens)) for at, tokens in each["arrivals"]),
            ended=int(each["arrivals"][-1][0]),
            prompt_tokens=int(each["prompt_tokens"]),
        )
        for each in sorted(level["requests"], key=lambda each: int(each["sent"]))
    ]
    concurrency = int(level["concurrency"])
    return summarize(str(Load(concurrency=concurrency)), concurrency, [Run(requests, level["warmup"])], concurrency)


class StepBytes:
    """Bytes that a decode step of an engine reads: the memory side of build_engine's roofline.

    `dtype` and `kv_cache_dtype` are those that vLLM has settled on.
    """

    def __init__(self, engine: Path, dtype: str, kv_cache_dtype: str) -> None:
        about = described(engine)
        self._config = dataclasses.replace(hf_config.load(engine), dtype=dtype)
        self._recipe = ALL_RECIPES[about.quantization.recipe if about else "none"]
        self._kv_bits = 8 if kv_cache_dtype.startswith("fp8") else 8 * self._config.dtype_bytes

    def weights(self, sequences: int) -> int:
        """Of a step with that many sequences: they decide how many experts of a mixture are read."""
        width = self._config.dtype_bytes
        return model_size.bytes_read_per_step(self._config, self._recipe, sequences, width)

    def keys_and_values(self, length: int) -> int:
        """Of one sequence of `length` tokens."""
        return model_size.kv_bytes_per_sequence(self._config, self._kv_bits, length)

    def share(self, tokens_per_s: float, sequences: int, length: int, bandwidth: float) -> float:
        """Of the bandwidth: what decoding at this rate must have read a second. Time spent on prompts counts, what is
        read for them does not, so it is a lower bound.
        """
        step = self.weights(sequences) + sequences * self.keys_and_values(length)
        return step * tokens_per_s / sequences / bandwidth


def level_row(bare: LevelResult, served: Mapping[str, Any], step: StepBytes, bandwidth: float) -> dict[str, Any]:
    """One level: bare vLLM, what came through tritonserver where that was measured, and the ratio."""
    concurrency, length = int(bare.value), round(bare.prompt_tokens + ANSWER_TOKENS / 2)
    row: dict[str, Any] = {
        "concurrency": concurrency,
        "vllm_tokens_per_s": bare.tokens_per_s,
        "vllm_ttft_ms": bare.ttft.p50,
        "vllm_itl_ms": bare.itl.p50,
        "vllm_bandwidth_share": step.share(bare.tokens_per_s, concurrency, length, bandwidth),
    }
    if served:
        ours = float(served["tokens_per_s"])
        row |= {
            "served_tokens_per_s": ours,
            "served_ttft_ms": float(served["ttft"]["p50"]),
            "served_itl_ms": float(served["itl"]["p50"]),
            "served_bandwidth_share": step.share(ours, concurrency, length, bandwidth),
            "ratio": ours / bare.tokens_per_s,
        }
    return row
