"""The files that a checkpoint brings into an engine directory, read the same way for every engine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from inflight.errors import LoadError


def read_json_object(folder: Path, name: str) -> dict[str, Any]:
    """The object in `folder`/`name`; empty when there is no such file. Raises `LoadError` when it is broken."""
    try:
        content = json.loads((folder / name).read_text("utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise LoadError(f"{name} of the engine directory is not JSON ({error}); build the engine again.") from None
    if not isinstance(content, dict):
        raise LoadError(f"{name} of the engine directory is not an object; build the engine again.")
    return content


def stop_token_ids(folder: Path) -> tuple[int, ...]:
    """The model's end-of-sequence tokens: generation_config.json, else config.json, else the tokenizer's; empty where
    none of them says. Raises `LoadError` for files that are broken.
    """
    for name in ("generation_config.json", "config.json"):
        eos = read_json_object(folder, name).get("eos_token_id")
        ids = eos if isinstance(eos, list) else [eos]
        if ids and all(isinstance(token, int) and not isinstance(token, bool) and token >= 0 for token in ids):
            return tuple(ids)
        if eos is not None and ids:
            raise LoadError(f"eos_token_id of {name} is {eos!r} and has to be a token id or a list of them.")
    token = read_json_object(folder, "tokenizer_config.json").get("eos_token")
    text = token.get("content") if isinstance(token, dict) else token
    number = _added_tokens(folder).get(text) if isinstance(text, str) else None
    return (number,) if number is not None else ()


def _added_tokens(folder: Path) -> dict[str, int]:
    """The special and other added tokens of tokenizer.json, with their ids. An end-of-sequence token is one of them."""
    added = read_json_object(folder, "tokenizer.json").get("added_tokens")
    entries = added if isinstance(added, list) else []
    return {
        entry["content"]: entry["id"]
        for entry in entries
        if isinstance(entry, dict) and isinstance(entry.get("content"), str) and isinstance(entry.get("id"), int)
    }
