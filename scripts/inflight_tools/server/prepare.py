"""From what a person has in hand to a model repository: fetch, build and describe, each only where it is needed.

A checkpoint is built into `.cache/serve/engines` (without a checkout: in the user's cache; `INFLIGHT_SERVE_CACHE` names
another folder) and found there the second time; a repository of one model is written around an engine. Nothing of what
was given is changed.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from build_engine import __version__, source
from build_engine.architectures import HF_QUANTIZED, OPENVINO
from build_engine.build import build
from build_engine.cache import default_directory
from build_engine.console import Console
from build_engine.errors import BuilderError
from build_engine.gguf_files.checkpoint import checkpoint_of
from build_engine.interrupt import interruptible
from build_engine.job import BuildOptions
from build_engine.quantization import recipe_for
from build_engine.source import Source
from build_engine.verification.verify import BUILD_TOKENS
from inflight import manifest
from inflight.engines.factory import resolve_engine
from inflight.engines.prequantized import method_of
from inflight.engines.python import ask, find_packages
from inflight.errors import LoadError
from inflight.triton import config as triton_config
from inflight_tools.common.layout import CACHE
from inflight_tools.common.report import Failure
from inflight_tools.server.engine_cache import make_room
from inflight_tools.server.paths import check_repository
from inflight_tools.server.what import Kind, What

SERVED = Path(os.environ.get("INFLIGHT_SERVE_CACHE") or CACHE / "serve")
_NAME = re.compile(r"[A-Za-z0-9][\w.-]*\Z")
_CONFIG = """\
# Written by inflight serve.
backend: "inflight"
max_batch_size: 0
model_transaction_policy {{ decoupled: true }}
instance_group [ {{ count: 1, kind: KIND_MODEL }} ]
{parameters}"""


@dataclass(frozen=True, slots=True)
class Wish:
    """How a model that is not in a repository yet is to be served; what is None or empty is chosen here."""

    name: str = "llm"
    quantization: str | None = None
    engine: str = "auto"
    engine_python: str = ""


@dataclass(frozen=True, slots=True)
class Prepared:
    """A repository of one model, and the directory that this model is served from."""

    repository: Path
    directory: Path


def prepare(what: What, wish: Wish, console: Console) -> Prepared:
    """A repository of one model called `wish.name` that serves `what`.

    Raises `Failure` with one sentence; `build_engine.errors.Interrupted` on Ctrl-C and SIGTERM, with nothing half-done
    left.
    """
    if not _NAME.match(wish.name):
        raise Failure(f"--name is {wish.name!r} and has to be letters, digits, '.', '_' and '-'.")
    check_repository(SERVED / "repositories", (wish.name,))
    try:
        with interruptible():
            engine, directory = _engine(what, wish, console)
    except BuilderError as error:
        raise Failure(f"{error}.") from None
    parameters = {"engine_dir": str(directory.resolve())}
    if engine != "auto":
        parameters["engine"] = engine
    if wish.engine_python:
        parameters["engine_python"] = os.path.abspath(wish.engine_python)
    return Prepared(write_repository(SERVED / "repositories", wish.name, parameters), directory)


def _engine(what: What, wish: Wish, console: Console) -> tuple[str, Path]:
    """The parameter `engine` and the directory to serve, built where it has to be."""
    if what.kind is Kind.ENGINE:
        if wish.quantization is not None:
            raise Failure(f"{what.place} is built already: leave out --quantization, or name its checkpoint.")
        return wish.engine, Path(what.place)
    origin = source.resolve(checkpoint_of(what.place, console))
    engine = choose_engine(origin.directory, wish)
    recipe = wish.quantization or ("int8" if engine == OPENVINO else "none")
    if engine != OPENVINO and recipe == "none":
        return engine, origin.directory
    return engine, build_once(origin, OPENVINO if engine == OPENVINO else HF_QUANTIZED, recipe, console)


def choose_engine(checkpoint: Path, wish: Wish) -> str:
    """The engine for a checkpoint: the one asked for, else one that serves it as it comes, else OpenVINO."""
    if wish.engine != "auto":
        return wish.engine
    try:
        if not wish.engine_python:
            return resolve_engine("auto", checkpoint, find_packages)
        python = os.path.abspath(wish.engine_python)
        return resolve_engine("auto", checkpoint, lambda names: ask(python, names).packages)
    except LoadError as error:
        if wish.engine_python or method_of(checkpoint) is not None:  # weights in a form that OpenVINO is not built from
            raise Failure(str(error)) from None
        return OPENVINO


def build_once(origin: Source, target: str, recipe: str, console: Console) -> Path:
    """The engine of a checkpoint, from the cache where an earlier call left it whole."""
    recipe_for(recipe, target)
    name = re.sub(r"[^\w.-]", "_", origin.name)
    output = SERVED / "engines" / f"{name}-{recipe}-{engine_key(origin, target, recipe)}"
    try:
        manifest.check_whole(output)
    except manifest.ManifestError:
        pass
    else:
        console.say(f"{origin.name}: {recipe} engine of an earlier build ({output})")
        return output
    words = ["build", str(origin.directory), "--target", target, "--quantization", recipe, "--output", str(output)]
    options = BuildOptions(
        model=str(origin.directory),
        target=target,
        quantization=recipe,
        output=output,
        force=output.exists(),  # then it is damaged
        verify_tokens=BUILD_TOKENS,
        cache=default_directory(),
        command=shlex.join(["python", "-m", "build_engine", *words]),
    )
    console.say(f"{origin.name} has to be built first ({recipe}, for {target}); the next time it is found in {output}")
    for old in make_room(output.parent, needed=origin.weight_bytes):
        console.say(f"{old} was used longest ago and made room")
    build(options, console)
    return output


def engine_key(origin: Source, target: str, recipe: str) -> str:
    """What decides how the engine comes out: the checkpoint, the recipe, and who builds.

    Of the weights name, size and time of change stand for the contents, which are too large to be read at every start;
    every other file counts with its contents.
    """
    weights = set(source.weight_files(origin.directory))
    files: list[tuple[str, ...]] = []
    for path in origin.files():
        status = path.stat()
        if path in weights and path.suffix == ".safetensors":
            files.append((path.name, str(status.st_size), str(status.st_mtime_ns)))
        else:
            files.append((path.name, manifest.sha256_file(path)))
    packages = [
        manifest.major_minor(manifest.installed_version(name) or "") for name in ("openvino", "nvidia-modelopt")
    ]
    return hashlib.sha256(json.dumps([files, target, recipe, __version__, packages]).encode()).hexdigest()[:12]


def write_repository(folder: Path, name: str, parameters: Mapping[str, str]) -> Path:
    """A model repository with one model `name`; the same for the same parameters, so that many servers may share it."""
    lines = [
        f"parameters {{ key: {json.dumps(key)} value {{ string_value: {json.dumps(value, ensure_ascii=False)} }} }}\n"
        for key, value in parameters.items()
    ]
    text = _CONFIG.format(parameters="".join(lines)) + triton_config.tensors()
    repository = folder / hashlib.sha256(f"{name}\0{text}".encode()).hexdigest()[:12]
    model = repository / name
    try:
        (model / "1").mkdir(parents=True, exist_ok=True)
        partial = model / f".config.{os.getpid()}"
        partial.write_text(text, encoding="utf-8")
        partial.replace(model / "config.pbtxt")
    except OSError as error:
        raise Failure(
            f"{model} cannot be written ({error.strerror}): name another folder with INFLIGHT_SERVE_CACHE."
        ) from None
    return repository
