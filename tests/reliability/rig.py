"""One server of a test's own, with everything that has to be looked at when it is attacked.

Its control sockets lie in the folder that INFLIGHT_CONTROL_DIR names to this process (conftest.py makes a private
one), so that drains and questions reach no other server of this machine.
"""

from __future__ import annotations

import contextlib
import os
import signal
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil
from prometheus_client.parser import text_string_to_metric_families

from inflight import control
from inflight.engines.run_folder import RUN_PREFIX
from inflight_tools.server import shm
from inflight_tools.server.processes import holds_any
from inflight_tools.server.server import Server, ServerConfig
from tests.harness.repository import write_model
from tests.reliability.load import SLACK

READY_TIMEOUT_S = 120.0
SETTLE_S = 20.0

Samples = dict[tuple[str, str], float]
AT_REST = (  # what is 0 in /metrics while nothing is done
    ("inflight_requests_running", ""),
    ("inflight_requests_waiting", ""),
    ("inflight_kv_cache_usage_ratio", ""),
    ("nv_trt_llm_kv_cache_block_metrics", "used"),
    ("nv_trt_llm_kv_cache_block_metrics", "reserved"),
    ("nv_trt_llm_request_metrics", "waiting"),
    ("nv_trt_llm_request_metrics", "active"),
)
Parameters = Mapping[str, Any]
Translate = Callable[[Path, Parameters], Parameters]


class Rig:
    """A running server. `models` maps names to the parameters of their config.pbtxt; all of them are loaded.

    They are the simulated engine's; `translate` turns them into another engine's, for which it gets a new folder.
    """

    def __init__(
        self,
        folder: Path,
        models: Mapping[str, Parameters] | None = None,
        *,
        pbtxt: str = "",
        translate: Translate | None = None,
        **config: Any,
    ) -> None:
        self.folder = folder
        self.repository = folder / "repository"
        self.models = {"llm": {}} if models is None else models
        self._translate = translate
        for name, parameters in self.models.items():
            self.add_model(name, parameters, pbtxt)
        settings = {
            "models": tuple(self.models),
            "log": folder / "tritonserver.log",
            "drain_timeout_s": 5.0,
            "stop_timeout_s": 20.0,
            **config,
        }
        self.server = Server(ServerConfig(repository=self.repository, **settings))
        self._sockets: dict[str, Path] = {}
        self.ready_s = 0.0  # what the start of the server took, all engines loaded

    def __enter__(self) -> Rig:
        self.server.start()
        self.ready_s = self.server.wait_ready(READY_TIMEOUT_S)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def add_model(self, name: str, parameters: Parameters, pbtxt: str = "") -> None:
        """Write a model, to be loaded by the server at its start or when it is asked to."""
        values: Parameters = {"engine": "simulated", **parameters}
        if self._translate is not None:
            values = self._translate(self.folder / f"engine-{name}", values)
        write_model(self.repository, name, values, config=pbtxt)

    def stop(self) -> list[str]:
        """Stop the server; what it leaves behind: processes, shared memory, run folders. Nothing is right."""
        stubs = self.server.stub_pids()
        paths = regions_of(stubs) | run_folders_of(stubs)
        self.server.stop()
        left = [str(path) for path in paths if path.exists()]
        return left + [f"process {pid}" for pid in self.server.processes()]

    # -- what it says ------------------------------------------------------------------------------------------------

    @property
    def grpc(self) -> str:
        """host:port of gRPC."""
        return self.server.grpc_url

    @property
    def http(self) -> str:
        """host:port of HTTP."""
        return self.server.http_url

    def ask(self, command: str, model: str = "llm", timeout_s: float = 10.0, **arguments: Any) -> dict[str, Any]:
        """One command over the model's control socket."""
        return control.ask(self._socket(model), {"command": command, **arguments}, timeout_s)

    def _socket(self, model: str) -> Path:
        path = self._sockets.get(model)
        if path is None or not path.exists():
            paths = [control.control_dir() / f"{model}-{pid}.sock" for pid in self.server.stub_pids()]
            (path,) = (path for path in paths if path.exists())
            self._sockets[model] = path
        return path

    def status(self, model: str = "llm") -> dict[str, Any]:
        """What the model says it is doing."""
        return self.ask("status", model)

    def metrics(self, model: str = "llm") -> Samples:
        """(family and suffix, value of the label besides model and version) → value, of our families."""
        with urllib.request.urlopen(self.server.metrics_url, timeout=10) as answer:
            return parse_samples(answer.read().decode(), model)

    def flushed(self, model: str = "llm", interval_s: float = 0.5) -> Samples:
        """The metrics once a flush has surely come by."""
        time.sleep(2 * interval_s + 0.2)
        return self.metrics(model)

    # -- what it is --------------------------------------------------------------------------------------------------

    def stub_pid(self) -> int:
        """The process that runs our Python; only where there is one model."""
        (pid,) = self.server.stub_pids()
        return pid

    def engine_pid(self, model: str = "llm") -> int:
        """The engine process, as the supervisor knows it."""
        return int(self.status(model)["engine_pid"])

    def signal_engine(self, number: signal.Signals, model: str = "llm") -> float:
        """Send a signal to the engine; the monotonic time just before."""
        pid = self.engine_pid(model)
        now = time.monotonic()
        os.kill(pid, number)
        return now

    def resident_bytes(self) -> dict[str, int]:
        """Resident memory of server, stub and engine."""
        pids = {"server": self.server.pid, "stub": self.stub_pid(), "engine": self.engine_pid()}
        return {name: psutil.Process(pid).memory_info().rss for name, pid in pids.items()}

    # -- waiting -----------------------------------------------------------------------------------------------------

    def until(self, condition: Callable[[], Any], timeout_s: float = SETTLE_S, every_s: float = 0.02) -> float:
        """Seconds until `condition` was true. Raises `TimeoutError` with the last status when it never is."""
        began = time.monotonic()
        while not condition():
            if time.monotonic() - began > timeout_s:
                raise TimeoutError(f"not within {timeout_s} s; status {self.status()}")
            time.sleep(every_s)
        return time.monotonic() - began

    def until_healthy(self, timeout_s: float = 60.0, restarts: int = 0, model: str = "llm") -> float:
        """Seconds until the engine is up (again), after at least `restarts` restarts. It may take `timeout_s` and some
        times as long as the first load.
        """

        def healthy() -> bool:
            status = self.status(model)
            return bool(status["health"] == "ready" and status["restarts"] >= restarts)

        return self.until(healthy, timeout_s + SLACK * self.ready_s)

    def until_at_work(self, running: int, in_all: int, model: str = "llm") -> None:
        """Wait until so many requests run, and so many run or wait."""

        def at_work() -> bool:
            status = self.status(model)
            return (status["running"], status["running"] + status["waiting"]) == (running, in_all)

        self.until(at_work)

    def at_rest(self) -> dict[str, Any]:
        """Wait until nothing is under way; the status then."""
        self.until(lambda: not self.status()["under_way"] and not self.status()["running"])
        return self.status()

    def assert_nothing_left(self, model: str = "llm") -> str:
        """Nothing runs, waits or is reserved, by the control socket and by /metrics; a phrase for the report.

        A gateway asks the model now and then what it is, which one scrape may meet: what is left over stays in all.
        """
        status: dict[str, Any] = {}

        def rests() -> bool:
            status.update(self.status(model))
            return not any(status[name] for name in ("under_way", "running", "waiting"))

        self.until(rests)
        assert status["blocks_reserved"] == 0, status
        samples = self.flushed(model)
        deadline = time.monotonic() + SETTLE_S
        while (left := {key: samples[key] for key in AT_REST if samples[key]}) and time.monotonic() < deadline:
            time.sleep(0.1)
            samples = self.metrics(model)
        assert not left, left
        return "left over: 0 running, 0 waiting, 0 blocks"


