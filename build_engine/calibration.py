"""Calibration text as windows of token ids, for stages that watch a model at work."""

from __future__ import annotations

from typing import Any

from build_engine.errors import UserMistake


def windows(spec: dict[str, Any], size: int) -> list[list[int]]:
    """Rows of ``size`` ids each: whatever the tokenizer puts in front, then the next piece of the text.

    Of ``spec["calibration_text"]`` the first ``spec["calibration_tokens"]`` are used, by the tokenizer in
    ``spec["tokenizer"]``. Raises `UserMistake` when that is less than one window.
    """
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(spec["tokenizer"])
    ids = tokenizer.encode(spec["calibration_text"], add_special_tokens=False).ids[: spec["calibration_tokens"]]
    prefix = tokenizer.encode("").ids
    piece = size - len(prefix)
    rows = [[*prefix, *ids[start : start + piece]] for start in range(0, len(ids) - piece + 1, piece)]
    if not rows:
        raise UserMistake("the calibration text is shorter than one window: give a longer one with --calibration-text")
    return rows
