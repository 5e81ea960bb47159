"""Stage ``verify``: run source and artifact over the same text and compare their distributions.

Runs in a child process (see `build_engine.stages`).
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, Protocol

from build_engine import devices
from build_engine.errors import UserMistake

WINDOW = 512


class Report(Protocol):
    def __call__(self, fraction: float | None, note: str = "") -> None: ...
    def warn(self, message: str) -> None: ...


def run(spec: dict[str, Any], report: Report) -> dict[str, Any]:
    """Compare ``spec["directory"]`` with ``spec["staged"]`` on ``spec["tokens"]`` tokens of ``spec["text"]``.

    Returns the figures of engine.json's ``verification`` and the seconds both sides took.
    """
    import torch
    from tokenizers import Tokenizer

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
    weight_error, worst_weight = compare_weights(candidate, reference, spec["target"])
    sides = [vars(candidate), reference.model] if "device" in spec else []
    device = devices.choose(spec.get("device", "cpu"), devices.tensor_bytes(sides), report.warn)
    if device != "cpu":
        devices.move_attributes(candidate, device)
        reference.model.to(device)
    total = Accumulator()
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
    return {
        "perplexity": total.perplexity,
        "reference_perplexity": total.reference_perplexity,
        "mean_kl": total.mean_kl,
        "worst_kl": total.worst_divergence,
        "greedy_agreement": total.agreement,
        "tokens": total.tokens,
        "weight_error": weight_error,
        "worst_weight": worst_weight,
        "source_seconds": round(seconds["source"], 2),
        "artifact_seconds": round(seconds["artifact"], 2),
    }


def compare_weights(candidate: Any, reference: Any, target: str) -> tuple[float | None, str]:
    """The largest relative error of a layer's weights, and its name; None where weights cannot be read back."""
    if target != "tensorrt_llm":
        return None, ""
    from build_engine.tensorrt.weights import worst_weight

    return worst_weight(candidate, reference.model.state_dict())


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
