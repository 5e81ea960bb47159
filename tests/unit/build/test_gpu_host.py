"""A GPU host without a build environment: `inspect` says yes or no, and `compile` runs, with msgspec alone."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

import inflight.manifest as manifest
from tests.unit.build import trtllm_build_standin as standin
from tests.unit.build.compiled import checkpoint_directory

pytestmark = pytest.mark.fast

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment without torch, transformers, ModelOpt, numpy and tokenizers, and beside it msgspec."""
    folder = tmp_path_factory.mktemp("bare")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder / "venv")], check=True, timeout=60)
    found = importlib.util.find_spec("msgspec")
    assert found is not None
    assert found.origin is not None
    shutil.copytree(Path(found.origin).parent, folder / "packages" / "msgspec")
    information = folder / "packages" / "tensorrt_llm-1.2.1.dist-info"
    information.mkdir()
    metadata = "Metadata-Version: 2.1\nName: tensorrt_llm\nVersion: 1.2.1\n"
    (information / "METADATA").write_text(metadata, encoding="utf-8")
    return folder


class Host:
    """A machine with such an environment, two GPUs, and a compiler on PATH."""

    def __init__(self, bare: Path, folder: Path) -> None:
        self.python, self.packages = bare / "venv" / "bin" / "python", bare / "packages"
        folder.mkdir()
        self.programs = folder / "bin"
        self.programs.mkdir()
        self.program("trtllm-build", f'exec {sys.executable} {standin.__file__} "$@"')
        self.gpus(("9.0", 81_559), ("9.0", 81_559))

    def program(self, name: str, body: str) -> None:
        (self.programs / name).write_text(f"#!/bin/sh\n{body}\n", encoding="utf-8")
        (self.programs / name).chmod(0o755)

    def gpus(self, *gpus: tuple[str, int]) -> None:
        """Their compute capabilities and MiB."""
        capabilities = "\\n".join(capability for capability, _ in gpus)
        memories = "\\n".join(f"{mib} MiB" for _, mib in gpus)
        self.program(
            "nvidia-smi", f'case "$1" in *compute_cap) printf "{capabilities}\\n";; *) printf "{memories}\\n";; esac'
        )

    def run(self, *words: str | Path) -> subprocess.CompletedProcess[str]:
        paths = [ROOT, ROOT / "python_backend", self.packages]
        environment = {
            "PATH": f"{self.programs}{os.pathsep}/usr/bin{os.pathsep}/bin",
            "PYTHONPATH": os.pathsep.join(str(path) for path in paths),
            "HOME": os.environ.get("HOME", "/"),
        }
        command = [str(self.python), "-m", "build_engine", *(str(word) for word in words)]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)


@pytest.fixture
def host(bare: Path, tmp_path: Path) -> Host:
    return Host(bare, tmp_path / "host")


@pytest.fixture
def built(tmp_path: Path) -> Path:
    return checkpoint_directory(tmp_path / "built")


def test_it_compiles_with_nothing_but_msgspec(host: Host, built: Path, tmp_path: Path) -> None:
    names = ("torch", "transformers", "modelopt", "tokenizers", "numpy")
    lacks = f"import importlib.util as u; print([name for name in {names} if u.find_spec(name)])"
    assert subprocess.run([host.python, "-c", lacks], capture_output=True, text=True, timeout=60).stdout == "[]\n"
    asked = host.run("inspect", built)
    assert asked.returncode == 0, asked.stdout + asked.stderr
    assert "runs here: yes" in asked.stdout
    done = host.run("compile", built, "--output", tmp_path / "engine")
    assert done.returncode == 0, done.stderr
    engine = host.run("inspect", tmp_path / "engine")
    assert engine.returncode == 0, engine.stdout + engine.stderr
    assert manifest.read(tmp_path / "engine").requires.compute_capability == "9.0"


def refusal(host: Host, built: Path) -> str:
    """What `inspect` says against it; nothing is compiled and it takes no GPU."""
    asked = host.run("inspect", built, "--json")
    assert asked.returncode == 1, asked.stdout
    found = json.loads(asked.stdout)
    assert found["runs_here"] is False
    return "; ".join(found["obstacles"])


def test_no_gpu(host: Host, built: Path) -> None:
    (host.programs / "nvidia-smi").unlink()
    assert "this machine shows no NVIDIA GPU" in refusal(host, built)


def test_too_few_gpus(host: Host, built: Path) -> None:
    host.gpus(("9.0", 81_559))
    assert "split over 2 GPUs and this machine shows 1" in refusal(host, built)


def test_a_gpu_that_cannot_have_the_recipe(host: Host, built: Path) -> None:
    host.gpus(("8.0", 81_559), ("8.0", 81_559))
    assert "too old for --quantization fp8" in refusal(host, built)


def test_too_small_a_gpu(host: Host, built: Path) -> None:
    (built / "checkpoint" / "rank1.safetensors").write_bytes(bytes(3 << 20))
    described = manifest.read(built)
    manifest.write(built, msgspec.structs.replace(described, files=manifest.list_files(built)))
    host.gpus(("9.0", 2), ("9.0", 80_000))
    assert "smallest GPU has 2.1 MB" in refusal(host, built)


def test_no_compiler(host: Host, built: Path) -> None:
    (host.programs / "trtllm-build").unlink()
    assert "trtllm-build is not on PATH" in refusal(host, built)


def test_flags_that_are_missing_or_for_other_ranks(host: Host, built: Path) -> None:
    (built / "checkpoint" / "trtllm-build.json").write_text("{}", encoding="utf-8")
    assert "lacks what the compiler has to be told" in refusal(host, built)
    (built / "checkpoint" / "trtllm-build.json").write_text('{"flags": {"workers": "1"}}', encoding="utf-8")
    (built / "checkpoint" / "config.json").write_text('{"mapping": {"world_size": 4}}', encoding="utf-8")
    assert "is for 4 ranks and engine.json for 2" in refusal(host, built)
