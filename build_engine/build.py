"""The ``build`` command: a checkpoint into an engine directory, whole or not at all."""

from __future__ import annotations

import datetime
import os
import shutil
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import inflight.manifest as manifest
from build_engine import __version__, preflight, source
from build_engine.architectures import OPENVINO, support_for
from build_engine.console import Console, format_bytes, format_seconds
from build_engine.errors import BuilderError, Interrupted, UserMistake
from build_engine.openvino import recipes as openvino_recipes
from build_engine.output import OutputDirectory, check_free
from build_engine.quantization import Recipe, kv_cache_for, recipe_for
from build_engine.source import Source
from build_engine.stages import run_stage
from build_engine.verification import corpus
from build_engine.verification.verify import Artifact, as_text, measure, require

EXPORT_BASE_S, EXPORT_S_PER_GB = 9.0, 60.0
"""Expected time of the OpenVINO export: a constant for imports and so much per GB of weights (2 cores, int8)."""


@dataclass(frozen=True, slots=True)
class BuildOptions:
    """The options of one build, as given on the command line."""

    model: str
    target: str
    quantization: str
    output: Path
    kv_cache: str = "auto"
    max_seq_len: int | None = None
    force: bool = False
    verify_tokens: int = 0
    command: str = ""


def build(options: BuildOptions, console: Console) -> manifest.Manifest:
    """Build an engine; returns its manifest. Raises `UserMistake` before any work when it cannot be done."""
    started = time.monotonic()
    check_free(options.output, force=options.force)
    origin = source.resolve(options.model)
    support_for(origin.config, options.target)
    recipe = recipe_for(options.quantization, options.target)
    kv_cache = kv_cache_for(options.kv_cache, options.target, recipe)
    max_seq_len = _sequence_limit(options.max_seq_len, origin)
    if origin.config.prequantized:
        method = origin.config.prequantized.get("quant_method", "unknown method")
        raise UserMistake(
            f"{origin.name} is quantized already ({method}) and {options.target} cannot carry that through: "
            "give the checkpoint it was made from"
        )
    if options.target != OPENVINO:
        raise UserMistake(f"--target {options.target} is not available in this release")
    compression = openvino_recipes.compression_for(recipe, origin.config)
    preflight.check_disk(options.output, 2 * origin.weight_bytes, "this build")
    preflight.check_memory(preflight.MEMORY_BASE + round(2.5 * origin.weight_bytes), "this build")

    log = _log_path()
    try:
        with OutputDirectory(options.output, force=options.force) as out:
            with console.step("hashing the checkpoint"):
                sha256 = origin.sha256()
            staged = source.stage(origin, out.scratch / "staged")
            result = run_stage(
                "openvino.export",
                {
                    "staged": str(staged),
                    "output": str(out.path),
                    "scratch": str(out.scratch),
                    "compression": compression.arguments if compression else None,
                },
                console=console,
                log=log,
                title=f"exporting to OpenVINO ({recipe.name})",
                expected_s=EXPORT_BASE_S + EXPORT_S_PER_GB * origin.weight_bytes / 1e9,
            )
            if result["tokenizer_problem"]:
                console.warn(
                    f"{result['tokenizer_problem']}: no OpenVINO tokenizer models were written, so guided decoding "
                    "needs a tokenizer from elsewhere; everything else works"
                )
            copy_tokenizer(origin, out.path)
            quantization = manifest.Quantization(
                recipe=recipe.name,
                algorithm=compression.algorithm if compression else f"none ({origin.config.dtype})",
                kv_cache=kv_cache,
                details=dict(compression.arguments) if compression else {},
            )
            figures = None
            if options.verify_tokens:
                artifact = Artifact(out.path, "openvino", quantization, max_seq_len)
                text = corpus.evaluation()
                figures, _ = measure(artifact, origin, staged, text, options.verify_tokens, console, log)
                require(recipe.name, figures)
            written = manifest.Manifest(
                target="openvino",
                source=manifest.Source(name=origin.name, architecture=origin.config.architecture, sha256=sha256),
                quantization=quantization,
                parallelism=manifest.Parallelism(),
                limits=manifest.Limits(max_seq_len=max_seq_len),
                requires=manifest.Requires(packages={"openvino": result["packages"]["openvino"]}),
                verification=figures,
                files=manifest.list_files(out.path),
                built=manifest.Built(
                    by=f"build_engine {__version__}",
                    command=options.command,
                    date=_date(),
                    seconds=round(time.monotonic() - started, 1),
                    details={**result["packages"], "peak_memory_bytes": result["peak_bytes"]},
                ),
            )
            manifest.write(out.path, written)
            out.commit()
    except (BuilderError, Interrupted, KeyboardInterrupt) as error:
        if isinstance(error, (UserMistake, Interrupted, KeyboardInterrupt)):
            shutil.rmtree(log.parent, ignore_errors=True)
        raise
    shutil.rmtree(log.parent, ignore_errors=True)
    say_summary(written, options.output, recipe, origin, console)
    return written


def say_summary(written: manifest.Manifest, output: Path, recipe: Recipe, origin: Source, console: Console) -> None:
    size = sum(entry.bytes for entry in written.files)
    console.say(
        f"{output}: {written.source.name} for {written.target}, "
        f"{recipe.name} weights ({written.quantization.algorithm}), KV cache {written.quantization.kv_cache}, "
        f"{format_bytes(size)} from {format_bytes(origin.weight_bytes)}, "
        f"in {format_seconds(written.built.seconds)}"
    )
    if written.verification is not None:
        console.say(as_text(written.verification))


def copy_tokenizer(origin: Source, directory: Path) -> None:
    """Copy the tokenizer, its templates and the model's configuration files beside the engine."""
    for name in (*source.CONFIG_FILES, *source.TOKENIZER_FILES):
        path = origin.directory / name
        if path.is_file():
            shutil.copyfile(path, directory / name)
    if not (directory / "tokenizer.json").is_file():
        raise UserMistake(
            f"{origin.name} has no tokenizer.json: save its tokenizer once with "
            "AutoTokenizer.from_pretrained(...).save_pretrained(...)"
        )


def _sequence_limit(asked: int | None, origin: Source) -> int:
    limit = origin.config.max_position_embeddings
    if asked is not None and not 1 <= asked <= limit:
        raise UserMistake(f"--max-seq-len {asked} is not between 1 and the model's own limit of {limit} tokens")
    return asked or limit


def _log_path() -> Path:
    return Path(tempfile.mkdtemp(prefix="build_engine-")) / "build.log"


def _date() -> str:
    """UTC, to the second; SOURCE_DATE_EPOCH replaces it where builds must be reproducible to the byte."""
    epoch = os.environ.get("SOURCE_DATE_EPOCH")
    moment = datetime.datetime.fromtimestamp(float(epoch) if epoch else time.time(), tz=datetime.timezone.utc)
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")
