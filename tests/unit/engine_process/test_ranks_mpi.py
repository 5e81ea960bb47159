"""Ranks under a real mpirun: one that fails ends all, so that nobody waits for it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from inflight.engine_process import ranks
from inflight.engines.tensorrt_llm.options import TensorRtLlmOptions

ONE_FAILS = """
import sys, time
from mpi4py import MPI
from inflight.engine_process import ranks
if MPI.COMM_WORLD.Get_rank() == 1:
    ranks.main = lambda arguments: int(arguments[0]) // int(arguments[1])
    ranks.leave(ranks.run(sys.argv[1:]))
time.sleep(60)
"""


@pytest.mark.full
@pytest.mark.parametrize("arguments", [("1", "1"), ("1", "0")])
def test_a_rank_that_fails_ends_its_job(tmp_path: Path, arguments: tuple[str, str]) -> None:
    """The other rank is busy and never comes to its end. A status of 1, and an exception that nobody foresaw."""
    if shutil.which("mpirun") is None:
        pytest.skip("mpirun is missing: apt-get install openmpi-bin")
    (tmp_path / "rank.py").write_text(ONE_FAILS, encoding="utf-8")
    given = {**os.environ, **ranks.ENVIRONMENT, "PYTHONPATH": str(Path(ranks.__file__).parents[2])}
    command = [*ranks.mpirun(TensorRtLlmOptions(), 2, given), sys.executable, str(tmp_path / "rank.py"), *arguments]
    began = time.monotonic()
    done = subprocess.run(command, env=given, capture_output=True, text=True, timeout=50)
    assert done.returncode == 1, done.stderr
    assert time.monotonic() - began < 40
    assert ("ZeroDivisionError" in done.stderr) == (arguments[1] == "0")
