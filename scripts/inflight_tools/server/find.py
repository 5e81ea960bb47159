"""Finds a tritonserver on this machine and what it needs to run this backend."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import os
import re
import shutil
import sys
import sysconfig
from dataclasses import dataclass, field
from pathlib import Path

import inflight
from inflight_tools.common.layout import BACKEND_SOURCE, BACKENDS, CACHE, IS_CHECKOUT, WRAPPER
from inflight_tools.common.report import Failure
from inflight_tools.server.paths import check_backend_directory

CONTAINER = Path("/opt/tritonserver/bin/tritonserver")
_STUB = "triton_python_backend_stub"
_PACKAGES = ("numpy", "msgspec", "tokenizers", "jinja2")  # what the backend imports, whichever engine
_ENTRY_POINTS = Path(sysconfig.get_path("data")) / "share" / "inflight" / "model.py"  # where an installation has it


@dataclass(frozen=True, slots=True)
class Triton:
    """A server to start: its program, the folder for --backend-directory, and what to add to its environment."""

    program: Path
    backend_directory: Path
    environment: dict[str, str] = field(default_factory=dict)


def find_triton(program: Path | None = None) -> Triton:
    """The server to use: `program` if given, else the one in .cache, else a container's, else the one on PATH.

    For a server that this repository did not fetch, a backend directory is assembled that links the server's own
    backends and this one. Raises `Failure` when there is no server or it cannot run this backend.
    """
    if program is None and WRAPPER.exists():
        check_backend_directory(BACKENDS)
        return Triton(WRAPPER, BACKENDS)
    on_path = shutil.which("tritonserver")
    candidates = [program] if program else [CONTAINER, *([Path(on_path)] if on_path else [])]
    for candidate in candidates:
        if os.access(candidate, os.X_OK):
            return _adopt(candidate.resolve())
    if program:
        raise Failure(f"{program} is not a program: name a tritonserver with --tritonserver.")
    raise Failure(
        "there is no tritonserver here: run scripts/quickstart.sh in a checkout of Inflight, which fetches one, run "
        "this inside one of Triton's containers, or name one with --tritonserver."
    )


def stub_python(stub: Path) -> str | None:
    """The Python version that a stub embeds, such as "3.12", by the library it is linked to; None if there is none."""
    match = re.search(rb"libpython(3\.\d+)\.so", stub.read_bytes())
    return match.group(1).decode() if match else None


def _adopt(program: Path) -> Triton:
    """Describe a server that was installed by somebody else."""
    backends = program.parent.parent / "backends"
    stub = backends / "python" / _STUB
    if not stub.exists():
        raise Failure(
            f"the Triton at {program} has no Python backend ({stub} is missing): use an image of Triton that has it, "
            "or run scripts/quickstart.sh, which fetches a server."
        )
    wanted, own = stub_python(stub), f"{sys.version_info.major}.{sys.version_info.minor}"
    if wanted and wanted != own:
        raise Failure(
            f"the Triton at {program} runs Python {wanted} and this script runs {own}: start it with python{wanted}, "
            'in an environment with the extra serve (pip install "inflight[serve]").'
        )
    missing = [package for package in _PACKAGES if importlib.util.find_spec(package) is None]
    if missing:
        raise Failure(
            f'serving needs packages that {sys.executable} lacks ({", ".join(missing)}): pip install "inflight[serve]".'
        )
    if not (backends / "inflight" / "model.py").exists():
        backends = _with_this_backend(backends)
    check_backend_directory(backends)
    # The stub takes its packages from the first python3 on PATH.
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    return Triton(program, backends, {"PATH": path, "PYTHONNOUSERSITE": "1"})


def _with_this_backend(backends: Path) -> Path:
    """A folder with links to every backend in `backends` and to this one."""
    joined = CACHE / "backends-of-container"
    joined.mkdir(parents=True, exist_ok=True)
    wanted = {entry.name: entry for entry in backends.iterdir()} | {"inflight": backend_source()}
    for entry in joined.iterdir():
        if entry.name not in wanted or entry.resolve() != wanted[entry.name].resolve():
            entry.unlink()
    for name, target in wanted.items():
        if not (joined / name).exists():
            (joined / name).symlink_to(target)
    return joined


def backend_source() -> Path:
    """A folder that Triton can load as the backend: the checkout's own, or one made of what pip installed.

    `model.py` is copied, not linked: it looks for the package beside itself. Raises `Failure` where it is missing.
    """
    if IS_CHECKOUT:
        return BACKEND_SOURCE
    if not _ENTRY_POINTS.is_file():
        raise Failure(
            f"this installation of Inflight has no {_ENTRY_POINTS}, which Triton loads: install it again with pip, or "
            "serve from a checkout."
        )
    package = Path(inflight.__file__).resolve().parent
    folder = CACHE / "backend" / hashlib.sha256(str(package).encode()).hexdigest()[:12]
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / f".model.{os.getpid()}"
    shutil.copyfile(_ENTRY_POINTS, partial)
    partial.replace(folder / "model.py")
    with contextlib.suppress(FileExistsError):
        (folder / "inflight").symlink_to(package)
    return folder
