"""A server whose Python has more packages than this environment, which stays as it is.

Triton's stub takes its packages from the environment of the first python3 on PATH and heeds no PYTHONPATH, so it gets
an environment of its own that looks into both.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from inflight_tools.common.layout import BACKENDS, CACHE, WRAPPER
from inflight_tools.server.find import Triton


def server_with(packages: Path, folder: Path) -> Triton:
    """The server that this repository fetched, with `packages` (a folder of `pip install --target`) as well; what it
    needs is made in `folder`.
    """
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder / ".venv")], check=True, timeout=120)
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    site = folder / ".venv" / "lib" / version / "site-packages"
    (site / "more.pth").write_text(f"{packages.resolve()}\n{sysconfig.get_path('purelib')}\n", encoding="utf-8")
    cache = folder / ".cache"
    (cache / "bin").mkdir(parents=True)
    for name in ("lib", "server", "backends"):
        (cache / name).symlink_to((CACHE / name).resolve())
    shutil.copy(WRAPPER, cache / "bin" / "tritonserver")  # it finds all of these from where it lies
    return Triton(cache / "bin" / "tritonserver", BACKENDS)
