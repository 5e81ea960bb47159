"""Stage ``verify``: run source and artifact over the same text and compare their distributions.

Runs in a child process (see `build_engine.stages`).
"""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Any, Protocol

from build_engine import devices
from build_engine.errors import UserMistake

WINDOW = 512
BEYOND = 256
"""Tokens that are compared behind each border that the configuration names."""


class Report(Protocol):
    def __call__(self, fraction: float | None, note: str = "") -> None: ...
    def warn(self, message: str) -> None: ...


def run(spec: dict[str, Any], report: Report) -> dict[str, Any]:
    """Compare ``spec["directory"]`` with ``spec["staged"]`` on ``spec["tokens"]`` tokens of ``spec["text"]``.

    ``spec["borders"]`` are lengths to look beyond, each in a window of its own. Returns the figures of engine.json's
    ``verification``, with the sums of every part of the text, and the seconds both sides took.
    """
    import torch
    from tokenizers import Tokenizer

    from build_engine.verification.confidence import span_for
    from build_engine.verification.metrics import Accumulator
    from build_engine.verification.reference import Reference, windows

    report(None, "loading the source")
    staged = Path(spec["staged"])
    tokenizer = Tokenizer.from_file(spec["tokenizer"])
    ids = tokenizer.encode(spec["text"], add_special_tokens=False).ids
    prefix = tokenizer.encode("").ids
    if len(ids) < 2 * len(prefix) + 2:
        raise UserMistake("the text has fewer tokens than a comparison needs: give a longer one with --text")
    size = min(WINDOW, spec["max_seq_len"])
    reference = Reference(staged, spec["weight_bytes"])
    report(None, "loading the artifact")
    candidate = load_candidate(spec)
    weight_error, worst_weight, faults = compare_weights(candidate, reference, spec)
    sides = [vars(candidate), reference.model] if "device" in spec else []
    device = devices.choose(spec.get("device", "cpu"), devices.tensor_bytes(sides), report.warn)
    if device != "cpu":
        devices.move_attributes(candidate, device)
        reference.model.to(device)
    total = Accumulator(span_for(min(spec["tokens"], len(ids))))
    seconds = {"source": 0.0, "artifact": 0.0}
    for window in windows(ids, prefix, size, spec["tokens"]):
        started = time.monotonic()
        with torch.device(device):
            expected = reference.logits(window.to(device))
        middle = time.monotonic()
        with torch.inference_mode(), torch.device(device):
            got = candidate.logits(window.to(device))
            seconds["source"] += middle - started
            seconds["artifact"] += time.monotonic() - middle
            total.add(expected, got, window.to(device))
        report(min(1.0, total.tokens / spec["tokens"]), "comparing")
    beyond = []
    for border in spec["borders"]:
        report(1.0, f"comparing beyond {border} tokens")
        beyond.append(compare_beyond(border, [*prefix, *ids], spec["max_seq_len"], reference, candidate, device))
    return {
        "parts": [dataclasses.astuple(part) for part in total.parts],
        "beyond": [figures for figures in beyond if figures is not None],
        "perplexity": total.perplexity,
        "reference_perplexity": total.reference_perplexity,
        "mean_kl": total.mean_kl,
        "worst_kl": total.worst_divergence,
        "greedy_agreement": total.agreement,
        "tokens": total.tokens,
        "faults": faults,
        "weight_error": weight_error,
        "worst_weight": worst_weight,
        "source_seconds": round(seconds["source"], 2),
        "artifact_seconds": round(seconds["artifact"], 2),
    }


def compare_beyond(
    border: int, ids: list[int], max_seq_len: int, reference: Any, candidate: Any, device: str
) -> dict[str, Any] | None:
    """Compare the last tokens of one sequence that passes ``border``; None where no sequence or text is so long."""
    import torch

    from build_engine.verification.confidence import span_for
    from build_engine.verification.metrics import Accumulator

    window = torch.tensor(ids[: min(border + BEYOND, max_seq_len)], device=device)
    last = len(window) - border
    if last < 2:
        return None
    total = Accumulator(span_for(last))
    with torch.inference_mode(), torch.device(device):
        total.add(reference.logits(window, last=last), candidate.logits(window, last=last), window[-last:])
    return {
        "border": border,
        "tokens": total.tokens,
        "parts": [dataclasses.astuple(part) for part in total.parts],
        "greedy_agreement": total.agreement,
    }


def compare_weights(candidate: Any, reference: Any, spec: dict[str, Any]) -> tuple[float | None, str, list[str]]:
    """The largest relative error of a layer's weights, its name, and what is wrong with any tensor; None where weights
    cannot be read back.
    """
    if spec["target"] != "tensorrt_llm":
        return None, "", []
    from build_engine import hf_config
    from build_engine.tensorrt.config import disagreements
    from build_engine.tensorrt.quantize import read_ranges
    from build_engine.tensorrt.weights import compare

    found = compare(candidate, reference.model.state_dict(), read_ranges(Path(spec["directory"])))
    differing = disagreements(candidate.config, hf_config.load(Path(spec["staged"])))
    return found.error, found.where, [*differing, *found.faults]


def load_candidate(spec: dict[str, Any]) -> Any:
    """The runner for the artifact's target."""
    if spec["target"] == "openvino":
        from build_engine.verification.openvino_runner import OpenVinoCandidate

        return OpenVinoCandidate(Path(spec["directory"]), spec["kv_cache"])
    if spec["target"] == "tensorrt_llm":
        from build_engine.tensorrt.runner import CheckpointCandidate

        return CheckpointCandidate(Path(spec["directory"]))
    if spec["target"] == "hf_quantized":
        from build_engine.tensorrt.hf_reader import HfCandidate

        return HfCandidate(Path(spec["directory"]))
    raise UserMistake(f"{spec['target']} artifacts cannot be verified")
