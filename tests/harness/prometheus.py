"""A real Prometheus and promtool (Debian's package): the ones on PATH, else unpacked into .cache."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
import urllib.parse
import urllib.request
from pathlib import Path
from types import TracebackType
from typing import Any

import pytest

from inflight_tools.common.layout import CACHE
from inflight_tools.common.wheels import publish, scratch_folder
from inflight_tools.server.server import Ports

FOLDER = CACHE / "prometheus"
CONFIG = """\
global: {{ scrape_interval: 1s, scrape_timeout: 1s }}
scrape_configs:
  - job_name: inflight
    metrics_path: /metrics
    static_configs: [ {{ targets: ["{target}"] }} ]
"""


def program(name: str) -> Path:
    """`prometheus` or `promtool`: the one on PATH, else out of Debian's package, unpacked into .cache.

    Where neither can be had the test fails for root, who may fetch it, and is skipped for others.
    """
    found = shutil.which(name)
    if found:
        return Path(found)
    unpacked = FOLDER / "usr" / "bin" / name
    if not unpacked.exists():
        try:
            _unpack()
        except (OSError, subprocess.SubprocessError) as error:
            lacking = f"{name} is missing: apt-get install prometheus ({error})"
            if os.geteuid() == 0:
                pytest.fail(lacking, pytrace=False)
            pytest.skip(lacking)
    return unpacked


def _unpack() -> None:
    """Not installed: the package starts a server of its own at every boot."""
    with scratch_folder(FOLDER.parent) as scratch:
        if os.geteuid() == 0:
            _run(scratch, "apt-get", "update", "-qq")
        _run(scratch, "apt-get", "download", "-qq", "prometheus")
        (package,) = scratch.glob("prometheus_*.deb")
        (scratch / "made").mkdir()
        _run(scratch, "dpkg-deb", "-x", str(package), str(scratch / "made"))
        publish(scratch / "made", FOLDER, {"package": package.name})


def _run(folder: Path, *command: str) -> None:
    subprocess.run(command, cwd=folder, check=True, timeout=300, capture_output=True)


class Prometheus:
    """One running instance, which forgets everything when it ends."""

    def __init__(self, folder: Path, target: str = "", config: str = "") -> None:
        """`target` is host:port of a server's metrics; or all of the configuration is given, which may name files of
        `folder`.
        """
        self._address = f"127.0.0.1:{Ports.free().http}"
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / "prometheus.yml"
        file.write_text(config or CONFIG.format(target=target), encoding="utf-8")
        command = [str(program("prometheus")), f"--config.file={file}", f"--web.listen-address={self._address}"]
        with (folder / "prometheus.log").open("wb") as log:
            self._process = subprocess.Popen(
                [*command, f"--storage.tsdb.path={folder / 'data'}"], cwd=folder, stdout=log, stderr=subprocess.STDOUT
            )

    def get(self, path: str, **arguments: str) -> Any:
        """`data` of one answer of its API."""
        url = f"http://{self._address}/api/v1/{path}?{urllib.parse.urlencode(arguments)}"
        with urllib.request.urlopen(url, timeout=10) as answer:
            content: dict[str, Any] = json.loads(answer.read())
        assert content["status"] == "success", content
        return content["data"]

    def query(self, expression: str) -> dict[str, float]:
        """An instant query: the label `le`, `outcome` or "" of each result → its value."""
        results = self.get("query", query=expression)["result"]
        return {
            each["metric"].get("le", each["metric"].get("outcome", "")): float(each["value"][1]) for each in results
        }

    def until(self, expression: str, wanted: float, timeout_s: float = 30.0) -> None:
        """Wait until a query has one result, which is `wanted`."""
        give_up = time.monotonic() + timeout_s
        found: Any = None
        while time.monotonic() < give_up:
            try:
                found = self.query(expression)
            except OSError as error:  # not yet listening
                found = error
            if found == {"": wanted}:
                return
            time.sleep(0.2)
        raise TimeoutError(f"{expression} is {found}, not {wanted}")

    def __enter__(self) -> Prometheus:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.terminate()
        self._process.wait(30.0)
