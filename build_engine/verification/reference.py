"""The source checkpoint as transformers runs it, in float32 where memory allows."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch

from build_engine.loading import load_model
from build_engine.preflight import available_memory


class Reference:
    """``logits`` of whole windows; the model is the one whose class ``config.json`` names."""

    def __init__(self, staged: Path, weight_bytes: int) -> None:
        wide = available_memory() > 3 * weight_bytes + 2_000_000_000
        self.model = load_model(staged, torch.float32 if wide else "auto")
        self.dtype = next(self.model.parameters()).dtype

    def logits(self, ids: torch.Tensor, last: int = 0) -> torch.Tensor:
        """Logits [n, vocabulary] of the tokens ``ids`` [n], or of the ``last`` ones only."""
        with torch.inference_mode():
            result: torch.Tensor = self.model(ids[None], use_cache=False, logits_to_keep=last).logits[0]
        return result


def windows(ids: list[int], prefix: list[int], size: int, tokens: int) -> Iterator[torch.Tensor]:
    """Windows of ``size`` tokens, each behind ``prefix``, until ``tokens`` predictions are covered.

    A window of n tokens gives n − 1 predictions. The text must be long enough; what is left over is not used.
    """
    covered, start, body = 0, 0, size - len(prefix)
    while covered < tokens and start < len(ids):
        window = [*prefix, *ids[start : start + body]]
        if len(window) < 2:
            return
        window = window[: tokens - covered + 1]
        yield torch.tensor(window)
        covered += len(window) - 1
        start += body
