"""The second chance of scripts/test.sh: a test that fails beside others and passes by itself, and who has none."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from inflight_tools.common.layout import REPOSITORY

pytestmark = pytest.mark.fast

LIB = REPOSITORY / "scripts" / "lib"
SCRIPT = f"""
set -euo pipefail
ROOT={REPOSITORY}
source {LIB}/common.sh
source {LIB}/beside.sh
VENV=$1
status=0
beside cache "$VENV/bin/python" -m pytest -q -p xdist tests || status=$?
echo "status $status; by itself:" ${{SECOND_CHANCE[*]}}
"""
FLAKY = """
import pathlib

def test_that_fails_once():
    mark = pathlib.Path({mark!r})
    seen = mark.exists()
    mark.touch()
    assert seen
"""


def outcome(folder: Path, files: dict[str, str]) -> tuple[str, str]:
    """The last line of a run over these tests, and its whole output."""
    (folder / "tests").mkdir()
    (folder / "pytest.ini").write_text("[pytest]\n")
    for name, text in files.items():
        (folder / "tests" / name).write_text(text)
    done = subprocess.run(
        ["bash", "-c", SCRIPT, "bash", str(Path(sys.prefix))],
        cwd=folder,
        # Of all plugins of the environment, which take seconds to import, the one that is used.
        env={**os.environ, "PYTEST_ADDOPTS": "", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip().rpartition("\n")[2], done.stdout


def test_what_passes_by_itself_passes_and_is_named(tmp_path: Path) -> None:
    passes = "def test_that_passes(): pass\n"
    line, output = outcome(
        tmp_path, {"test_a.py": passes, "test_b.py": FLAKY.format(mark=str(tmp_path / "mark")), "test_c.py": passes}
    )
    assert line == "status 0; by itself: tests/test_b.py::test_that_fails_once"
    assert "once more, by themselves: tests/test_b.py::test_that_fails_once" in output
    assert "1 passed" in output.partition("once more")[2]  # that one, and nothing else


def test_what_fails_again_fails(tmp_path: Path) -> None:
    files = {"test_a.py": "def test_that_fails(): assert False\n", "test_b.py": "def test_that_passes(): pass\n"}
    assert outcome(tmp_path, files)[0] == "status 1; by itself:"


def test_many_failures_have_no_second_chance(tmp_path: Path) -> None:
    many = "".join(FLAKY.format(mark=str(tmp_path / str(n))).replace("once", f"once_{n}") for n in range(6))
    line, output = outcome(tmp_path, {"test_a.py": many})
    assert line == "status 1; by itself:"
    assert "once more" not in output


def test_a_file_that_cannot_be_read_fails(tmp_path: Path) -> None:
    assert outcome(tmp_path, {"test_a.py": "import nothing_of_that_name\n"})[0] == "status 2; by itself:"


def test_nothing_fails(tmp_path: Path) -> None:
    assert outcome(tmp_path, {"test_a.py": "def test_that_passes(): pass\n"})[0] == "status 0; by itself:"
