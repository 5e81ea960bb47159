"""The ``build`` and ``compile`` commands: a checkpoint into an engine directory, whole or not at all."""

from __future__ import annotations

import datetime
import json
import os
import shutil
import time
from pathlib import Path

import msgspec

import inflight.manifest as manifest
from build_engine import __version__, source
from build_engine.architectures import HF_QUANTIZED, OPENVINO, TENSORRT_LLM, support_for
from build_engine.console import Console, format_bytes, format_seconds
from build_engine.errors import UserMistake
from build_engine.gguf_files.checkpoint import checkpoint_of
from build_engine.hf_config import switching_length
from build_engine.inspection.machine import compute_capabilities
from build_engine.job import BuildOptions, Job, Outcome
from build_engine.openvino import target as openvino_target
from build_engine.output import OutputDirectory, check_free, warn_served
from build_engine.preflight import check_packages
from build_engine.quantization import kv_cache_for, recipe_for
from build_engine.source import Source
from build_engine.tensorrt import gpu_kinds, hf_target
from build_engine.tensorrt import target as tensorrt_target
from build_engine.tensorrt.compile import find_program, say_what_lacks
from build_engine.tensorrt.config import FLAGS_FILE
from build_engine.verification.verify import as_text
from build_engine.vocabulary import check_vocabulary
from build_engine.weights_check import check_weights
from build_engine.work_folder import work_folder

TARGETS = {
    OPENVINO: openvino_target.prepare,
    TENSORRT_LLM: tensorrt_target.prepare,
    HF_QUANTIZED: hf_target.prepare,
}
LOG = "build.log"


def build(options: BuildOptions, console: Console) -> manifest.Manifest:
    """Build an engine; returns its manifest. Raises `UserMistake` before any work when it cannot be done."""
    started = time.monotonic()
    check_free(options.output, force=options.force)
    warn_served(options.output, console)
    origin = source.resolve(checkpoint_of(options.model, console))
    support_for(origin.config, options.target)
    recipe = recipe_for(options.quantization, options.target)
    kv_cache = kv_cache_for(options.kv_cache, options.target, recipe)
    max_seq_len = sequence_limit(options.max_seq_len, origin, options.target, console)
    run = TARGETS[options.target](options, origin, recipe, kv_cache)
    check_packages(options.target)
    check_weights(origin)
    check_vocabulary(origin, console)
    with work_folder() as work, OutputDirectory(options.output, force=options.force) as out:
        log = work / LOG
        with console.step("hashing the checkpoint"):
            sha256 = origin.sha256()
        source.copy_tokenizer(origin, out.path, with_config=options.target == OPENVINO)
        staged = source.stage(origin, out.scratch / "staged")
        job = Job(options, origin, recipe, kv_cache, max_seq_len, out.path, out.scratch, staged, log, console, sha256)
        outcome = run(job)
        written = make_manifest(outcome, origin, sha256, out.path, options.command, started)
        manifest.write(out.path, written)
        out.commit()
    say_summary(written, options.output, origin.weight_bytes, console)
    if outcome.advice:
        console.say(outcome.advice)
    return written


