"""Run folders: swept when their owner is gone, never while it lives, however little of it can be seen."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from inflight.engine_process.launch import EngineProcess
from inflight.engines.run_folder import RunFolder, sweep_run_folders
from inflight.engines.spec import WorkerSpec
from inflight.errors import LoadError
from inflight_tools.common.layout import BACKEND_SOURCE
from tests.harness.namespaces import APART, needs_pid_namespace
from tests.unit.machines.tokenizer_kinds import byte_level


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """This test's own temporary folder."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def python(program: str, temporary: Path, *before: str) -> list[str]:
    variables = [f"TMPDIR={temporary}", f"PYTHONPATH={BACKEND_SOURCE}"]
    return [*before, "env", *variables, sys.executable, "-c", program]


@pytest.fixture
def owner(temporary: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that owns a run folder."""
    program = """
import time
from inflight.engines.run_folder import RunFolder
folder = RunFolder()
(folder.path / "spec.json").touch()
print(folder.path, flush=True)
time.sleep(300)
"""
    process = subprocess.Popen(python(program, temporary), stdout=subprocess.PIPE, encoding="utf-8")
    yield process
    process.kill()
    process.communicate()


def test_a_folder_goes_with_its_owner(owner: subprocess.Popen[str], temporary: Path) -> None:
    assert owner.stdout is not None
    folder = Path(owner.stdout.readline().strip())
    assert folder.stat().st_mode & 0o777 == 0o700
    sweep_run_folders()
    assert list(folder.iterdir())
    owner.kill()
    owner.wait(10)
    sweep_run_folders()
    assert list(temporary.iterdir()) == []


def test_a_living_owner_keeps_its_folder_although_its_process_id_is_not_seen(
    owner: subprocess.Popen[str], temporary: Path
) -> None:
    assert owner.stdout is not None
    folder = Path(owner.stdout.readline().strip())
    seen_from_elsewhere = folder.rename(temporary / "inflight-run-999999999-x")
    sweep_run_folders()
    assert list(seen_from_elsewhere.iterdir())


@needs_pid_namespace
def test_a_folder_of_a_living_owner_in_another_pid_namespace_stays(
    owner: subprocess.Popen[str], temporary: Path
) -> None:
    assert owner.stdout is not None
    folder = Path(owner.stdout.readline().strip())
    sweep = "from inflight.engines.run_folder import sweep_run_folders; sweep_run_folders()"
    there = python(sweep, temporary, *APART)
    subprocess.run(there, check=True, timeout=60)
    assert list(folder.iterdir())
    owner.kill()
    owner.wait(10)
    subprocess.run(there, check=True, timeout=60)
    assert list(temporary.iterdir()) == []


def test_a_folder_that_was_never_locked_goes_after_an_hour(temporary: Path) -> None:
    left = temporary / ".inflight-making-1-x"
    left.mkdir()
    sweep_run_folders()
    assert left.exists()
    os.utime(left, (time.time() - 4000, time.time() - 4000))
    sweep_run_folders()
    assert not left.exists()


def test_what_is_no_folder_of_ours_stays(temporary: Path, tmp_path: Path) -> None:
    others = tmp_path / "others"
    others.mkdir()
    (temporary / "inflight-run-999999999-x").symlink_to(others)
    (temporary / "inflight-run-x-y").mkdir()
    sweep_run_folders()
    assert len(list(temporary.iterdir())) == 2
    assert others.exists()


@pytest.mark.parametrize("deep", [0, 150])
def test_an_engine_starts_in_a_temporary_folder_of_any_depth(
    temporary: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, deep: int
) -> None:
    """The address of an AF_UNIX socket has 107 bytes at most."""
    if deep:
        monkeypatch.setattr(tempfile, "tempdir", str(temporary / ("d" * deep)))
        (temporary / ("d" * deep)).mkdir()
    byte_level().save(str(tmp_path / "tokenizer.json"))
    process = EngineProcess(WorkerSpec("simulated", str(tmp_path), {}, 0))
    try:
        assert process.start(60.0, lambda: False).name == "simulated"
    finally:
        process.kill()
    assert list(Path(tempfile.gettempdir()).iterdir()) == []


def test_an_engine_that_cannot_be_prepared_leaves_nothing_and_says_so(
    temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("inflight.engine_process.launch.StatePage", full)
    open_before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(LoadError, match="No space left on device"):
        EngineProcess(WorkerSpec("simulated", ".", {}, 0))
    assert list(temporary.iterdir()) == []
    assert len(os.listdir("/proc/self/fd")) == open_before


def test_closing_twice_is_no_harm() -> None:
    folder = RunFolder()
    folder.close()
    folder.close()
    assert not folder.path.exists()
