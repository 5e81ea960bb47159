"""Nobody is told that a server runs here: engines come with reports of their use to their makers, on by default."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from inflight.engines.python import foreign_environment, own_environment
from inflight_tools.selfcheck.run import child_environment

# OpenVINO's package sends one with every import, from a process that it forks for it.
IMPORTED = """
import sys
forked = []
sys.addaudithook(lambda event, arguments: forked.append(event) if event in ("os.fork", "subprocess.Popen") else None)
import {module}
assert not forked, forked
assert not sys.modules.get("openvino_telemetry")
"""


@pytest.mark.parametrize("module", ["inflight.engines.openvino.engine", "bench.bare_worker"])
def test_importing_openvino_sends_nothing(module: str) -> None:
    pytest.importorskip("openvino_genai")
    paths = [str(Path(__file__).resolve().parents[3] / name) for name in ("python_backend", "scripts")]
    code = f"import sys\nsys.path[:0] = {paths!r}\n" + IMPORTED.format(module=module)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.fast
@pytest.mark.parametrize(
    "name", ["DO_NOT_TRACK", "HF_HUB_DISABLE_TELEMETRY", "TRTLLM_NO_USAGE_STATS", "VLLM_NO_USAGE_STATS"]
)
def test_an_engine_is_told_to_report_nothing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(name, raising=False)  # this machine may be told already
    for environment in (own_environment(), foreign_environment(Path("/usr/bin/python3"), None), child_environment()):
        assert environment[name] == "1"
