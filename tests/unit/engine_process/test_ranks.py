"""The command that starts the ranks of an engine for several GPUs."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

import pytest

from inflight.engine_process import ranks
from inflight.engine_process.ranks import SPEC_VARIABLE, rank_of, ranks_command
from inflight.engines.spec import WorkerSpec
from inflight.errors import LoadError
from tests.doubles.folders import write_checkpoint, write_engine
from tests.unit.machines.tokenizer_kinds import write_folder

pytestmark = pytest.mark.fast


@pytest.fixture
def launchers(tmp_path: Path) -> str:
    """A PATH with mpirun and srun that do nothing."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("mpirun", "srun"):
        (folder / name).write_text("#!/bin/sh\n")
        (folder / name).chmod(0o755 | stat.S_IXUSR)
    return str(folder)


def command(tmp_path: Path, path: str, world: int = 4, **options: Any) -> tuple[list[str], dict[str, str]] | None:
    tokenizer = write_folder(tmp_path / "tokenizer")
    engine = write_engine(tmp_path / "engine", tokenizer, world=world)
    spec = WorkerSpec("tensorrt_llm", str(engine), options, 0)
    environment = {"PATH": path, "PYTHONPATH": "/p", "NCCL_DEBUG": "INFO", "SECRET": "x"}
    return ranks_command(spec, "/usr/bin/python3", tmp_path / "run", environment)


def test_one_rank_needs_no_launcher(tmp_path: Path) -> None:
    assert command(tmp_path, "", world=1) is None
    checkpoint = write_checkpoint(tmp_path / "checkpoint", tmp_path / "tokenizer")
    spec = WorkerSpec("tensorrt_llm", str(checkpoint), {}, 0)
    assert ranks_command(spec, "python3", tmp_path, {"PATH": ""}) is None


def test_mpirun(tmp_path: Path, launchers: str) -> None:
    made = command(tmp_path, launchers)
    assert made is not None
    words, more = made
    assert words[:4] == ["/usr/bin/python3", "-m", "inflight.engine_process.ranks", "--launch"]
    launcher = words[4:]
    assert launcher[:5] == ["mpirun", "-n", "4", "--bind-to", "none"]
    assert "--oversubscribe" in launcher
    passed = {launcher[place + 1] for place, word in enumerate(launcher) if word == "-x"}
    assert {"PYTHONPATH", "NCCL_DEBUG", SPEC_VARIABLE} <= passed
    assert "SECRET" not in passed
    assert launcher[-4:] == ["/usr/bin/python3", "-m", "inflight.engine_process.ranks", str(tmp_path / "run")]
    assert more["OMPI_MCA_mpi_yield_when_idle"] == "1", "ranks that wait leave the cores to others"
    assert json.loads(more[SPEC_VARIABLE])["engine"] == "tensorrt_llm", "ranks elsewhere do not see the run folder"


def test_hostfile_and_further_arguments(tmp_path: Path, launchers: str) -> None:
    made = command(
        tmp_path, launchers, mpi_hostfile="/etc/hosts.mpi", num_nodes=2, mpi_arguments=["--mca", "btl", "tcp"]
    )
    assert made is not None
    text = " ".join(made[0])
    assert "--hostfile /etc/hosts.mpi" in text
    assert "--oversubscribe" not in text
    assert "--mca btl tcp /usr/bin/python3" in text


def test_slurm(tmp_path: Path, launchers: str) -> None:
    made = command(tmp_path, launchers, mpi_launcher="srun", num_nodes=2)
    assert made is not None
    assert made[0][4:9] == ["srun", "--mpi=pmix", "-n", "4", "--ntasks-per-node=2"]


def test_a_missing_launcher(tmp_path: Path) -> None:
    """apt's OpenMPI beside the one that NVIDIA's image, its mpi4py and TensorRT-LLM have would start nothing."""
    with pytest.raises(LoadError, match=r"built for 4 GPUs .* mpirun, which is not on PATH: ") as told:
        command(tmp_path, str(tmp_path))
    assert "/usr/local/mpi/bin" in str(told.value)
    assert "apt-get install" not in str(told.value)
    there = tmp_path / "mpi"
    there.mkdir()
    (there / "mpirun").write_text("#!/bin/sh\n", encoding="utf-8")
    (there / "mpirun").chmod(0o755)
    assert ranks._advice("mpirun", [str(there)]) == f"put {there} on PATH, where it is"


@pytest.mark.parametrize(
    ("environment", "rank"),
    [({}, 0), ({"OMPI_COMM_WORLD_RANK": "3"}, 3), ({"SLURM_PROCID": "2"}, 2), ({"PMIX_RANK": "1"}, 1)],
)
def test_ranks(environment: dict[str, str], rank: int) -> None:
    assert rank_of(environment) == rank
