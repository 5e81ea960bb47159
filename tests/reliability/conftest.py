"""Servers to attack, and a report of what was tried, what ended how, and what was left over."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import require_installation
from tests.reliability.rig import OpenRig, rigs

Report = Callable[[str], None]


@pytest.fixture(scope="session", autouse=True)
def control_folder() -> Iterator[Path]:
    """A private folder of control sockets; short, because the path of a socket has 108 bytes at most."""
    folder = Path(tempfile.mkdtemp(prefix="inflight-rel-"))
    before = os.environ.get("INFLIGHT_CONTROL_DIR")
    os.environ["INFLIGHT_CONTROL_DIR"] = str(folder)
    yield folder
    if before is None:
        del os.environ["INFLIGHT_CONTROL_DIR"]
    else:
        os.environ["INFLIGHT_CONTROL_DIR"] = before
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def open_rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenRig]:
    """A function that starts a server (arguments of `Rig`) and keeps it until the module's tests are over.

    What the servers leave behind after their stop fails the module's last test.
    """
    require_installation()
    with rigs(lambda: tmp_path_factory.mktemp("rig")) as make:
        yield make


@pytest.fixture
def report(request: pytest.FixtureRequest) -> Report:
    """Add a line to the report that is printed when all is over: what was tried, what ended how, what was left."""

    def add(line: str) -> None:
        request.node.user_properties.append(("report", line))

    return add


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Print the report; the lines come with the tests' results, from whichever process ran them."""
    results = [result for results in terminalreporter.stats.values() for result in results]
    lines = [
        f"{result.nodeid.rpartition('::')[2]}: {line}"
        for result in results
        if getattr(result, "when", "") == "teardown"  # the last of the three results of a test, with all its lines
        for name, line in getattr(result, "user_properties", ())
        if name == "report"
    ]
    if lines:
        terminalreporter.section("reliability report")
        for line in lines:
            terminalreporter.write_line(line)
