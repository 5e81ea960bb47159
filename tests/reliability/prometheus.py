"""A real Prometheus (Debian's package) that scrapes one server; unpacked into .cache when there is none."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
import urllib.parse
import urllib.request
from pathlib import Path
from types import TracebackType
from typing import Any

from inflight_tools.common.layout import CACHE
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
    """`prometheus` or `promtool`: the one on PATH, else Debian's package unpacked (not installed) in .cache."""
    found = shutil.which(name)
    if found:
        return Path(found)
    unpacked = FOLDER / "usr" / "bin" / name
    if not unpacked.exists():
        FOLDER.mkdir(parents=True, exist_ok=True)
        subprocess.run(["apt-get", "download", "prometheus"], cwd=FOLDER, check=True, timeout=300, capture_output=True)
        (package,) = FOLDER.glob("prometheus_*.deb")
        subprocess.run(["dpkg-deb", "-x", str(package), str(FOLDER)], check=True, timeout=120)
        package.unlink()
    return unpacked


class Prometheus:
    """One running instance, which forgets everything when it ends."""

    def __init__(self, folder: Path, target: str) -> None:
        """`target` is host:port of the server's metrics."""
        self._address = f"127.0.0.1:{Ports.free().http}"
        folder.mkdir(parents=True, exist_ok=True)
        config = folder / "prometheus.yml"
        config.write_text(CONFIG.format(target=target))
        command = [str(program("prometheus")), f"--config.file={config}", f"--web.listen-address={self._address}"]
        with (folder / "prometheus.log").open("wb") as log:
            self._process = subprocess.Popen(
                [*command, f"--storage.tsdb.path={folder / 'data'}"], cwd=folder, stdout=log, stderr=subprocess.STDOUT
            )

    def query(self, expression: str) -> dict[str, float]:
        """An instant query: the label `le`, `outcome` or "" of each result → its value."""
        url = f"http://{self._address}/api/v1/query?{urllib.parse.urlencode({'query': expression})}"
        with urllib.request.urlopen(url, timeout=10) as answer:
            content: dict[str, Any] = json.loads(answer.read())
        assert content["status"] == "success", content
        results = content["data"]["result"]
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
