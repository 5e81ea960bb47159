"""Starts a real tritonserver, waits until it serves, and stops it without leaving anything behind.

Used by scripts/serve.py and by the tests' fixtures.
"""

from __future__ import annotations

import itertools
import os
import random
import socket
import subprocess
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

from inflight.control.folder import own_folders
from inflight.control.health import HealthServer, listen
from inflight.control.owner import descends_from
from inflight.control.watch import Watch
from inflight.engine_process import processors
from inflight_tools.common.layout import LOGS, MODEL_REPOSITORY
from inflight_tools.common.report import Failure
from inflight_tools.server import shm
from inflight_tools.server.children import start_child
from inflight_tools.server.drain import drain_models
from inflight_tools.server.find import Triton, find_triton
from inflight_tools.server.gather import Gathering
from inflight_tools.server.log import failure_reason
from inflight_tools.server.paths import check_repository
from inflight_tools.server.processes import (
    command_line,
    is_alive,
    kill_all,
    marked_pids,
    owes_nothing,
)

_MARK = "INFLIGHT_SERVER_ID"  # in the environment of everything that a server starts
_POLL_S = 0.1
_KEPT_LOGS = 20
_FIRST_PORT = 10_000
_EPHEMERAL = Path("/proc/sys/net/ipv4/ip_local_port_range")
_DRAINED_STOP_S = 6.0  # what the stop of a server without work gets
_IDLE_STOP_S = 3.0  # and of one whose connections are all idle besides: Triton waits for those of proxies, which stay


