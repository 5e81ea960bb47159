"""Large pages: what the engine's process is started with, and that glibc and the kernel make them of it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from inflight.engine_process.launch import EngineProcess
from inflight.engines.openvino.pages import TUNABLE, VARIABLE, large_pages
from inflight.engines.spec import WorkerSpec
from inflight.errors import LoadError
from inflight.model.files import text_of

SETTING = Path("/sys/kernel/mm/transparent_hugepage/enabled")
GIVEN = SETTING.exists() and "[never]" not in SETTING.read_text(encoding="ascii")
TOUCH = """
import ctypes, re
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
libc.memset.argtypes = (ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t)
libc.memset(libc.malloc(ctypes.c_size_t(64 << 20)), 1, 64 << 20)
print(re.search(r"AnonHugePages: +(\\d+)", open("/proc/self/smaps_rollup").read())[1])
"""


@pytest.mark.parametrize(
    ("there", "wanted"),
    [
        ({}, {VARIABLE: f"{TUNABLE}=1"}),
        ({VARIABLE: "glibc.malloc.arena_max=2"}, {VARIABLE: f"glibc.malloc.arena_max=2:{TUNABLE}=1"}),
        ({VARIABLE: f"{TUNABLE}=0"}, {}),
    ],
    ids=["nothing there", "beside others", "the operator decided"],
)
def test_what_is_added(there: dict[str, str], wanted: dict[str, str]) -> None:
    assert large_pages(there) == wanted


@pytest.mark.parametrize("engine", ["openvino", "simulated"])
def test_openvinos_process_alone_is_started_with_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, engine: str
) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\necho "${VARIABLE}" > {tmp_path}/seen\nexit 1\n')
    python.chmod(0o755)
    process = EngineProcess(WorkerSpec(engine, text_of(tmp_path), {}, 0, python=text_of(python)))
    try:
        with pytest.raises(LoadError):
            process.start(20.0, lambda: False)
    finally:
        process.kill()
    assert ((tmp_path / "seen").read_text().strip() == f"{TUNABLE}=1") is (engine == "openvino")


@pytest.mark.skipif(not GIVEN, reason="this kernel gives no large pages")
def test_memory_of_such_a_process_has_them() -> None:
    environment = {**os.environ, **large_pages({})}
    done = subprocess.run([sys.executable, "-c", TOUCH], env=environment, capture_output=True, text=True, timeout=60)
    assert int(done.stdout) > 32 << 10, done.stderr  # KiB