OpenRig = Callable[..., Rig]


@contextlib.contextmanager
def rigs(new_folder: Callable[[], Path], **always: Any) -> Iterator[OpenRig]:
    """A function that starts a server (arguments of `Rig` but for the folder; `always` goes to all) and keeps it until
    the end, where whatever the servers leave behind after their stop is a failure.
    """
    opened: list[Rig] = []

    def make(models: Mapping[str, Parameters] | None = None, **config: Any) -> Rig:
        rig = Rig(new_folder(), models, **always, **config)
        opened.append(rig)
        rig.__enter__()
        return rig

    yield make
    left = [item for rig in opened for item in rig.stop()]
    assert not left, left


def parse_samples(text: str, model: str = "llm") -> Samples:
    """Our samples of a Prometheus page, checked for its format by prometheus_client."""
    samples: Samples = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = dict(sample.labels)
            if labels.pop("model", None) != model or not sample.name.startswith(("inflight_", "nv_trt_llm_")):
                continue
            labels.pop("version", None)
            assert len(labels) <= 1 or sample.name == "inflight_build_info", sample
            key = (_as_exported(sample.name), next(iter(labels.values()), ""))
            assert key not in samples, f"{key} twice"
            samples[key] = sample.value
    return samples


def _as_exported(name: str) -> str:
    """The parser puts `_total` behind every counter; those of a distribution are exported without."""
    for suffix in ("_bucket", "_sum", "_count"):
        if name.endswith(f"{suffix}_total"):
            return name[: -len("_total")]
    return name


def regions_of(pids: Iterable[int]) -> set[Path]:
    """The backend's shared-memory regions that these processes hold."""
    regions = {str(path) for path in shm.regions()}
    return {Path(name) for pid in pids for name in holds_any(pid, regions)}


def run_folders_of(pids: Iterable[int]) -> set[Path]:
    """The engines' run folders that these processes (stubs) made."""
    return {path for path in run_folders() if _owner(path) in set(pids)}


def run_folders() -> set[Path]:
    """The engines' run folders of this machine."""
    return set(Path(tempfile.gettempdir()).glob(f"{RUN_PREFIX}*"))


def _owner(folder: Path) -> int:
    return int(folder.name[len(RUN_PREFIX) :].split("-")[0])
