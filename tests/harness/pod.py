"""A pod's containers as processes, and what a kubelet does with them: probes, hooks, signals, as the manifest has them.

Paths of the image lie below a folder, ports are free ones; `/dev/shm` is the machine's. Where root may make mount
namespaces, a container runs as the manifest's user and writes nowhere but into its volumes. Limits of memory and
processors are not enforced, nor is the NetworkPolicy.
"""

from __future__ import annotations

import contextlib
import functools
import http.client
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from inflight_tools.common.layout import BACKENDS, ENGINE
from tests.integration.test_image_command import Image

Spec = Mapping[str, Any]
DEFAULT_GRACE_S = 30.0
SANDBOX = Path(__file__).with_name("sandbox.sh")


@functools.cache
def can_sandbox() -> bool:
    """Whether containers can be held to their users and read-only roots here, and could read what they need."""
    if os.geteuid() != 0 or not shutil.which("unshare") or not shutil.which("setpriv"):
        return False
    look = ["unshare", "-m", SANDBOX, "1000", ENGINE, "--", "test", "-r", ENGINE / "engine.json"]
    return subprocess.run(look, capture_output=True, timeout=10, check=False).returncode == 0


class Container:
    """One of them. `ports` maps the manifest's numbers to those that are used."""

    def __init__(
        self,
        spec: Spec,
        image: Image,
        volumes: Mapping[str, Spec],
        ports: Mapping[int, int],
        user_of_pod: int | None,
    ) -> None:
        self.name: str = spec["name"]
        self.spec, self._image, self._ports = spec, image, ports
        self._mounted = {
            mount["mountPath"]: image.root / "volumes" / mount["name"]
            for mount in spec["volumeMounts"]
            if "emptyDir" in volumes[mount["name"]] and mount["mountPath"] != "/dev/shm"
        }
        for folder in self._mounted.values():
            folder.mkdir(parents=True, exist_ok=True)
        self._sandbox: list[str | Path] = []
        if can_sandbox():
            user = str(user_of_pod or spec["securityContext"]["runAsUser"])
            for folder in self._mounted.values():
                os.chown(folder, int(user), int(user))
            self._sandbox = ["unshare", "-m", SANDBOX, user, self._mounted["/tmp"], *self._mounted.values(), "--"]
        values = {each["name"]: each["value"] for each in spec["env"] if "value" in each}
        self.environment = {
            **image.environment,
            **{name: self.inside(value) for name, value in values.items()},
            "TMPDIR": self.inside("/tmp"),
            "INFLIGHT_CONTROL_DIR": self.inside("/tmp/control"),  # not where other servers of this machine have theirs
            **_port_variables(ports, values),
        }
        self.output = image.root / f"{self.name}.output"
        self.process: subprocess.Popen[bytes] | None = None
        self.names = {each["name"]: each["containerPort"] for each in spec.get("ports", [])}

    def inside(self, word: str) -> str:
        """A word of a command or of the environment: paths of the image and of volumes, and ports, as they are here."""
        host, colon, port = word.rpartition(":")
        if colon and port.isdecimal() and int(port) in self._ports:
            return f"{host}:{self._ports[int(port)]}"
        if word.isdecimal() and int(word) in self._ports:
            return str(self._ports[int(word)])
        for place, folder in self._mounted.items():
            if word == place or word.startswith(place + "/"):
                return f"{folder}{word.removeprefix(place)}"
        return self._image.inside(word)

    def start(self) -> None:
        """Its command and arguments."""
        words = [self.inside(word) for word in (*self.spec["command"], *self.spec.get("args", []))]
        with self.output.open("ab") as output:
            self.process = subprocess.Popen(
                [*self._sandbox, *words],
                cwd=self._image.root,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )

    def asked(self, probe: str) -> bool:
        """One look of a probe."""
        spec = self.spec[probe]
        port = spec["httpGet"]["port"]
        number = self._ports[self.names.get(port, port)]
        connection = http.client.HTTPConnection("127.0.0.1", number, timeout=spec.get("timeoutSeconds", 1))
        with contextlib.closing(connection), contextlib.suppress(OSError, http.client.HTTPException):
            connection.request("GET", spec["httpGet"]["path"])
            return 200 <= connection.getresponse().status < 400
        return False

    def wait_started(self) -> float:
        """The startup probe's budget; returns the seconds that it took."""
        began, probe = time.monotonic(), self.spec["startupProbe"]
        for _ in range(probe["failureThreshold"]):
            assert self.process is not None
            assert self.process.poll() is None, self.said()
            if self.asked("startupProbe"):
                return time.monotonic() - began
            time.sleep(probe["periodSeconds"])
        raise TimeoutError(f"{self.name}: its startup probe gives up. {self.said()}")

    def pre_stop(self, grace_s: float) -> int:
        """The hook's exit status; 0 where there is none."""
        hook = self.spec.get("lifecycle", {}).get("preStop")
        if hook is None:
            return 0
        words = [self.inside(word) for word in hook["exec"]["command"]]
        with self.output.open("ab") as output:
            done = subprocess.run(
                [*self._sandbox, *words],
                cwd=self._image.root,
                env=self.environment,
                stdout=output,
                stderr=output,
                timeout=grace_s,
                check=False,
            )
        return done.returncode

    def said(self) -> str:
        """The end of what it wrote."""
        return self.output.read_text(encoding="utf-8", errors="replace")[-4000:]


