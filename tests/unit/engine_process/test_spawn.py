"""A checkpoint of TensorRT-LLM's PyTorch flow, whose library spawns its workers through MPI, in an engine process."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from inflight.engine_process.launch import EngineProcess
from inflight.engines.base import FinishReason
from inflight.engines.spec import WorkerSpec
from inflight.errors import LoadError
from tests.doubles.apart import EngineApart
from tests.doubles.folders import environment, write_checkpoint, write_engine
from tests.doubles.stand_in import ids, request, run
from tests.unit.machines.tokenizer_kinds import write_folder

pytestmark = pytest.mark.fast


@pytest.fixture
def folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A folder with a tokenizer, in a job of Slurm's where the stand-in is installed."""
    tokenizer = write_folder(tmp_path / "tokenizer")
    (tokenizer / "generation_config.json").write_text('{"eos_token_id": 1}', encoding="utf-8")
    for name, value in environment(tmp_path / "site", profile="1.2").items():
        monkeypatch.setenv(name, value)
    for name in ("SLURM_JOBID", "SLURM_JOB_ID", "SLURM_NODELIST", "SLURM_JOB_PARTITION"):
        monkeypatch.setenv(name, "7")
    return tmp_path


def process_of(engine: Path) -> EngineProcess:
    return EngineProcess(WorkerSpec("tensorrt_llm", str(engine), {}, 4))


def test_a_checkpoint_loads_inside_an_allocation_of_slurm(folder: Path) -> None:
    process = process_of(write_checkpoint(folder / "checkpoint", folder / "tokenizer"))
    try:
        assert process.start(30.0, lambda: False).name == "tensorrt_llm"
    finally:
        process.kill()


def test_only_what_is_in_the_way_is_taken_out(folder: Path) -> None:
    checkpoint = process_of(write_checkpoint(folder / "checkpoint", folder / "tokenizer"))
    compiled = process_of(write_engine(folder / "engine", folder / "tokenizer"))
    for process, left in ((checkpoint, 1), (compiled, 4)):
        variables = process._environment()
        process._command(variables)
        assert len([name for name in variables if name.startswith("SLURM_")]) == left
        process.kill()


def test_a_load_that_never_ends_says_where_to_look(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRTLLM_DOUBLE", json.dumps({"spawn_hangs": True}))
    process = process_of(write_checkpoint(folder / "checkpoint", folder / "tokenizer"))
    try:
        with pytest.raises(
            LoadError, match=r"raise the model parameter load_timeout_s; TensorRT-LLM starts .*OpenMPI 5"
        ):
            process.start(2.0, lambda: False)
    finally:
        process.kill()


def test_a_checkpoint_answers_over_the_frames_and_ends_with_its_worker(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process ends, which is what the supervisor starts the next one for."""
    for name, value in environment(folder / "site", die_at=40, eos_every=5).items():
        monkeypatch.setenv(name, value)
    checkpoint = write_checkpoint(folder / "checkpoint", folder / "tokenizer")
    engine = EngineApart(WorkerSpec("tensorrt_llm", str(checkpoint), {"stall_timeout_ms": 500}, 4))
    try:
        (outputs,) = run(engine, request(1, [11, 12, 13], max_tokens=20, stop_token_ids=(1,))).values()
        assert (len(ids(outputs)), outputs[-1].finish) == (6, FinishReason.STOP)
        engine.add(request(2, [11, 12, 13], max_tokens=500))
        deadline = time.monotonic() + 20.0
        while not engine._link.lost.is_set() and time.monotonic() < deadline:
            time.sleep(0.05)
        assert engine._link.lost.is_set()
    finally:
        engine.close()
