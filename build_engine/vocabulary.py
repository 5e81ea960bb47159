"""Does the tokenizer fit the model? Its token ids are rows of the model's embedding table."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from build_engine.console import Console
from build_engine.errors import UserMistake
from build_engine.source import Source

TOKENIZER = "tokenizer.json"


def check_vocabulary(source: Source, console: Console, tokenizer: Path | None = None) -> None:
    """Refuse a tokenizer whose vocabulary is larger than the model's: ordinary text would be read as nonsense.

    Added tokens beyond it are named in a warning: they come only where somebody writes them, and the server refuses a
    prompt with them. (Gemma 3's text models are published so: ``<image_soft_token>`` is only for those that see.)
    Fewer tokens than rows are usual. ``tokenizer`` is another tokenizer.json than the checkpoint's own.
    """
    path = tokenizer or source.directory / TOKENIZER
    if not path.is_file():
        return  # older formats; what needs tokenizer.json says so
    rows = source.config.vocab_size
    vocabulary, added = _tokens(path)
    beyond = sorted((number, token) for token, number in vocabulary.items() if number >= rows and token not in added)
    if beyond:
        number, token = beyond[-1]
        raise UserMistake(
            f"{path} has {len(beyond)} tokens more than the {rows} of the model (the last is {token!r}, id {number}): "
            "it is another model's tokenizer, fetch the checkpoint again"
        )
    extra = sorted((number, token) for token, number in added.items() if number >= rows)
    if extra:
        names = ", ".join(f"{token!r} (id {number})" for number, token in extra[:5])
        console.warn(
            f"the tokenizer has added tokens that the model, with its {rows} embeddings, lacks: {names}"
            f"{', ...' if len(extra) > 5 else ''}; prompts with them will be refused. If the model was trained with "
            "them, resize its embeddings (resize_token_embeddings) and save it again"
        )


def _tokens(path: Path) -> tuple[dict[str, int], dict[str, int]]:
    """(the vocabulary, the added tokens) of tokenizer.json, with their ids."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        entries = content.get("model", {}).get("vocab") or {}
        vocabulary = entries if isinstance(entries, dict) else _numbered(entries)
        added = {str(token["content"]): int(token["id"]) for token in content.get("added_tokens") or []}
        return {str(token): int(number) for token, number in vocabulary.items()}, added
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise UserMistake(f"{path} is damaged: fetch the checkpoint again") from None


def _numbered(entries: list[Any]) -> dict[str, int]:
    """Unigram keeps [piece, score] in the order of the ids."""
    return {str(piece): number for number, (piece, _) in enumerate(entries)}