class Pod:
    """Start it, and delete it; between, `ready` and `endangered` are what its probes say."""

    def __init__(self, spec: Spec, image: Image, port_map: Mapping[int, int]) -> None:
        self._spec = spec
        volumes = {volume["name"]: volume for volume in spec["volumes"]}
        user = spec.get("securityContext", {}).get("runAsUser")
        self.sidecars = [Container(each, image, volumes, port_map, user) for each in spec.get("initContainers", [])]
        self.containers = [Container(each, image, volumes, port_map, user) for each in spec["containers"]]
        self.ready = False
        self.ready_changes: list[tuple[float, bool]] = []
        self.endangered: list[str] = []  # containers that a liveness probe would have killed
        self._over = threading.Event()
        self._threads: list[threading.Thread] = []
        self._states: dict[str, bool] = {}

    def start(self) -> dict[str, float]:
        """Sidecars one after another, then the containers; returns after all startup probes, with their times."""
        took = {}
        for each in self.sidecars:
            each.start()
            took[each.name] = each.wait_started()
        for each in self.containers:
            each.start()
        for each in self.containers:
            took[each.name] = each.wait_started()
        for each in (*self.sidecars, *self.containers):
            for probe in ("readinessProbe", "livenessProbe"):
                self._threads.append(threading.Thread(target=self._watch, args=(each, probe), daemon=True))
        for thread in self._threads:
            thread.start()
        return took

    def wait_ready(self, timeout_s: float) -> None:
        """Until all its containers are."""
        end = time.monotonic() + timeout_s
        while not self.ready:
            assert time.monotonic() < end, self._states
            time.sleep(0.05)

    def _watch(self, container: Container, probe: str) -> None:
        spec, failures = container.spec[probe], 0
        while not self._over.is_set():
            if container.asked(probe):
                failures = 0
                self._note(container, probe, well=True)
            else:
                failures += 1
                if failures >= spec["failureThreshold"]:
                    self._note(container, probe, well=False)
            self._over.wait(spec["periodSeconds"])

    def _note(self, container: Container, probe: str, well: bool) -> None:
        if probe == "livenessProbe":
            if not well and container.name not in self.endangered:
                self.endangered.append(container.name)
            return
        self._states[container.name] = well
        ready = len(self._states) == len(self.sidecars) + len(self.containers) and all(self._states.values())
        if ready != self.ready:
            self.ready = ready
            self.ready_changes.append((time.monotonic(), ready))

    def delete(self) -> dict[str, int]:
        """As a kubelet does: hooks, SIGTERM to the containers, then to the sidecars, within the grace period. Returns
        exit statuses; -9 is what outlived it.
        """
        grace_s = float(self._spec.get("terminationGracePeriodSeconds", DEFAULT_GRACE_S))
        end = time.monotonic() + grace_s
        statuses = {}
        for each in self.containers:
            statuses[f"preStop of {each.name}"] = each.pre_stop(grace_s)
        self._over.set()  # probes of what is told to end are asked no more
        for group in (self.containers, self.sidecars[::-1]):
            for each in group:
                statuses[each.name] = _end(each.process, end)
        return statuses

    def kill(self) -> None:
        """For tests that have failed."""
        self._over.set()
        for each in (*self.containers, *self.sidecars):
            if each.process is not None and each.process.poll() is None:
                each.process.send_signal(signal.SIGINT)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    each.process.wait(30.0)
                each.process.kill()


def _end(process: subprocess.Popen[bytes] | None, end: float) -> int:
    assert process is not None
    process.send_signal(signal.SIGTERM)
    try:
        return process.wait(max(0.0, end - time.monotonic()))
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()


def _port_variables(ports: Mapping[int, int], given: Mapping[str, str]) -> dict[str, str]:
    """Where Inflight's programs listen, unless the manifest says so itself."""
    named = {"HTTP": 8000, "GRPC": 8001, "METRICS": 8002, "HEALTH": 8003, "GATEWAY": 8080}
    variables = {f"INFLIGHT_{name}_PORT": str(ports[number]) for name, number in named.items() if number in ports}
    return {name: value for name, value in variables.items() if name not in given}


def lay_out(root: Path, file: Path, model: str) -> Image:
    """The image's files below `root`, a tritonserver, and what the volumes `engine` and `model` bring."""
    image = Image(root, file)
    image.add_what_the_base_and_the_volume_bring()
    python = root / "opt" / "tritonserver" / "backends" / "python"
    python.unlink()  # as an image has it: every user may run the stub, which Triton otherwise tries to change
    shutil.copytree(BACKENDS / "python", python, ignore=shutil.ignore_patterns("__pycache__"))
    (python / "triton_python_backend_stub").chmod(0o755)
    (root / "models" / "llm" / "config.pbtxt").write_text(model, encoding="utf-8")
    return image


def copy_repository(root: Path, place: str, second: str) -> None:
    """What a storage initializer would have brought: a repository at `place` with the image's model under two names."""
    shutil.copytree(root / "models", Path(f"{root}{place}"), symlinks=True)
    shutil.copytree(root / "models" / "llm", Path(f"{root}{place}/{second}"), symlinks=True)
    os.sync()
