"""Starting the process that checks guides: whatever goes wrong half-way leaves no process, socket or folder behind."""

from __future__ import annotations

import os
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from inflight.engines.base import Guide
from inflight.errors import ErrorCode
from inflight.guides import process
from inflight.guides.frames import LinkError, Start
from inflight.guides.process import GuideProcess
from inflight.guides.service import Decision, GuideService

pytestmark = pytest.mark.fast

START = Start("simulated", "nowhere", 1 << 30)


@pytest.fixture
def leftovers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A temporary folder, descriptors and children as they were before."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    before = descriptors(), children()
    yield
    assert not list(tmp_path.iterdir())
    assert (descriptors(), children()) == before


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def children() -> set[str]:
    return set(Path(f"/proc/self/task/{os.getpid()}/children").read_text(encoding="utf-8").split())


def program(folder: Path, body: str) -> str:
    """A stand-in for the interpreter."""
    path = folder / "python"
    path.write_text(f"#!/bin/sh\n{body}\n", encoding="utf-8")
    path.chmod(0o755)
    return str(path)


def test_a_python_that_is_not_there(leftovers: None) -> None:
    with pytest.raises(LinkError, match="cannot be started"):
        GuideProcess(START, "/nowhere/python")


def test_no_more_processes(leftovers: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any, **__: Any) -> None:
        raise BlockingIOError("Resource temporarily unavailable")

    monkeypatch.setattr(subprocess, "Popen", fails)
    with pytest.raises(LinkError, match="cannot be started"):
        GuideProcess(START)


def test_no_more_descriptors(leftovers: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails() -> None:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(process.socket, "socketpair", fails)
    with pytest.raises(LinkError, match="cannot be started"):
        GuideProcess(START)


def test_a_full_disk(leftovers: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(_: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(process, "lend_package", fails)
    with pytest.raises(LinkError, match="cannot be started"):
        GuideProcess(START, "/bin/true")


@pytest.mark.parametrize("body", ["exit 0", "exit 3", "kill -9 $$"])
def test_a_program_that_leaves_at_once(leftovers: None, tmp_path_factory: pytest.TempPathFactory, body: str) -> None:
    python = program(tmp_path_factory.mktemp("bin"), body)
    service = GuideService("simulated", "nowhere", python=python)
    answers: list[Decision] = []
    service.ask(Guide("regex", "a"), answers.append)
    give_up = time.monotonic() + 20.0
    while not answers and time.monotonic() < give_up:
        time.sleep(0.01)
    service.stop()
    error = answers[0].error
    assert error is not None
    assert error.code is ErrorCode.UNAVAILABLE  # nothing is wrong with the guide
    assert service.known(Guide("regex", "a")) is None


def test_a_program_that_never_gets_ready_does_not_hold_up_an_unload(
    leftovers: None, tmp_path_factory: pytest.TempPathFactory
) -> None:
    python = program(tmp_path_factory.mktemp("bin"), "exec sleep 60")
    service = GuideService("simulated", "nowhere", python=python)
    answered = threading.Event()
    service.ask(Guide("regex", "a"), lambda _: answered.set())
    time.sleep(0.3)
    began = time.monotonic()
    service.stop()
    assert time.monotonic() - began < 3.0
    assert answered.is_set()


def test_a_life(leftovers: None) -> None:
    made = GuideProcess(START)
    made.wait_ready()
    assert made.refusal == ""
    made.close()
    made.close()
