"""The manifest of an engine directory: ``engine.json``, written by ``build_engine`` and read by the backend.

An engine directory holds the engine's own files, the tokenizer's, and ``engine.json``, which says what it is, what it
needs, how accurate it was measured to be, and the size and hash of every other file. This module is the whole contract
between the builder and the server, so it imports neither torch nor numpy nor any engine.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
from collections.abc import Callable, Iterator, Mapping
from importlib import metadata
from pathlib import Path, PurePosixPath
from typing import Literal

import msgspec

MANIFEST_NAME = "engine.json"
SCHEMA_VERSION = 1
MAX_MANIFEST_BYTES = 16 * 1024 * 1024
"""A manifest larger than this is no manifest; it bounds what a server reads before it has checked anything."""

Target = Literal["openvino", "tensorrt_llm", "hf_quantized", "tensorrt_llm_checkpoint"]
"""The last is the former name of hf_quantized, as which it is read."""

EXACT_PACKAGES = frozenset({"tensorrt", "tensorrt_llm"})
"""Compiled engines load only in the very release that built them; other packages need the same major.minor."""

REBUILD = "python -m build_engine build MODEL --target {target} --quantization {recipe} --output {directory} --force"


class ManifestError(Exception):
    """An engine directory cannot be used; the message is one sentence that says why and what to do."""


class Source(msgspec.Struct, frozen=True, kw_only=True):
    """The checkpoint an engine was built from; ``sha256`` covers its configuration, weights and tokenizer."""

    name: str
    architecture: str
    sha256: str


class Quantization(msgspec.Struct, frozen=True, kw_only=True):
    """``recipe`` is the builder's word (int8, int4-awq, …); ``algorithm`` says what was really done."""

    algorithm: str
    kv_cache: str
    recipe: str = "none"
    details: dict[str, str | int | float | bool | None] = msgspec.field(default_factory=dict)


class Parallelism(msgspec.Struct, frozen=True, kw_only=True):
    tensor: int = 1
    pipeline: int = 1


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """Limits compiled into the engine, in sequences and tokens; None where the engine has no such limit.

    ``max_attention_window`` is what each layer attends to, which TensorRT-LLM is told when it loads the engine; None
    where every layer attends to everything.
    """

    max_seq_len: int
    max_batch_size: int | None = None
    max_input_len: int | None = None
    max_num_tokens: int | None = None
    max_beam_width: int | None = None
    max_attention_window: list[int] | None = None


class Requires(msgspec.Struct, frozen=True, kw_only=True):
    """What the engine needs at load: package versions, and for GPU engines the compute capability ("9.0")."""

    packages: dict[str, str] = msgspec.field(default_factory=dict)
    compute_capability: str | None = None


class Beyond(msgspec.Struct, frozen=True, kw_only=True):
    """Accuracy on ``tokens`` tokens behind ``border``, a length beyond which the model computes in another way."""

    border: int
    tokens: int
    mean_kl: float
    mean_kl_low: float
    greedy_agreement: float


class Verification(msgspec.Struct, frozen=True, kw_only=True):
    """Accuracy against the source on ``tokens`` tokens of ``text``: perplexities, mean KL divergence in nats per
    token, and the share of positions where both choose the same greedy token.

    ``perplexity_change`` is what the perplexity is above the source's, as a share, at least and at most, and
    ``mean_kl_low`` what the mean KL divergence is at least (each with 95 % confidence, from paired windows).
    ``weight_error`` is the largest ``‖W − S‖ / ‖S‖`` of a layer, where the weights were read back. ``beyond`` has one
    entry a border that the configuration names, ``faults`` one phrase a tensor unlike the source's. ``accepted`` is
    the limit that was passed, where the user took it.
    """

    perplexity: float
    reference_perplexity: float
    mean_kl: float
    greedy_agreement: float
    text: str
    tokens: int
    size_ratio: float | None = None
    weight_error: float | None = None
    worst_weight: str = ""
    perplexity_change: tuple[float, float] | None = None
    mean_kl_low: float | None = None
    beyond: list[Beyond] = msgspec.field(default_factory=list)
    faults: list[str] = msgspec.field(default_factory=list)
    accepted: str = ""


class FileEntry(msgspec.Struct, frozen=True, kw_only=True):
    path: str
    bytes: int
    sha256: str


