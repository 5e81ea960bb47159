"""The parts of a self-check that need vLLM itself, under vLLM's Python and without Inflight's server or engine.

    python -m inflight_tools.selfcheck.vllm_child facts|perplexity|bench SPEC.json OUTPUT.json

The specification names the checkpoint, the engine_options of the served model and how many sequences may run, so that
vLLM gets the arguments that Inflight would give it. vllm.py writes it and reads the output.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from inflight.engines.vllm.load import Installed, check_checkpoint, import_vllm, load
from inflight.engines.vllm.options import engine_arguments, environment, read_options

COPIED = 256 << 20  # bytes: more than any cache holds
COPIES = 10


def start(spec: Mapping[str, Any], installed: Installed, **changed: Any) -> Any:
    """The LLMEngine with the arguments that Inflight would give it. Raises `LoadError`."""
    folder, options = Path(spec["engine"]), read_options({**spec["options"], **changed})
    longest = check_checkpoint(folder, options.max_seq_len)
    return load(installed, engine_arguments(folder, options, installed.facts, spec["max_running"], longest), None)


def perplexity(spec: Mapping[str, Any], installed: Installed) -> dict[str, Any]:
    """Negative log-likelihood in nats of all windows' tokens behind the first, and how many these are.

    vLLM gives the log-probability of every prompt token, of the model's own distribution. Without a prefix cache: of
    what is found there it gives none. Raises `RuntimeError` where some are missing.
    """
    engine = start(spec, installed, prefix_caching=False)
    params = installed.sampling_params(max_tokens=1, temperature=0.0, prompt_logprobs=0, detokenize=False)
    windows = {str(number): window for number, window in enumerate(spec["windows"])}
    for key, window in windows.items():
        engine.add_request(key, installed.tokens_input(window), params)
    loss, tokens = 0.0, 0
    while engine.has_unfinished_requests():
        for result in engine.step():
            if not result.finished:
                continue
            window, given = windows.pop(result.request_id), result.prompt_logprobs
            if given is None or len(given) != len(window):
                raise RuntimeError(f"log-probabilities of {len(given or ())} of {len(window)} tokens came")
            loss -= sum(float(each[token].logprob) for token, each in zip(window[1:], given[1:], strict=True))
            tokens += len(window) - 1
    if windows:
        raise RuntimeError(f"{len(windows)} windows were not answered")
    return {"loss": loss, "tokens": tokens}


def bench(spec: Mapping[str, Any], installed: Installed) -> dict[str, Any]:
    """Every level's requests with the times of their tokens, and the memory bandwidth of the same device."""
    on_cpu = installed.facts.on_cpu
    bandwidth = cpu_bandwidth(spec["cores"]) if on_cpu else 0.0  # before vLLM binds this process to some cores
    engine = start(spec, installed)
    first = [prompt[::-1] for prompt in spec["levels"][0]["prompts"][:2]]  # parts of vLLM compile at their first use
    drive(engine, installed, first, spec["max_tokens"], len(first))
    levels = []
    for level in spec["levels"]:
        requests = drive(engine, installed, level["prompts"], spec["max_tokens"], level["concurrency"])
        levels.append({"concurrency": level["concurrency"], "warmup": level["warmup"], "requests": requests})
    config = engine.vllm_config
    return {
        "version": installed.version,
        "dtype": str(config.model_config.dtype).removeprefix("torch."),
        "kv_cache_dtype": str(config.cache_config.cache_dtype),
        "devices": config.parallel_config.tensor_parallel_size,
        "bandwidth": bandwidth if on_cpu else gpu_bandwidth(),
        "bandwidth_of": f"numpy copies on {spec['cores']} cores" if on_cpu else "torch copies on the GPU",
        "levels": levels,
    }


def drive(
    engine: Any, installed: Installed, prompts: Sequence[list[int]], max_tokens: int, concurrency: int
) -> list[dict[str, Any]]:
    """Greedy answers of `max_tokens` tokens each, `concurrency` of them under way until no prompt is left.

    Times in nanoseconds. Raises `RuntimeError` for an answer that is shorter.
    """
    params = installed.sampling_params(
        max_tokens=max_tokens, temperature=0.0, ignore_eos=True, detokenize=False, output_kind=installed.delta
    )
    waiting = list(enumerate(prompts))[::-1]
    under_way: dict[str, dict[str, Any]] = {}
    ended = []
    while waiting or under_way:
        while waiting and len(under_way) < concurrency:
            number, prompt = waiting.pop()
            engine.add_request(str(number), installed.tokens_input(prompt), params)
            under_way[str(number)] = {"sent": time.time_ns(), "arrivals": [], "prompt_tokens": len(prompt)}
        outputs = engine.step()
        now = time.time_ns()
        for result in outputs:
            (completion,) = result.outputs
            if completion.token_ids:
                under_way[result.request_id]["arrivals"].append((now, len(completion.token_ids)))
            if result.finished:
                ended.append(under_way.pop(result.request_id))
    for request in ended:
        made = sum(count for _, count in request["arrivals"])
        if made != max_tokens:
            raise RuntimeError(f"an answer of {made} tokens came where {max_tokens} were asked for")
    return ended


def gpu_bandwidth() -> float:
    """Bytes read and written a second by copies within the GPU's memory; the median of `COPIES`."""
    import torch

    source = torch.zeros(COPIED, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    speeds: list[float] = []
    for _ in range(2 + COPIES):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        target.copy_(source)
        end.record()
        torch.cuda.synchronize()
        speeds.append(2 * COPIED / (begin.elapsed_time(end) / 1e3))
    return statistics.median(speeds[2:])


def cpu_bandwidth(cores: int) -> float:
    """Bytes read and written a second by numpy's copies, a thread for each core; the median of `COPIES`."""
    import numpy as np

    pairs = [(np.ones(COPIED // cores, np.uint8), np.empty(COPIED // cores, np.uint8)) for _ in range(cores)]
    speeds = []
    with ThreadPoolExecutor(cores) as pool:
        for _ in range(1 + COPIES):  # the first one touches the memory
            began = time.perf_counter()
            list(pool.map(lambda pair: np.copyto(pair[1], pair[0]), pairs))
            speeds.append(2 * (COPIED // cores) * cores / (time.perf_counter() - began))
    return statistics.median(speeds[1:])


def main() -> int:
    """Write what was found, or the reason why nothing was."""
    what, spec, output = sys.argv[1], json.loads(Path(sys.argv[2]).read_text(encoding="utf-8")), Path(sys.argv[3])
    try:
        installed = import_vllm(environment(read_options(spec["options"])))
        if what == "facts":
            from inflight_tools.selfcheck.vllm_facts import facts

            found = facts(installed.version, installed.facts.on_cpu, installed.engine_args)
        else:
            found = (perplexity if what == "perplexity" else bench)(spec, installed)
    except Exception as error:  # noqa: BLE001 — vLLM raises of all kinds, and whatever it is goes into the report
        output.write_text(json.dumps({"problem": f"{type(error).__name__}: {error}"}), encoding="utf-8")
        return 1
    output.write_text(json.dumps(found), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