def compile_engine(directory: Path, output: Path, *, force: bool, command: str, console: Console) -> manifest.Manifest:
    """Compile a checkpoint that ``build --stop-after checkpoint`` wrote; needs ``trtllm-build`` and a GPU."""
    started = time.monotonic()
    check_free(output, force=force)
    warn_served(output, console)
    try:
        described = manifest.check_whole(directory, target="tensorrt_llm", deep=True)
    except manifest.ManifestError as error:
        raise UserMistake(str(error)) from None
    if described.stage != "checkpoint":
        raise UserMistake(f"{directory} is compiled already")
    checkpoint = directory / tensorrt_target.CHECKPOINT
    flags = json.loads((checkpoint / FLAGS_FILE).read_text(encoding="utf-8"))["flags"]
    gpu_kinds.check_gpus(described.quantization.recipe, described.quantization.kv_cache, None, compute_capabilities())
    find_program()
    say_what_lacks(described.quantization.recipe, described.quantization.kv_cache, console)
    world_size = described.parallelism.tensor * described.parallelism.pipeline
    with work_folder() as work, OutputDirectory(output, force=force) as out:
        log = work / LOG
        requires = tensorrt_target.compile_checkpoint(checkpoint.resolve(), out.path, flags, world_size, console, log)
        for path in directory.iterdir():
            if path.is_file() and path.name != manifest.MANIFEST_NAME:
                shutil.copyfile(path, out.path / path.name)
        seconds = round(described.built.seconds + time.monotonic() - started, 1)
        written = msgspec.structs.replace(
            described,
            stage="engine",
            requires=requires,
            files=manifest.list_files(out.path),
            built=msgspec.structs.replace(described.built, command=command, date=now(), seconds=seconds),
        )
        manifest.write(out.path, written)
        out.commit()
    console.say(f"{output}: compiled for {world_size} GPUs with TensorRT-LLM {requires.packages['tensorrt_llm']}")
    return written


def make_manifest(
    outcome: Outcome, origin: Source, sha256: str, directory: Path, command: str, started: float
) -> manifest.Manifest:
    return manifest.Manifest(
        target=outcome.target,
        stage="checkpoint" if outcome.stage == "checkpoint" else "engine",
        source=manifest.Source(name=origin.name, architecture=origin.config.architecture, sha256=sha256),
        quantization=outcome.quantization,
        parallelism=outcome.parallelism,
        limits=outcome.limits,
        requires=outcome.requires,
        verification=outcome.verification,
        files=manifest.list_files(directory),
        built=manifest.Built(
            by=f"build_engine {__version__}",
            command=command,
            date=now(),
            seconds=round(time.monotonic() - started, 1),
            details=outcome.details,
        ),
    )


def say_summary(written: manifest.Manifest, output: Path, source_bytes: int, console: Console) -> None:
    size = sum(entry.bytes for entry in written.files)
    console.say(
        f"{output}: {written.source.name} for {written.target}, "
        f"{written.quantization.recipe} weights ({written.quantization.algorithm}), "
        f"KV cache {written.quantization.kv_cache}, {format_bytes(size)} from {format_bytes(source_bytes)}, "
        f"in {format_seconds(written.built.seconds)}"
    )
    if written.verification is not None:
        console.say(as_text(written.verification))


def sequence_limit(asked: int | None, origin: Source, target: str, console: Console) -> int:
    """Tokens of a sequence: what is asked, else the model's own limit.

    OpenVINO's graph picks LongRoPE's factors anew in every step, by how long the longest sequence in it is, and keeps
    the keys of before: past the border a sequence has keys of both kinds. It ends at the border there.
    """
    limit = origin.config.max_position_embeddings
    if asked is not None and not 1 <= asked <= limit:
        raise UserMistake(f"--max-seq-len {asked} is not between 1 and the model's own limit of {limit} tokens")
    border = switching_length(origin.config) if target == OPENVINO else None
    if border is None or border >= limit:
        return asked or limit
    if asked is not None and asked > border:
        raise UserMistake(
            f"--max-seq-len {asked} is more than the {border} tokens up to which OpenVINO serves {origin.name} rightly "
            "(its LongRoPE changes every position beyond): ask for fewer"
        )
    if asked is None:
        console.warn(
            f"sequences end at {border} tokens instead of {limit}: {origin.name}'s LongRoPE changes every position "
            "beyond, which OpenVINO's graph does not follow"
        )
    return asked or border


def now() -> str:
    """UTC, to the second; SOURCE_DATE_EPOCH replaces it where builds must be reproducible to the byte."""
    epoch = os.environ.get("SOURCE_DATE_EPOCH")
    moment = datetime.datetime.fromtimestamp(float(epoch) if epoch else time.time(), tz=datetime.timezone.utc)
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")
