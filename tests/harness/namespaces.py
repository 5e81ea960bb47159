"""Processes that see none of ours: those of a PID namespace of their own, as in another container."""

from __future__ import annotations

import subprocess

import pytest

APART = ("unshare", "--pid", "--fork", "--mount-proc")  # before a command


def _is_possible() -> bool:
    try:
        return subprocess.run([*APART, "true"], capture_output=True, timeout=30, check=False).returncode == 0
    except OSError:
        return False


needs_pid_namespace = pytest.mark.skipif(
    not _is_possible(), reason="no PID namespace can be made here (it takes root, with the right to)"
)
