"""The Python that runs an engine: the server's own, or that of an environment of the engine's (`engine_python`).

Triton's stub needs numpy below 2 and vLLM brings numpy 2, so the two cannot share an environment. They need not: engine
and backend meet in msgpack frames alone.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from inflight.errors import LoadError, last_line, quoted
from inflight.model.files import path_of

ASK_TIMEOUT_S = 60.0
LEAST_VERSION = (3, 10)
# Engines report their use to their makers unless they are told not to. OpenVINO has no variable for it (its package).
UNTOLD = {
    "DO_NOT_TRACK": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TRTLLM_NO_USAGE_STATS": "1",
    "VLLM_DO_NOT_TRACK": "1",
    "VLLM_NO_USAGE_STATS": "1",
}


@dataclasses.dataclass(frozen=True, slots=True)
class PythonFacts:
    """What an interpreter says of itself: its version, and of the packages asked for those it has, with versions."""

    version: tuple[int, int]
    packages: dict[str, str]


def python_executable() -> str:
    """The interpreter of this environment. Inside Triton's stub `sys.executable` may be the stub itself."""
    candidates = [Path(sys.prefix) / "bin" / "python3", Path(sys.executable or "")]
    for candidate in candidates:
        if candidate.is_file() and candidate.name.startswith("python"):
            return str(candidate)
    found = shutil.which("python3")
    if found is None:
        raise LoadError(
            "no python3 was found on PATH to start the engine with; put the environment's bin folder first."
        )
    return found


def choose_python(version_folder: Path, engine_python: str) -> str:
    """The path of the engine's own interpreter, checked; empty where the parameter is. Raises `LoadError`."""
    if not engine_python:
        return ""
    # Not resolved: a link is what makes an environment.
    path = Path(os.path.abspath(version_folder / path_of(engine_python)))
    if not os.access(path, os.X_OK) or not path.is_file():
        raise LoadError(
            f"model parameter engine_python names {quoted(engine_python)}, which is no program that can be run here; "
            "name the bin/python of the engine's environment."
        )
    facts = ask(str(path), ["msgspec"])
    if facts.version < LEAST_VERSION:
        raise LoadError(
            f"model parameter engine_python is Python {facts.version[0]}.{facts.version[1]}, and an engine needs "
            f"{LEAST_VERSION[0]}.{LEAST_VERSION[1]} or later; make its environment with a newer one."
        )
    if "msgspec" not in facts.packages:
        raise LoadError(
            "the environment of model parameter engine_python lacks msgspec, which the engine process speaks with; "
            "install it there (pip install msgspec)."
        )
    return str(path)


def find_packages(names: list[str]) -> dict[str, str]:
    """Of these packages those that this interpreter has, with their versions; nothing is imported.

    Its source is also run by other interpreters (`ask`): it needs nothing but what it imports itself.
    """
    import importlib.util
    from importlib import metadata

    found = {}
    for name in names:
        if importlib.util.find_spec(name) is None:
            continue
        distributions = metadata.packages_distributions().get(name) or [name]
        try:
            found[name] = metadata.version(distributions[0])
        except metadata.PackageNotFoundError:
            found[name] = "of unknown version"
    return found


_QUESTION = f"""from __future__ import annotations
import json, sys
{inspect.getsource(find_packages)}
print(json.dumps([list(sys.version_info[:2]), find_packages(sys.argv[1:])]))
"""


def ask(python: str, packages: list[str]) -> PythonFacts:
    """Which of these packages an interpreter has; nothing is imported. Raises `LoadError` when it does not answer."""
    own = python == python_executable()
    environment = own_environment() if own else foreign_environment(Path(python), None)
    try:
        done = subprocess.run(
            [python, "-c", _QUESTION, *packages],
            env=environment,
            cwd="/",  # a folder named like a package would be taken for it
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=ASK_TIMEOUT_S,
            check=True,
        )
        version, found = json.loads(done.stdout)
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        stated = getattr(error, "stderr", None) or error
        what = "the server's own Python" if own else "the program that model parameter engine_python names"
        raise LoadError(
            f"{what} does not answer as Python does ({last_line(stated, 200)}); name the bin/python of the engine's "
            "environment with engine_python."
        ) from None
    return PythonFacts((version[0], version[1]), found)


def own_environment() -> dict[str, str]:
    """The environment variables of a process that runs under the server's Python and finds this package."""
    paths = [str(Path(__file__).resolve().parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, **_OURS, "PYTHONPATH": os.pathsep.join(paths)}


def lend_package(folder: Path) -> Path:
    """A new folder in `folder` in which another Python finds this package, and nothing else of the server's."""
    packages = folder / "packages"
    packages.mkdir(exist_ok=True)
    (packages / "inflight").symlink_to(Path(__file__).resolve().parents[1])
    return packages


def foreign_environment(python: Path, packages: Path | None) -> dict[str, str]:
    """The environment variables of a process that runs under another Python than the server's.

    What would lead it to the server's packages is left out, and folders of LD_LIBRARY_PATH that hold a libpython: the
    loader would take that one instead of the interpreter's own. `packages` becomes its PYTHONPATH.
    """
    environment = {name: value for name, value in os.environ.items() if name not in _OF_THE_SERVERS} | _OURS
    folders = [folder for folder in environment.get("LD_LIBRARY_PATH", "").split(os.pathsep) if folder]
    kept = [folder for folder in folders if not any(Path(folder).glob("libpython3*"))]
    environment["LD_LIBRARY_PATH"] = os.pathsep.join(kept)
    if not kept:
        del environment["LD_LIBRARY_PATH"]
    environment["PATH"] = os.pathsep.join([str(python.parent), environment.get("PATH", os.defpath)])
    if packages is not None:
        environment["PYTHONPATH"] = str(packages)
    return environment


_OURS = {"PYTHONUTF8": "1", **UNTOLD}  # files and their names are UTF-8, whatever the locale, for libraries too
_OF_THE_SERVERS = frozenset({"PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "__PYVENV_LAUNCHER__"})
