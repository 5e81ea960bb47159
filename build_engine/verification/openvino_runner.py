"""An exported OpenVINO model, run with the precisions it is served with."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import torch

CHUNK = 64
"""Tokens fed at a time: later chunks read the keys and values of earlier ones from the quantized cache."""


def kv_precision(core: Any, kv_cache: str) -> str:
    """OpenVINO's name for a manifest's ``kv_cache``. ``none`` is the precision that this CPU computes in: paged
    attention takes no other (bf16 where the CPU has it, else f32).
    """
    if kv_cache == "int8":
        return "u8"
    return "bf16" if "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES") else "f32"


class OpenVinoCandidate:
    """Runs ``openvino_model.xml`` on the CPU; the KV cache has the precision that engine.json names."""

    def __init__(self, directory: Path, kv_cache: str, properties: dict[str, Any] | None = None) -> None:
        import openvino as ov

        core = ov.Core()
        # Keys by token, as the server runs them (inflight/engines/openvino/engine.py says why).
        served = {"KV_CACHE_PRECISION": kv_precision(core, kv_cache), "KEY_CACHE_QUANT_MODE": "BY_TOKEN"}
        options = {**served, **(properties or {})}
        self.compiled = core.compile_model(directory / "openvino_model.xml", "CPU", options)
        self.names = {name for port in self.compiled.inputs for name in port.get_names()}
        self.request = self.compiled.create_infer_request()

    def logits(self, ids: torch.Tensor, last: int = 0) -> torch.Tensor:
        """Logits [n, vocabulary] of the tokens ``ids`` [n], or of the ``last`` ones only; all are fed in chunks."""
        self.request.reset_state()
        tokens = ids.numpy().astype(np.int64)[None]
        rows = []
        for start in range(0, tokens.shape[1], CHUNK):
            chunk = tokens[:, start : start + CHUNK]
            stop = start + chunk.shape[1]
            inputs = {
                "input_ids": chunk,
                "attention_mask": np.ones((1, stop), dtype=np.int64),
                "position_ids": np.arange(start, stop, dtype=np.int64)[None],
                "beam_idx": np.zeros(1, dtype=np.int32),
            }
            answer = self.request.infer({name: value for name, value in inputs.items() if name in self.names})
            if not last or stop > tokens.shape[1] - last:
                rows.append(np.array(answer["logits"][0]))
        import torch

        return torch.from_numpy(np.concatenate(rows)[-last:])
