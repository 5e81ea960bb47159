"""Does a checkpoint hold the weights that its ``config.json`` asks for? What it lacks a loader makes up at random.

transformers initialises every weight that it does not find and passes over every one that it does not know; an engine
of such weights is made, measured against a source that is random in the same way, and found good. So each weight that
is missing, unknown or of another shape is refused by name: from the files' headers before any work (`check_weights`),
and from the loader's own report whenever a checkpoint is loaded (`check_report`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from build_engine import safetensors_header
from build_engine.errors import UserMistake
from build_engine.expected_weights import EMBEDDING, HEAD, Shape, expected
from build_engine.hf_config import ModelConfig
from build_engine.prequantized import detect
from build_engine.safetensors_header import Stored
from build_engine.source import Source

BUFFERS = re.compile(r"(^|\.)rotary_emb\.(inv_freq|cos_cached|sin_cached)\Z")
"""What older releases saved beside the weights, and what every loader computes anew."""

LAYER = re.compile(r"model\.layers\.(\d+)\.")
WRAPPERS = {"_orig_mod.": "torch.compile", "module.": "DistributedDataParallel", "base_model.model.": "peft"}
SAVE_AGAIN = "save it again from the model inside the wrapper"
SHOWN = 3


def check_weights(origin: Source) -> None:
    """Raise `UserMistake` naming the weights in ``origin`` that do not fit its configuration.

    Reads headers only, and embedding and head of a tied model where both are stored. What is quantized already is not
    judged: each method names its scales in its own way.
    """
    stored = safetensors_header.read(origin.directory)
    if detect(origin) is not None:
        return
    problem = misfit({name: each.shape for name, each in stored.items()}, origin.config)
    if problem is None and origin.config.tied_embeddings and _tied_apart(stored):
        problem = (
            f"{HEAD} differs from {EMBEDDING}, and config.json says that they are one (tie_word_embeddings true), "
            "so the head would be dropped: say false there"
        )
    if problem is not None:
        raise UserMistake(f"{origin.name}: {problem}")


def _tied_apart(stored: Mapping[str, Stored]) -> bool:
    head = stored.get(HEAD)
    embedding = stored.get(EMBEDDING) or stored.get(EMBEDDING.removeprefix("model."))
    return head is not None and embedding is not None and not safetensors_header.same_bytes(head, embedding)


def misfit(shapes: Mapping[str, Shape], config: ModelConfig) -> str | None:
    """One phrase that says what of ``shapes`` does not fit ``config``, worst first; None where all does."""
    wanted = expected(config)
    held = {name: shape for name, shape in _as_loaded(shapes).items() if not BUFFERS.search(name)}
    if config.tied_embeddings and HEAD not in held:
        wanted.pop(HEAD)
    missing = [name for name in wanted if name not in held]
    unknown = [name for name in held if name not in wanted]
    if missing or unknown:
        return (
            _wrapped(missing, unknown)
            or _layers(held, config, missing, unknown)
            or _head(missing, unknown)
            or _strangers(missing, unknown)
        )
    for name, shape in wanted.items():
        if held[name] != shape:
            return (
                f"{name} has the shape {list(held[name])}, and config.json asks for {list(shape)}: "
                "one of the two belongs to another model"
            )
    return None


def _as_loaded(shapes: Mapping[str, Shape]) -> Mapping[str, Shape]:
    """Names as the loader takes them: those of a bare decoder get the prefix that they lack."""
    if any(name.startswith("model.") for name in shapes) or EMBEDDING.removeprefix("model.") not in shapes:
        return shapes
    return {name if name == HEAD else f"model.{name}": shape for name, shape in shapes.items()}


def _wrapped(missing: list[str], unknown: list[str]) -> str | None:
    """The case that every weight is there under a longer name."""
    absent = set(missing)
    found = next(((name, ending) for name in unknown for ending in _endings(name) if ending in absent), None)
    if found is None:
        return None
    name, ending = found
    prefix = name.removesuffix(ending)
    if not absent.issubset(other.removeprefix(prefix) for other in unknown if other.startswith(prefix)):
        return None
    author = next((f" (as {who} saves them)" for start, who in WRAPPERS.items() if prefix.startswith(start)), "")
    return f"the names of its weights begin with {prefix}{author}, as in {name}: {SAVE_AGAIN}"


def _endings(name: str) -> Iterable[str]:
    parts = name.split(".")
    return (".".join(parts[start:]) for start in range(1, len(parts)))


def _layers(held: Mapping[str, Shape], config: ModelConfig, missing: list[str], unknown: list[str]) -> str | None:
    """The case that the files hold another number of layers."""
    count = 1 + max((int(match[1]) for name in held if (match := LAYER.match(name))), default=-1)
    if count in (0, config.num_layers):
        return None
    first = next((name for name in (*unknown, *missing) if LAYER.match(name)), "")
    return (
        f"the files hold {count} layers, and config.json says num_hidden_layers {config.num_layers} "
        f"({first} is the first that does not fit): correct it, or fetch the rest"
    )


def _head(missing: list[str], unknown: list[str]) -> str | None:
    if missing == [HEAD] and not unknown:
        return (
            f"the files lack {HEAD}, and config.json says tie_word_embeddings false: say true there if the model "
            "shares its embeddings with its head, or fetch the rest"
        )
    return None


def _strangers(missing: list[str], unknown: list[str]) -> str:
    parts = [f"lack {_some(missing)}"] * bool(missing)
    parts += [f"hold {_some(unknown)}, which the model has no place for"] * bool(unknown)
    return f"the files {' and '.join(parts)}: fetch the checkpoint again, or correct its config.json"


def _some(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def check_report(report: Mapping[str, Any]) -> None:
    """Raise `UserMistake` for what transformers' ``output_loading_info`` says was made up, left out or misshapen."""
    # Releases differ: a name, or a name with both shapes.
    entries = report.get("mismatched_keys", ())
    misshapen = sorted(entry if isinstance(entry, str) else str(entry[0]) for entry in entries)
    if misshapen:
        raise UserMistake(f"the shape of {_some(misshapen)} is not the one that config.json asks for")
    missing = sorted(str(name) for name in report.get("missing_keys", ()))
    unknown = sorted(str(name) for name in report.get("unexpected_keys", ()) if not BUFFERS.search(str(name)))
    if missing or unknown:
        raise UserMistake(_strangers(missing, unknown))