class Built(msgspec.Struct, frozen=True, kw_only=True):
    by: str
    command: str
    date: str
    seconds: float
    details: dict[str, str | int | float | bool | None] = msgspec.field(default_factory=dict)


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """``stage`` is ``checkpoint`` for a TensorRT-LLM checkpoint that still has to be compiled on a GPU host."""

    schema: int = SCHEMA_VERSION
    target: Target
    stage: Literal["checkpoint", "engine"] = "engine"
    source: Source
    quantization: Quantization
    parallelism: Parallelism
    limits: Limits
    requires: Requires
    verification: Verification | None
    files: list[FileEntry]
    built: Built

    def __post_init__(self) -> None:
        """A former name becomes today's."""
        msgspec.structs.force_setattr(self, "target", _present_name(self.target))


def _present_name(target: Target) -> Target:
    return "hf_quantized" if target == "tensorrt_llm_checkpoint" else target


class _SchemaOnly(msgspec.Struct):
    schema: int


def write(directory: Path, manifest: Manifest) -> None:
    """Write ``engine.json`` into ``directory`` so that a reader sees the old file or the whole new one."""
    temporary = directory / f".{MANIFEST_NAME}.{os.getpid()}"
    data = msgspec.json.format(msgspec.json.encode(manifest), indent=2) + b"\n"
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(directory / MANIFEST_NAME)
    finally:
        temporary.unlink(missing_ok=True)


def read(directory: Path) -> Manifest:
    """Read ``engine.json``; raise `ManifestError` when it is missing, of another schema, or damaged."""
    path = Path(directory) / MANIFEST_NAME
    try:
        with path.open("rb") as file:
            data = file.read(MAX_MANIFEST_BYTES + 1)
    except FileNotFoundError:
        raise ManifestError(
            f"there is no engine in {directory} ({MANIFEST_NAME} is missing): build one with "
            f"{REBUILD.format(target='openvino', recipe='int8', directory=directory)}"
        ) from None
    except OSError as error:
        raise ManifestError(f"{path} cannot be read ({error.strerror}): check its permissions") from None
    if len(data) > MAX_MANIFEST_BYTES:
        raise ManifestError(f"{path} is larger than any manifest: the directory is damaged, rebuild it")
    try:
        schema = msgspec.json.decode(data, type=_SchemaOnly).schema
        if schema == SCHEMA_VERSION:
            manifest = msgspec.json.decode(data, type=Manifest)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ManifestError(
            f"{path} is damaged ({str(error)[:200]}): rebuild the engine with {_rebuild(directory)}"
        ) from None
    if schema != SCHEMA_VERSION:
        raise ManifestError(
            f"{path} has schema {schema} and this release reads schema {SCHEMA_VERSION}: "
            f"rebuild the engine with {_rebuild(directory)}"
        )
    for entry in manifest.files:
        if not _is_plain_relative(entry.path):
            raise ManifestError(f"{path} names a file outside the engine directory: rebuild the engine")
    return manifest


def identity(manifest: Manifest) -> str:
    """What the engine is, as one hash: two builds with equal files are one, whenever they were made and measured."""
    built = Built(by="", command="", date="", seconds=0.0)
    same = msgspec.structs.replace(manifest, verification=None, built=built)
    return hashlib.sha256(msgspec.json.encode(same)).hexdigest()


def hold(directory: Path) -> int | None:
    """Mark an engine directory as served, for as long as the file descriptor is open that is given back; None where
    the file system has no locks. Whoever builds over it can say so (`is_served`).
    """
    with contextlib.suppress(OSError):
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return descriptor
        os.close(descriptor)
    return None


def is_served(directory: Path) -> bool:
    """Whether a server of this machine holds an engine directory (`hold`)."""
    try:
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return False


