"""The files that a checkpoint brings into an engine directory, read the same way for every engine."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from inflight.errors import LoadError, first_line, quoted
from inflight.model.tokenizer_classes import defaults_for

log = logging.getLogger("inflight.model")

MAX_PATH_BYTES = 4096
SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token")


def path_of(text: str) -> Path:
    """The path that `text` names. Triton's stub takes ASCII for the encoding of file names, whatever the locale.

    Raises `LoadError` for what cannot be one.
    """
    try:
        data = text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        data = b"\0"
    if b"\0" in data or len(data) > MAX_PATH_BYTES:
        raise LoadError(f"{quoted(text)} cannot be the name of a file or folder; write another path.")
    return Path(os.fsdecode(data))


def is_folder(path: Path) -> bool:
    """Whether it is a folder that can be looked into; a name that is too long, or a link to itself, is none."""
    try:
        return path.is_dir() and os.access(path, os.R_OK | os.X_OK)
    except (OSError, ValueError, RuntimeError):
        return False


def text_of(path: Path) -> str:
    """The inverse of `path_of`: a path as other processes and libraries want it."""
    return os.fsencode(path).decode("utf-8", "surrogateescape")


def read_json_object(folder: Path, name: str) -> dict[str, Any]:
    """The object in `folder`/`name`; empty when there is no such file. Raises `LoadError` when it is broken."""
    try:
        text = (folder / name).read_text(encoding="utf-8")
        content = json.loads(text)
        if "\\ud" in text.lower():  # an escape that may be half of a pair, which is no text
            json.dumps(content, ensure_ascii=False).encode("utf-8")
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise LoadError(
            f"{name} of the engine directory cannot be read ({error.strerror}); check its permissions."
        ) from None
    except (ValueError, RecursionError) as error:
        raise LoadError(
            f"{name} of the engine directory is not JSON ({first_line(error)}); build the engine again."
        ) from None
    if not isinstance(content, dict):
        raise LoadError(f"{name} of the engine directory is not an object; build the engine again.")
    return content


def count_of(config: Mapping[str, Any], name: str, default: int | None = None) -> int:
    """A count that config.json of a checkpoint states; `default` where it says nothing. Raises `LoadError`."""
    count = config.get(name)
    if count is None and default is not None:
        return default
    if isinstance(count, bool) or not isinstance(count, int) or not 1 <= count < 2**31:
        raise LoadError(
            f"{name} of the engine directory's config.json is {quoted(count)} and has to be a whole number above 0; "
            "build the engine again."
        )
    return count


def stop_token_ids(folder: Path, vocab_size: int) -> tuple[int, ...]:
    """The model's end-of-sequence tokens: generation_config.json, else config.json, else the tokenizer's; empty where
    none of them says. Ids of `vocab_size` and more, which the model cannot make, are left out with a word in the log.
    Raises `LoadError` for files that are broken.
    """
    for name in ("generation_config.json", "config.json"):
        eos = read_json_object(folder, name).get("eos_token_id")
        given = eos if isinstance(eos, list) else [] if eos is None else [eos]
        ids = [token for token in given if isinstance(token, int) and not isinstance(token, bool) and token >= 0]
        if len(ids) < len(given):
            raise LoadError(f"eos_token_id of {name} is {quoted(eos)} and has to be a token id or a list of them.")
        known = tuple(token for token in ids if token < vocab_size)
        if len(known) < len(ids):
            log.warning("eos_token_id of %s is %s, but the vocabulary ends before %d", name, eos, vocab_size)
        if known:
            return known
    number = end_token_of_tokenizer(folder)
    return (number,) if number is not None and number < vocab_size else ()


def end_token_of_tokenizer(folder: Path) -> int | None:
    """The tokenizer's own end token, or None. Raises `LoadError` for broken files."""
    return _added_tokens(folder).get(special_tokens(folder).get("eos_token", ""))


def special_tokens(folder: Path) -> dict[str, str]:
    """bos_token, eos_token … as text, found where transformers finds them. Raises `LoadError` for broken files.

    special_tokens_map.json goes before tokenizer_config.json, but counts only where the latter lists no
    added_tokens_decoder: releases that wrote that list keep the special tokens beside it. What neither names is what
    the tokenizer's class has by itself; a token that one of them sets to null is none.
    """
    config = read_json_object(folder, "tokenizer_config.json")
    by_class = defaults_for(config, read_json_object(folder, "config.json"))
    if "added_tokens_decoder" not in config:
        config = {**config, **read_json_object(folder, "special_tokens_map.json")}
    config = {**by_class, **config}
    tokens = {}
    for name in SPECIAL_TOKENS:
        value = config.get(name)
        if isinstance(value, dict):
            value = value.get("content")
        if isinstance(value, str):
            tokens[name] = value
    return tokens


def _added_tokens(folder: Path) -> dict[str, int]:
    """The special and other added tokens of tokenizer.json, with their ids. An end-of-sequence token is one of them."""
    added = read_json_object(folder, "tokenizer.json").get("added_tokens")
    entries = added if isinstance(added, list) else []
    return {
        entry["content"]: entry["id"]
        for entry in entries
        if isinstance(entry, dict) and isinstance(entry.get("content"), str) and isinstance(entry.get("id"), int)
    }