def _bind(host: str, port: int) -> None:
    """Raise `OSError` when a port cannot be listened on."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind((host, port))


def _is_free(host: str, port: int) -> bool:
    try:
        _bind(host, port)
    except OSError:
        return False
    return True


def _first_ephemeral_port() -> int:
    try:
        return int(_EPHEMERAL.read_text(encoding="utf-8").split()[0])
    except (OSError, ValueError):
        return 32768  # Linux's default


@dataclass(frozen=True, slots=True)
class Ports:
    """Where a server listens."""

    http: int = 8000
    grpc: int = 8001
    metrics: int = 8002
    health: int = 8003  # not Triton's: `inflight serve` answers there (inflight/control/health.py); 0: nobody does
    gateway: int = 8080  # nor this: the gateway that `inflight serve` starts beside Triton; 0: there is none

    @classmethod
    def free(cls) -> Ports:
        """Five ports that nobody listens on now, in random order.

        They lie below those that the kernel gives to outgoing connections: a connection of somebody else's would take a
        port of that kind before the server does.
        """
        last = max(_first_ephemeral_port(), _FIRST_PORT + 1000)
        candidates = random.sample(range(_FIRST_PORT, last), k=200)
        free = (port for port in candidates if _is_free("127.0.0.1", port))
        return cls(*itertools.islice(free, 5))

    def check(self, host: str) -> None:
        """Raise `Failure` when one of them cannot be listened on.

        Triton itself would not notice for gRPC: its sockets share a port, and both servers would get half the calls.
        """
        used = {"http": self.http, "grpc": self.grpc, "metrics": self.metrics}
        used |= {name: port for name, port in (("health", self.health), ("gateway", self.gateway)) if port}
        if len(set(used.values())) < len(used):
            numbers, options = map(str, used.values()), (f"--{name}-port" for name in used)
            raise Failure(f"the ports {', '.join(numbers)} have to differ: see {', '.join(options)}.")
        for name, port in used.items():
            try:
                _bind(host, port)
            except OSError as error:
                raise Failure(
                    f"port {port} on {host} cannot be used ({error.strerror}): stop what listens there, or choose "
                    f"another with --{name}-port or INFLIGHT_{name.upper()}_PORT"
                    f"{'; --no-gateway starts none' if name == 'gateway' else ''}."
                ) from error


@dataclass(frozen=True, slots=True)
class ServerConfig:
    """What to serve and how. Times are seconds."""

    repository: Path = MODEL_REPOSITORY
    models: tuple[str, ...] = ("llm",)  # loaded at start; empty: every model of the repository
    ports: Ports | None = None  # None: free ones
    host: str = "127.0.0.1"
    arguments: tuple[str, ...] = ()  # further arguments of tritonserver
    environment: Mapping[str, str] = field(default_factory=dict)
    log: Path | None = None  # None: a fresh file in .cache/logs
    drain_timeout_s: float | None = None  # what streams get to finish before the stop; None: no drain
    drain_notice_s: float | None = 0.0  # for which a drained server serves on; None: as its models say
    stop_timeout_s: float = 30.0
    gather: bool = False  # keep Triton and the stubs on as few processors as they need (gather.py)


class Server:
    """A tritonserver process and all that it starts.

    As a context manager it starts and stops; `wait_ready` comes between. Not for use from several threads, and to be
    started from a thread that lives as long as the server (the kernel ends the server together with that thread).
    """

    def __init__(self, config: ServerConfig, triton: Triton | None = None) -> None:
        """Nothing is started yet. Raises `Failure` when no server is installed, the models do not exist, or the server
        could never start them from where they lie.
        """
        self.config = config
        self.ports = config.ports or Ports.free()
        self.drained = False  # whether every request had ended before the server was told to stop
        self.killed = False  # whether stopping it took SIGKILL
        self._triton = triton or find_triton()
        self._process: subprocess.Popen[bytes] | None = None
        self._gathering: Gathering | None = None
        self._mark = uuid.uuid4().hex
        self._log_start = 0  # bytes that were in the log file before
        self.log = config.log or _fresh_log()
        check_repository(config.repository, config.models)
        for model in config.models:
            if not (config.repository / model).is_dir():
                known = sorted(path.name for path in config.repository.glob("*") if path.is_dir())
                raise Failure(
                    f"{config.repository} has no model {model!r}: it has {', '.join(known) or 'none'}; choose with "
                    "--model, or another --repository."
                )

    @property
    def http_url(self) -> str:
        """host:port of the HTTP endpoint."""
        return f"{self.reachable_host}:{self.ports.http}"

    @property
    def grpc_url(self) -> str:
        """host:port of the gRPC endpoint."""
        return f"{self.reachable_host}:{self.ports.grpc}"

    @property
    def metrics_url(self) -> str:
        """Address of the Prometheus page."""
        return f"http://{self.reachable_host}:{self.ports.metrics}/metrics"

    @property
    def pid(self) -> int:
        """The process id of tritonserver."""
        return self._started().pid

    @property
    def health_url(self) -> str:
        """Where is asked whether it is ready; '' where nobody answers."""
        return f"http://{self.reachable_host}:{self.ports.health}/ready" if self.ports.health else ""

    def watch(self) -> HealthServer | None:
        """Start to answer on the port of health; None where there is none. The caller stops it."""
        if not self.ports.health:
            return None
        pid = self.pid
        watch = Watch(
            self.reachable_host,
            self.ports.http,
            own_folders,
            wanted=self.config.models,
            is_ours=lambda process: descends_from(process, pid),
            runs=lambda: not self.has_ended(),
        )
        try:
            health = HealthServer(listen(self.config.host, self.ports.health), watch)
        except OSError as error:
            raise Failure(
                f"port {self.ports.health} on {self.config.host} cannot be used ({error.strerror}): choose another "
                "with --health-port; 0 is none."
            ) from error
        health.start()
        return health

    @property
    def reachable_host(self) -> str:
        """Where it is reached from this machine."""
        return "127.0.0.1" if self.config.host in ("0.0.0.0", "::") else self.config.host

    def _started(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            raise RuntimeError("the server has not been started")
        return self._process

    def command(self) -> list[str]:
        """The command line that `start` runs."""
        config = self.config
        # Triton waits this long for requests in flight, and seconds more for what it does not count.
        exit_timeout_s = max(1, int(config.stop_timeout_s) - 5)
        arguments = [
            str(self._triton.program),
            f"--backend-directory={self._triton.backend_directory}",
            f"--model-repository={config.repository}",
            f"--http-address={config.host}",
            f"--grpc-address={config.host}",
            f"--metrics-address={config.host}",
            f"--http-port={self.ports.http}",
            f"--grpc-port={self.ports.grpc}",
            f"--metrics-port={self.ports.metrics}",
            f"--exit-timeout-secs={exit_timeout_s}",
        ]
        if config.models:
            arguments += ["--model-control-mode=explicit", *(f"--load-model={model}" for model in config.models)]
        if not Path("/dev/nvidiactl").exists():
            arguments.append("--allow-gpu-metrics=false")  # else it warns about missing drivers on every start
        return [*arguments, *config.arguments]

    def start(self) -> None:
        """Start the process. Raises `Failure` when a port is taken."""
        self.ports.check(self.config.host)
        shm.sweep()
        self.log.parent.mkdir(parents=True, exist_ok=True)
        environment = {**os.environ, **self._triton.environment, **self.config.environment, _MARK: self._mark}
        environment[processors.VARIABLE] = ",".join(map(str, sorted(processors.there())))
        with self.log.open("ab") as log:
            self._log_start = log.tell()
            self._process = start_child(
                lambda bind: subprocess.Popen(
                    self.command(),
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    # A session of its own: Ctrl-C in a terminal reaches us alone, and we stop the server in order.
                    start_new_session=True,
                    preexec_fn=bind,
                )
            )

    def exit_status(self) -> int | None:
        """The exit status of tritonserver, None while it runs."""
        return self._started().poll()

    def has_ended(self) -> bool:
        """Whether tritonserver was never started or runs no more."""
        return self._process is None or self._process.poll() is not None

    def is_ready(self) -> bool:
        """Whether the server and every model that it was told to load answer."""
        try:
            with urllib.request.urlopen(f"http://{self.http_url}/v2/health/ready", timeout=2) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False

    def wait_ready(self, timeout_s: float = 120.0, tick: Callable[[float], None] = lambda _seconds: None) -> float:
        """Wait until the server is ready; returns the seconds it took.

        `tick` is called with the seconds so far, about ten times a second; what it raises ends the wait. Raises
        `Failure` with the reason out of the log when the server ends before that or is not ready in time.
        """
        begin = time.monotonic()
        while not self.is_ready():
            elapsed = time.monotonic() - begin
            if self.exit_status() is not None:
                reason = failure_reason(self.log_text())
                raise Failure(f"tritonserver did not start: {reason} (whole log: {self.log})")
            if elapsed > timeout_s:
                raise Failure(
                    f"tritonserver was not ready after {timeout_s:.0f} s: look at the end of {self.log}, or allow more "
                    "with --ready-timeout."
                )
            tick(elapsed)
            time.sleep(_POLL_S)
        if self.config.gather and self._gathering is None and len(processors.there()) > 1:
            # Not before: what Triton starts counts the processors that it may use.
            self._gathering = Gathering(lambda: [self.pid, *self.stub_pids()], processors.there())
            self._gathering.start()
        return time.monotonic() - begin

    def drain(self, hurry: Callable[[], bool] = lambda: False, at_once: bool = False) -> dict[str, dict[str, object]]:
        """Have every model of this server finish its streams and take no new work; returns each model's answer.

        Triton's own stop has no such phase. Waits the notice, `drain_timeout_s` (the models end what is left by then)
        and a little for the answers, or until `hurry()` is true.
        """
        limit_s = self.config.drain_timeout_s
        if limit_s is None:
            return {}
        notice_s = 0.0 if at_once else self.config.drain_notice_s
        return drain_models(self.stub_pids(), limit_s, notice_s, hurry)

    def stop(
        self,
        hurry: Callable[[], bool] = lambda: False,
        at_once: bool = False,
        drained: Callable[[], None] = lambda: None,
    ) -> int:
        """Drain, stop the server and return its exit status.

        Waits `stop_timeout_s` at most after the drain, or until `hurry()` is true. What is left after that is killed
        (`killed` says so), and the shared memory it held is removed. Stopping what never started, or stopped before,
        does nothing. With `at_once` nobody is given notice. `drained` is called between the drain and the stop.
        """
        if self._process is None:
            return 0
        process = self._process
        ours = self.processes()
        if self._gathering is not None:
            self._gathering.stop()
        if process.poll() is None:
            answers = self.drain(hurry, at_once)
            drained()
            process.terminate()
            # With every model drained and its engine ended there is nothing to wait for. Triton 24.10 may wait all the
            # same: its gRPC side never lets go of a request whose stream the client cancels right after the final
            # response, and that request keeps the model from unloading.
            self.drained = bool(answers) and all(answer.get("left") == 0 for answer in answers.values())
            limit_s = self.config.stop_timeout_s
            if self.drained:
                limit_s = min(limit_s, _DRAINED_STOP_S)
            give_up = time.monotonic() + limit_s
            held_from = time.monotonic() + _IDLE_STOP_S
            while process.poll() is None and time.monotonic() < give_up and not hurry():
                time.sleep(_POLL_S / 2)
                if self.drained and time.monotonic() > held_from and self._owes_nothing():
                    break
        # The stub looks for its parent every 0.3 s and the engine process for the stub: they end by themselves.
        give_up = time.monotonic() + 2.0
        while process.poll() is not None and time.monotonic() < give_up:
            ours = [pid for pid in {*ours, *self.processes()} if is_alive(pid)]
            if not ours:
                break
            time.sleep(_POLL_S / 2)
        killed = kill_all(self.processes)
        self.killed = self.killed or process.pid in killed
        status = process.wait(timeout=10)
        shm.sweep()
        return status

    def _owes_nothing(self) -> bool:
        ports = (self.ports.http, self.ports.grpc, self.ports.metrics)
        return owes_nothing(self.pid, ports)

    def processes(self) -> list[int]:
        """Every living process of this server: tritonserver itself, stubs, engine processes and what those started."""
        return marked_pids(_MARK, self._mark)

    def stub_pids(self) -> list[int]:
        """The processes that run the backend's Python code, one for each model instance."""
        return [pid for pid in self.processes() if _is_named(command_line(pid), "triton_python_backend_stub")]

    def engine_pids(self) -> list[int]:
        """The engine processes; of an engine on several GPUs its launcher, which the ranks die with."""
        return [pid for pid in self.processes() if _is_engine(command_line(pid))]

    def log_text(self) -> str:
        """All that the server has printed."""
        try:
            return self.log.read_bytes()[self._log_start :].decode("utf-8", errors="replace")
        except FileNotFoundError:
            return ""

    def __enter__(self) -> Server:
        """Start."""
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop."""
        self.stop()


def _is_engine(arguments: list[str]) -> bool:
    ranks = "inflight.engine_process.ranks" in arguments and Path(arguments[0]).name in ("mpirun", "srun")
    return "inflight.engine_worker" in arguments or ranks


def _is_named(arguments: list[str], program: str) -> bool:
    return bool(arguments) and Path(arguments[0]).name == program


def _fresh_log() -> Path:
    """A new log file in .cache/logs; the oldest ones go."""
    LOGS.mkdir(parents=True, exist_ok=True)
    for old in sorted(LOGS.glob("tritonserver-*.log"))[:-_KEPT_LOGS]:
        old.unlink(missing_ok=True)
    return LOGS / f"tritonserver-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}-{uuid.uuid4().hex[:4]}.log"
