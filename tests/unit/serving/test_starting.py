"""The engine loads while the model is still being read; whatever ends that ends the engine."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from inflight.backend.model import Backend
from inflight.backend.starting import Starting
from inflight.engine_process.launch import EngineProcess
from inflight.engine_process.supervisor import Health
from inflight.errors import LoadError
from inflight.model.parameters import ModelConfig
from tests.unit.machines.tokenizer_kinds import write_folder

pytestmark = pytest.mark.fast

SOON_S = 20.0


@pytest.fixture
def version(tmp_path: Path) -> Path:
    """A version folder with an engine directory."""
    write_folder(tmp_path / "engine", "byte_level")
    return tmp_path


def wait_for(true: Callable[[], bool]) -> None:
    end = time.monotonic() + SOON_S
    while not true():
        assert time.monotonic() < end
        time.sleep(0.02)


def children(name: str = "inflight.engine_worker") -> list[int]:
    """Engine processes that this process has started and that run."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = int((entry / "stat").read_text(encoding="utf-8").rpartition(")")[2].split()[1])
                words = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if parent == os.getpid() and name.encode() in words:
                found.append(int(entry.name))
    return found


def test_an_engine_that_is_ready_early_waits_for_its_model(version: Path) -> None:
    config = ModelConfig(engine="simulated")
    starting = Starting(config, version)
    starting.supervisor.launch()
    wait_for(starting.supervisor.loaded.is_set)
    (engine,) = children()
    assert starting.supervisor.health is Health.STARTING
    assert starting.supervisor.engine_pid == 0, "nobody hears of it yet"
    backend = Backend(config, version, starting=starting)
    backend.start()
    try:
        assert backend.ready()
        assert children() == [engine] == [starting.supervisor.engine_pid]
    finally:
        backend.stop()
    assert children() == []


def test_what_ends_the_reading_ends_the_engine(version: Path) -> None:
    (version / "engine" / "tokenizer.json").write_text("{", encoding="utf-8")
    config = ModelConfig(engine="simulated")
    starting = Starting(config, version)
    starting.supervisor.launch()
    wait_for(lambda: bool(children()))
    with pytest.raises(LoadError, match="tokenizer"):
        Backend(config, version, starting=starting)
    starting.stop()
    assert children() == []
    starting.stop()  # once more is nothing


def test_an_engine_that_was_never_launched_is_stopped(version: Path) -> None:
    Starting(ModelConfig(engine="simulated"), version).stop()


def test_an_engine_that_cannot_load_says_so_to_its_model(version: Path) -> None:
    config = ModelConfig(engine="simulated", engine_options={"no_such_option": "1"})
    starting = Starting(config, version)
    starting.supervisor.launch()
    wait_for(lambda: starting.supervisor.health is Health.FAILED)
    with pytest.raises(LoadError, match="no_such_option"):
        Backend(config, version, starting=starting).start()
    assert children() == []


def test_an_engine_that_is_lost_before_its_model_is_there_is_told(version: Path) -> None:
    config = ModelConfig(engine="simulated")
    starting = Starting(config, version)
    starting.supervisor.launch()
    wait_for(starting.supervisor.loaded.is_set)
    os.kill(children()[0], 9)
    wait_for(lambda: starting.supervisor.health is Health.FAILED)
    with pytest.raises(LoadError, match="ended"):
        Backend(config, version, starting=starting).start()
    assert children() == []


def test_an_engine_that_ended_before_anybody_listened_has_still_said_why(
    version: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The thread that listens may come late: others of this process import packages meanwhile."""
    accept = EngineProcess._accept

    def late(self: EngineProcess, *arguments: Any) -> Any:
        wait_for(lambda: self.exit_code() is not None)
        return accept(self, *arguments)

    monkeypatch.setattr(EngineProcess, "_accept", late)
    config = ModelConfig(engine="simulated", engine_options={"no_such_option": "1"})
    with pytest.raises(LoadError, match="no_such_option"):
        Backend(config, version).start()
