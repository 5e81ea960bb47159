"""The text and the windows of it that `verify` predicted a perplexity on, and the figure beside the prediction."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from build_engine.verification import corpus
from inflight import manifest

TOKENS = 1024  # where no prediction says how many
Windows = Sequence[list[int]]


def described(folder: Path) -> manifest.Manifest | None:
    """engine.json; None where there is none (an engine that was not built with build_engine)."""
    return manifest.read(folder) if (folder / manifest.MANIFEST_NAME).is_file() else None


def windows_of(folder: Path, text: str, max_seq_len: int, tokens: int) -> Windows:
    """The windows that `verify` takes of the text."""
    from tokenizers import Tokenizer

    from build_engine.verification.reference import windows
    from build_engine.verification.stage import WINDOW

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    ids, prefix = tokenizer.encode(text, add_special_tokens=False).ids, tokenizer.encode("").ids
    return [[int(token) for token in each] for each in windows(ids, prefix, min(WINDOW, max_seq_len), tokens)]


def chosen_windows(folder: Path, longest: int) -> Windows:
    """Those of the engine in `folder`, whose own limit is `longest` where engine.json has none."""
    about = described(folder)
    foreseen = about.verification if about else None
    max_seq_len = about.limits.max_seq_len if about else longest
    return windows_of(folder, corpus.evaluation().text, max_seq_len, foreseen.tokens if foreseen else TOKENS)


def beside_prediction(folder: Path, loss: float, tokens: int) -> dict[str, Any]:
    """The perplexity of `loss` nats over `tokens` tokens, and the predicted one where that was of the same text."""
    text, about = corpus.evaluation(), described(folder)
    name = f"{text.name}, sha256 {text.sha256[:16]}"
    foreseen = about.verification if about else None
    found: dict[str, Any] = {"measured": math.exp(loss / tokens), "predicted": None, "tokens": tokens, "text": name}
    if foreseen is not None and foreseen.text == name:
        found["predicted"] = foreseen.perplexity
    elif foreseen is not None:
        found["note"] = f"not compared: verify measured {foreseen.perplexity} on {foreseen.text}"
    return found