def check(
    directory: Path,
    *,
    target: Target | None = None,
    installed: Mapping[str, str] | None = None,
    compute_capability: str | None = None,
    deep: bool = False,
) -> Manifest:
    """Read the manifest and check that the directory is whole (`check_whole`) and fits this machine.

    File sizes are always compared; hashes only when ``deep``, because hashing a large engine at every server start
    is slow. ``installed`` maps package names to versions and replaces the lookup of this process's own packages.
    ``compute_capability`` is that of this machine's GPU ("9.0") and is compared when both sides know theirs.

    Raises `ManifestError` with one sentence that says what to rebuild and how.
    """
    manifest = check_whole(directory, target=target, deep=deep)
    if manifest.stage != "engine":
        raise ManifestError(
            f"the engine in {directory} has not been compiled yet: run "
            f"python -m build_engine compile {directory} --output ENGINE on the GPU host"
        )
    check_packages(Path(directory), manifest, installed_version if installed is None else installed.get)
    needed = manifest.requires.compute_capability
    if needed and compute_capability and needed != compute_capability:
        raise ManifestError(
            f"the engine in {directory} was compiled for compute capability {needed} and this GPU has "
            f"{compute_capability}: rebuild it on this GPU with {rebuild_command(Path(directory), manifest)}"
        )
    return manifest


def check_whole(directory: Path, *, target: Target | None = None, deep: bool = False) -> Manifest:
    """Read the manifest and check that its files are there, whatever this machine can run; raises `ManifestError`."""
    directory = Path(directory)
    manifest = read(directory)
    if target is not None and manifest.target != _present_name(target):
        raise ManifestError(
            f"the engine in {directory} is for {manifest.target} and {target} was asked for: "
            f"build one with --target {target.replace('_', '-')}"
        )
    problems = [*damaged_files(directory, manifest, deep=deep)]
    if problems:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise ManifestError(f"{problems[0]}{more}: rebuild the engine with {rebuild_command(directory, manifest)}")
    return manifest


def damaged_files(directory: Path, manifest: Manifest, *, deep: bool) -> Iterator[str]:
    """Yield one phrase for each file that is missing, of another size or (``deep``) of another hash."""
    for entry in manifest.files:
        path = directory / entry.path
        try:
            size = path.stat().st_size
        except OSError:
            yield f"{path} is missing"
            continue
        if size != entry.bytes:
            yield f"{path} has {size} bytes instead of {entry.bytes}"
        elif deep and sha256_file(path) != entry.sha256:
            yield f"{path} was altered (its sha256 differs from {MANIFEST_NAME})"


def check_packages(directory: Path, manifest: Manifest, lookup: Callable[[str], str | None]) -> None:
    """Raise `ManifestError` where an installed package does not fit the one the engine was built with."""
    for package, needed in manifest.requires.packages.items():
        found = lookup(package)
        exact = package.replace("-", "_") in EXACT_PACKAGES
        wanted = needed if exact else major_minor(needed)
        if found is None:
            raise ManifestError(
                f"the engine in {directory} needs {package} {wanted}, which is not installed: "
                f"install it with pip install '{package}=={needed}'"
            )
        if (found if exact else major_minor(found)) != wanted:
            raise ManifestError(
                f"the engine in {directory} was built for {package} {wanted} and {found} is installed: "
                f"rebuild the engine with {rebuild_command(directory, manifest)}"
            )


def rebuild_command(directory: Path, manifest: Manifest) -> str:
    """The command that builds this engine again: the recorded one where there is one."""
    if manifest.built.command:
        command = manifest.built.command
        return command if "--force" in command.split() else f"{command} --force"
    target = manifest.target.replace("_", "-")
    return REBUILD.format(target=target, recipe=manifest.quantization.recipe, directory=directory)


def list_files(directory: Path) -> list[FileEntry]:
    """Every file below ``directory`` except the manifest, with size and hash, sorted by path."""
    paths = (path for path in sorted(directory.rglob("*")) if path.is_file())
    return [
        FileEntry(path=path.relative_to(directory).as_posix(), bytes=path.stat().st_size, sha256=sha256_file(path))
        for path in paths
        if path.relative_to(directory).as_posix() != MANIFEST_NAME
    ]


def sha256_file(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def major_minor(version: str) -> str:
    """``2026.4.1.0`` → ``2026.4``."""
    return ".".join(version.split(".")[:2])


def _is_plain_relative(path: str) -> bool:
    pure = PurePosixPath(path)
    return bool(path) and not pure.is_absolute() and ".." not in pure.parts and "\0" not in path


def installed_version(package: str) -> str | None:
    """The version of a package in this environment, or None."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _rebuild(directory: Path) -> str:
    return REBUILD.format(target="openvino", recipe="int8", directory=directory)
