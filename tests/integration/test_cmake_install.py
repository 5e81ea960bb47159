"""`cmake --install` into an empty prefix, a server that serves from it, and the packages that cpack makes."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from inflight_tools.common.layout import MODEL_REPOSITORY, REPOSITORY, SERVER
from inflight_tools.server.find import Triton
from inflight_tools.server.server import Server, ServerConfig
from tests.conftest import require_installation
from tests.harness.grpc_client import GrpcClient

pytestmark = pytest.mark.server


def cmake(*arguments: str | Path, ok: bool = True, tool: str = "cmake", cwd: Path | None = None) -> str:
    """Run cmake, ctest or cpack; returns what it printed."""
    assert shutil.which(tool), f"{tool} is missing: apt-get install cmake make"
    done = subprocess.run([tool, *arguments], capture_output=True, text=True, timeout=300, check=False, cwd=cwd)
    text = done.stdout + done.stderr
    assert (done.returncode == 0) == ok, text
    return text


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A configured build folder."""
    require_installation()
    folder = tmp_path_factory.mktemp("build")
    cmake("-S", REPOSITORY, "-B", folder, f"-DINFLIGHT_PYTHON={sys.executable}")
    return folder


@pytest.fixture
def prefix(build: Path, tmp_path: Path) -> Path:
    """An empty prefix after the installation."""
    folder = tmp_path / "prefix"
    cmake("--install", build, "--prefix", folder)
    return folder


def test_a_server_serves_from_an_empty_prefix(prefix: Path, tmp_path: Path) -> None:
    backends = prefix / "backends"
    # The wheel's own program without the launcher of this repository: nothing but the installed files helps it.
    python = Path(sys.executable).parent
    triton = Triton(
        SERVER / "pytriton/tritonserver/bin/tritonserver",
        backends,
        {"PATH": f"{python}:{os.environ['PATH']}", "LD_LIBRARY_PATH": ""},
    )
    config = ServerConfig(repository=MODEL_REPOSITORY, log=tmp_path / "log", drain_timeout_s=0.0)
    with Server(config, triton) as server:
        server.wait_ready(120)
        (stub,) = server.stub_pids()
        assert Path(f"/proc/{stub}/exe").resolve() == backends / "python" / "triton_python_backend_stub"
        maps = Path(f"/proc/{stub}/maps").read_text(encoding="utf-8")
        assert str(SERVER) not in maps  # it lives off the prefix alone
        with GrpcClient(server.grpc_url) as client:
            answer = client.generate("The capital of France is", max_tokens=8)
        assert answer.text.startswith(" Paris")


def test_the_prefix_holds_the_backend_and_nothing_of_the_work_tree(prefix: Path) -> None:
    installed = {path.relative_to(prefix) for path in prefix.rglob("*") if path.is_file()}
    source = REPOSITORY / "python_backend"
    wanted = {
        Path("backends/inflight") / path.relative_to(source)
        for path in [source / "model.py", *(source / "inflight").rglob("*.py")]
    }
    assert wanted <= installed
    assert not [path for path in installed if "__pycache__" in path.parts or path.suffix == ".pyc"]
    assert not [path for path in prefix.rglob("*") if path.name.startswith(".")]
    assert not [path for path in prefix.rglob("*") if path.is_symlink() and not path.exists()]
    text = (prefix / "backends/inflight/requirements.txt").read_text()
    assert "openvino-genai==" in text
    assert "torch==" not in text


def test_a_python_backend_that_is_there_is_kept(build: Path, tmp_path: Path) -> None:
    there = tmp_path / "backends" / "python"
    there.mkdir(parents=True)
    for name in ("libtriton_python.so", "triton_python_backend_stub"):
        (there / name).write_text("another")
    text = cmake("--install", build, "--prefix", tmp_path)
    assert f"Kept: {there}" in text
    assert {path.name for path in there.iterdir()} == {"libtriton_python.so", "triton_python_backend_stub"}
    assert (tmp_path / "backends/inflight/model.py").exists()


def test_without_a_server_to_copy_from_it_says_what_fetches_one(tmp_path: Path) -> None:
    build = tmp_path / "build"
    cmake("-S", REPOSITORY, "-B", build, f"-DINFLIGHT_PYTHON={sys.executable}", f"-DTRITON_WHEEL_DIR={tmp_path}")
    text = " ".join(cmake("--install", build, "--prefix", tmp_path / "prefix", ok=False).split())
    assert "has no Python backend of Triton" in text
    assert "scripts/fetch_triton.py" in text
    assert "-DTRITON_WHEEL_DIR=DIR" in text


def test_a_python_of_another_version_is_refused(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho 3.13\n")
    python.chmod(0o755)
    text = " ".join(cmake("-S", REPOSITORY, "-B", tmp_path / "b", f"-DINFLIGHT_PYTHON={python}", ok=False).split())
    assert "is Python 3.13 and the backend runs on 3.10, 3.11 and 3.12" in text


def test_ctest_knows_the_tiers(build: Path) -> None:
    text = cmake("-N", tool="ctest", cwd=build)
    assert "Test #1: fast" in text
    assert "Test #2: server" in text
    assert "full" not in text
    assert "full" in cmake("-N", "-C", "full", tool="ctest", cwd=build)


def test_cpack_makes_a_tarball_and_a_debian_package(build: Path) -> None:
    cmake(tool="cpack", cwd=build)
    (tarball,) = build.glob("*.tar.gz")
    with tarfile.open(tarball) as archive:
        names = archive.getnames()
    assert "opt/tritonserver/backends/inflight/model.py" in names
    with tarfile.open(tarball) as archive:
        member = archive.extractfile("opt/tritonserver/backends/inflight/requirements.txt")
        assert member is not None
        listed = member.read().decode()
    assert "install only what is lacking" in listed
    lines = [line for line in listed.splitlines() if not line.startswith("#")]
    locked = (REPOSITORY / "requirements" / "serve.txt").read_text(encoding="utf-8").splitlines()
    assert lines == [line for line in locked if not line.startswith("#")]
    # Triton's own files are the business of the package that brought them.
    assert not [name for name in names if "/backends/python" in name]
    (package,) = build.glob("*.deb")
    if shutil.which("dpkg-deb"):
        fields = subprocess.run(["dpkg-deb", "-f", package], capture_output=True, text=True, check=True).stdout
        assert "Package: inflight-triton-backend\n" in fields
        assert "Architecture: all\n" in fields
        assert "Depends: python3 (>= 3.10), python3 (<< 3.13)\n" in fields
        assert "only\n msgspec is lacking" in fields
        listing = subprocess.run(["dpkg-deb", "-c", package], capture_output=True, text=True, check=True).stdout
        assert "./opt/tritonserver/backends/inflight/inflight/backend/model.py" in listing
