"""Watching a server's processes from beside it: finding them by their port, and what they use."""

from __future__ import annotations

import os
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from inflight_tools.common.resources import Sample, Sampler, descendants, listener, usage

BUSY = "import subprocess, sys, time\nwhile True: pass"
PARENT = f"import subprocess, sys, time\nsubprocess.Popen([sys.executable, '-c', {BUSY!r}])\ntime.sleep(60)"


def test_the_listener_of_a_port_is_found() -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        url = f"127.0.0.1:{server.getsockname()[1]}"
        assert listener(url) is None  # bound is not listening
        server.listen()
        assert listener(url) == os.getpid()
        assert listener(url.replace("127.0.0.1", "localhost")) == os.getpid()
        assert listener(url.replace("127.0.0.1", "example.com")) is None
    assert listener("localhost") is None


def test_cpu_and_memory_of_all_descendants_are_counted() -> None:
    parent = subprocess.Popen([sys.executable, "-c", PARENT])
    try:
        give_up = time.monotonic() + 20
        while not (children := descendants(parent.pid)):
            assert time.monotonic() < give_up
            time.sleep(0.05)
        with Sampler(parent.pid) as sampler:
            time.sleep(1.6)
        first, last = sampler.samples[0], sampler.samples[-1]
        assert len(sampler.samples) >= 3
        assert last.cpu_s - first.cpu_s > 0.02  # the child spins; how much it gets is the machine's affair
        assert last.memory > 2 * 2**20
        found = usage(sampler.samples, first.at, last.at, 100)
        assert found is not None
        assert 0 < found.cpu_cores <= 1.5
        assert found.cpu_s_per_1000_tokens == pytest.approx(10 * (last.cpu_s - first.cpu_s), rel=0.01)
    finally:
        for pid in (*descendants(parent.pid), parent.pid):
            os.kill(pid, 9)
        parent.wait()
    assert children


def test_a_process_that_has_gone_counts_nothing() -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    with Sampler(process.pid) as sampler:
        pass
    assert {(sample.cpu_s, sample.memory) for sample in sampler.samples} == {(0.0, 0)}


def test_samples_outside_the_interval_do_not_count() -> None:
    samples = [Sample(at * 10**9, cpu_s=at, memory=at) for at in range(10)]
    found = usage(samples, 2 * 10**9, 6 * 10**9, 40)
    assert found is not None
    assert found.cpu_cores == 1
    assert found.memory == 6
    assert found.cpu_s_per_1000_tokens == 100
    assert usage(samples, 0, 10**8, 40) is None


def first_sample(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nvidia_smi: str) -> Sample:
    """What is measured beside an nvidia-smi that is this shell script."""
    tool = tmp_path / "nvidia-smi"
    tool.write_text(f"#!/bin/sh\n{nvidia_smi}\n")
    tool.chmod(tool.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    with Sampler(os.getpid()) as sampler:
        pass
    return sampler.samples[0]


def test_a_gpu_is_asked_where_there_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sample = first_sample(tmp_path, monkeypatch, "echo '90, 1024'; echo '70, 3072'")
    assert sample.gpu_percent == 80
    assert sample.gpu_memory == 4096 * 2**20


def test_a_gpu_tool_that_fails_is_no_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert first_sample(tmp_path, monkeypatch, "echo 'no devices were found'; exit 6").gpu_percent is None
