"""Perplexity of an engine as TensorRT-LLM computes it, over the text and the windows that `verify` predicted it on.

    python -m inflight_tools.selfcheck.perplexity ENGINE OUTPUT.json

Runs in processes of its own, one for each rank under mpirun, when no server has the GPU any more. A server cannot be
asked: it gives log-probabilities of tokens that it made, and perplexity takes those of a text's tokens. A compiled
engine gives the logits behind every prefix of the text (generation logits are a switch of the executor's, context
logits would have to be compiled in); a checkpoint gives the logits of a whole prompt. KV blocks are not reused: with
reuse, context logits are those of the rest of the prompt only (issue 1577 of NVIDIA/Model-Optimizer).
"""

from __future__ import annotations

import datetime
import importlib
import json
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from inflight.engines.tensorrt_llm.config import executor_config
from inflight.engines.tensorrt_llm.create import make_executor
from inflight.engines.tensorrt_llm.options import read_options
from inflight.engines.tensorrt_llm.probe import (
    DirectoryKind,
    Installed,
    directory_kind,
    engine_facts,
    import_installed,
    read_config,
)
from inflight_tools.selfcheck.windows import Windows, beside_prediction, chosen_windows, described

AT_ONCE = 64  # prefixes under way: their logits wait in host memory, half a megabyte each
WAIT_S = 120.0
Losses = Iterator[tuple[float, int]]  # sums of negative log-likelihoods in nats, and of how many tokens


def loss(logits: Any, targets: Sequence[int]) -> float:
    """Negative log-likelihood of `targets` under rows of logits; the rows may be padded behind the vocabulary."""
    import torch

    rows = torch.log_softmax(logits.float(), dim=-1).double().cpu()
    return -float(rows.gather(1, torch.tensor(targets)[:, None]).sum())


def of_compiled(folder: Path, config: dict[str, Any], installed: Installed, chosen: Windows) -> Losses | None:
    """Every prefix is a request for one token, whose logits are those of the text's next one. None on ranks that only
    help. Raises `RuntimeError` with what TensorRT-LLM says.
    """
    trtllm, facts = installed.executor, engine_facts(folder, config)
    configuration = executor_config(trtllm, read_options({"enable_kv_cache_reuse": False}), facts, None)
    if not hasattr(trtllm.ExecutorConfig, "gather_generation_logits"):  # it would take any name without a word
        raise RuntimeError("this ExecutorConfig has no gather_generation_logits")
    configuration.gather_generation_logits = True
    executor = make_executor(trtllm, folder, configuration)
    if not executor.can_enqueue_requests():
        executor.shutdown()
        return None
    return _follow(trtllm, executor, chosen, int(facts.pretrained["vocab_size"]))


def _follow(trtllm: Any, executor: Any, chosen: Windows, vocabulary: int) -> Losses:
    places = [(window, length) for window in chosen for length in range(1, len(window))]
    output = trtllm.OutputConfig(return_generation_logits=True, exclude_input_from_output=True)
    for start in range(0, len(places), AT_ONCE):
        targets = {}
        for window, length in places[start : start + AT_ONCE]:
            sampling = trtllm.SamplingConfig(top_k=1)
            request = trtllm.Request(window[:length], 1, sampling_config=sampling, output_config=output)
            targets[executor.enqueue_request(request)] = window[length]
        while targets:
            responses = executor.await_responses(timeout=datetime.timedelta(seconds=WAIT_S))
            if not responses:
                raise RuntimeError(f"no answer within {WAIT_S:g} s")
            for response in responses:
                if response.has_error():
                    raise RuntimeError(str(response.error_msg))
                target = targets.pop(response.request_id)
                yield loss(response.result.generation_logits[0, :1, :vocabulary], [target]), 1
    executor.shutdown()


def of_checkpoint(folder: Path, config: dict[str, Any], installed: Installed, chosen: Windows) -> Losses:
    """One request a window, with the logits of its prompt. Raises `RuntimeError` where some are missing."""
    from inflight.engines.tensorrt_llm.llm_load import load_llm

    about = described(folder)
    tensor = about.parallelism.tensor if about else 1
    options = read_options({"enable_kv_cache_reuse": False, "tensor_parallel_size": tensor})
    llm = load_llm(folder, options, installed, max_running=len(chosen)).llm
    params = importlib.import_module("tensorrt_llm.llmapi").SamplingParams(
        max_tokens=1, top_k=1, return_context_logits=True, ignore_eos=True, detokenize=False, add_special_tokens=False
    )
    for window, output in zip(chosen, llm.generate(list(chosen), sampling_params=params), strict=True):
        logits = output.context_logits
        if logits is None or logits.shape[0] != len(window):
            raise RuntimeError(f"logits of {0 if logits is None else logits.shape[0]} of {len(window)} tokens came")
        yield loss(logits[:-1, : int(config["vocab_size"])], window[1:]), len(window) - 1
    llm.shutdown()


def measure(folder: Path) -> dict[str, Any] | None:
    """The perplexity, beside the predicted one where that was of the same text; None on ranks that only help."""
    config = read_config(folder)
    compiled = directory_kind(config) is DirectoryKind.ENGINE
    longest = engine_facts(folder, config).limit("max_seq_len") if compiled else config["max_position_embeddings"]
    chosen, installed = chosen_windows(folder, longest), import_installed()
    losses = (of_compiled if compiled else of_checkpoint)(folder, config, installed, chosen)
    if losses is None:
        return None
    total, tokens = 0.0, 0
    for each, count in losses:
        total, tokens = total + each, tokens + count
    return beside_prediction(folder, total, tokens)


def main() -> int:
    """Write what was found, or the reason why nothing was: mpirun's own words come last on standard error."""
    folder, output = Path(sys.argv[1]), Path(sys.argv[2])
    try:
        found = measure(folder)
    except Exception as error:  # noqa: BLE001 — the C++ core raises of all kinds, and whatever it is goes into the report
        output.write_text(json.dumps({"problem": f"{type(error).__name__}: {error}"}), encoding="utf-8")
        return 1
    if found is not None:
        output.write_text(json.dumps(found), encoding="utf-8")
    return 0


if __name__ == "__main__":
    status = main()
    if status:  # an orderly end would wait in MPI_Finalize for the other ranks, which wait for this one's shutdown
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)
