"""Where a checkpoint comes from: a local directory or a hub name; its hash; and a staging copy for the exporters."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from build_engine import hf_config
from build_engine.errors import UserMistake
from build_engine.fetch import fetch
from build_engine.hf_config import ModelConfig
from build_engine.safetensors_header import INDEX, WHOLE, loaded_files

WEIGHT_PATTERNS = ("*.safetensors", "*.safetensors.index.json")
PICKLED_PATTERNS = ("pytorch_model*.bin", "*.pt", "*.pth")
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "chat_template.jinja",
    "chat_template.json",
)
TEMPLATE_FOLDER = "additional_chat_templates"  # named ones beside chat_template.jinja
CONFIG_FILES = ("config.json", "generation_config.json")
QUANT_FILES = ("hf_quant_config.json", "quantize_config.json")
_CACHED = re.compile(r"models--(.+)\Z")
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?\Z")


@dataclass(frozen=True, slots=True)
class Source:
    """A checkpoint on disk: ``name`` is portable (no path of this machine), ``weight_bytes`` counts the weights."""

    name: str
    directory: Path
    config: ModelConfig
    weight_bytes: int

    def files(self) -> list[Path]:
        """Every file an engine depends on, sorted by name."""
        named = [self.directory / name for name in (*CONFIG_FILES, *TOKENIZER_FILES, *QUANT_FILES)]
        templates = set((self.directory / TEMPLATE_FOLDER).glob("*.jinja"))
        return sorted({path for path in named if path.is_file()} | templates | set(weight_files(self.directory)))

    def sha256(self) -> str:
        """One hash over names and contents of `files`."""
        total = hashlib.sha256()
        for path in self.files():
            with path.open("rb") as file:
                digest = hashlib.sha256()
                while chunk := file.read(1 << 20):
                    digest.update(chunk)
            total.update(f"{path.name}\0{digest.hexdigest()}\n".encode())
        return total.hexdigest()


def weight_files(directory: Path) -> list[Path]:
    """The weights that a loader takes, and their index: `safetensors_header.loaded_files` where it finds any.

    Some publishers put the same weights a second time beside them, in a form of their own (consolidated.safetensors).
    """
    index = [path for path in (directory / INDEX,) if path.is_file()]
    if (directory / WHOLE).is_file():
        return [directory / WHOLE]
    if index:
        return sorted([*loaded_files(directory), *index])
    return sorted(path for pattern in WEIGHT_PATTERNS for path in directory.glob(pattern))


def resolve(model: str, *, need_weights: bool = True) -> Source:
    """A local directory, or a hub name fetched into the hub's own cache; `UserMistake` when it is neither."""
    directory = Path(model).expanduser()
    if directory.is_file():
        raise UserMistake(f"{model} is a file: give the directory of a Hugging Face checkpoint, or build a GGUF file")
    name = _name(directory) if directory.is_dir() else model
    if not directory.is_dir():
        directory = _fetch(model, need_weights=need_weights)
    config = hf_config.load(directory)
    if need_weights:
        _check_weights(directory)
    weights = [path for path in weight_files(directory) if path.suffix == ".safetensors" and path.is_file()]
    return Source(name, directory, config, sum(path.stat().st_size for path in weights))


def _name(directory: Path) -> str:
    """How the checkpoint is called. A snapshot of the hub's cache is named by a commit, its model by a folder above."""
    absolute = Path(os.path.abspath(directory))
    for place in (absolute, absolute.resolve()):
        if place.parent.name == "snapshots" and (match := _CACHED.match(place.parent.parent.name)):
            return match[1].replace("--", "/")
    return absolute.resolve().name


def _check_weights(directory: Path) -> None:
    """Refuse a checkpoint without safetensors, or whose index names shards that are not there."""
    if not any(directory.glob("*.safetensors")):
        if any(path for pattern in PICKLED_PATTERNS for path in directory.glob(pattern)):
            raise UserMistake(
                f"{directory} has only pickled weights, which are not loaded for safety: "
                "save it again with safe_serialization=True"
            )
        raise UserMistake(f"{directory} has no *.safetensors: it is no complete Hugging Face checkpoint")
    for index in directory.glob("*.safetensors.index.json"):
        try:
            shards = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        except (OSError, ValueError, KeyError, AttributeError):
            raise UserMistake(f"{index} is damaged: fetch the checkpoint again") from None
        missing = sorted(shard for shard in shards if not (directory / str(shard)).is_file())
        if missing:
            raise UserMistake(f"{directory} lacks {missing[0]}, named in {index.name}: fetch the checkpoint again")


def _fetch(name: str, *, need_weights: bool) -> Path:
    if not HUB_NAME.match(name) or name.count("/") > 1:
        raise UserMistake(f"{name} is neither a directory nor a hub name like org/model")
    if importlib.util.find_spec("huggingface_hub") is None:
        raise UserMistake(
            f"{name} is not a directory, and fetching it needs huggingface_hub: "
            'pip install "inflight[build]", or give a local checkpoint'
        )
    patterns = [
        *CONFIG_FILES,
        *TOKENIZER_FILES,
        f"{TEMPLATE_FOLDER}/*.jinja",
        *QUANT_FILES,
        *(WEIGHT_PATTERNS if need_weights else ()),
    ]
    return Path(fetch(name, patterns))


def stage(source: Source, directory: Path) -> Path:
    """A copy of the checkpoint that transformers 4 reads rightly: links to its files and a translated config.json.

    ``auto_map`` is dropped: remote code is never run, the architectures here are transformers' own.
    """
    directory.mkdir(parents=True)
    for path in source.files():
        if path.name != hf_config.CONFIG_NAME:
            link = directory / path.relative_to(source.directory)
            link.parent.mkdir(exist_ok=True)
            link.symlink_to(path.resolve())
    config = hf_config.to_transformers_4(source.config.raw)
    config.pop("auto_map", None)
    (directory / hf_config.CONFIG_NAME).write_text(json.dumps(config, indent=2), encoding="utf-8")
    return directory


def copy_tokenizer(origin: Source, directory: Path, *, with_config: bool) -> None:
    """Copy the tokenizer, its templates and ``generation_config.json`` beside an engine; ``config.json`` on demand.

    Raises `UserMistake` when the checkpoint has no ``tokenizer.json``, which is what the server reads.
    """
    for name in ("generation_config.json", *TOKENIZER_FILES, *(["config.json"] if with_config else [])):
        path = origin.directory / name
        if path.is_file():
            shutil.copyfile(path, directory / name)
    for path in sorted((origin.directory / TEMPLATE_FOLDER).glob("*.jinja")):
        (directory / TEMPLATE_FOLDER).mkdir(exist_ok=True)
        shutil.copyfile(path, directory / TEMPLATE_FOLDER / path.name)
    if not (directory / "tokenizer.json").is_file():
        raise UserMistake(
            f"{origin.name} has no tokenizer.json: save its tokenizer once with "
            "AutoTokenizer.from_pretrained(...).save_pretrained(...)"
        )
