"""Starts Triton with this backend and keeps it in the foreground until Ctrl-C or SIGTERM.

Uses the server that scripts/quickstart.sh fetched, or the one of the container it runs in. Exit status: 0 stopped on
request; 1 could not start; 3 the server ended by itself; 4 the stop took too long and was cut short.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from types import FrameType

from inflight_tools.common.layout import MODEL_REPOSITORY
from inflight_tools.common.report import Failure, Progress, run_main
from inflight_tools.server.find import find_triton
from inflight_tools.server.log import Follower
from inflight_tools.server.processes import end_with_parent
from inflight_tools.server.server import Ports, Server, ServerConfig

ENDED_BY_ITSELF = 3
UNCLEAN = 4


class StopRequest:
    """Counts SIGTERM and SIGINT: the first asks for an orderly stop, a second one for a quick one."""

    def __init__(self) -> None:
        """Listen from now on."""
        self.count = 0
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._note)

    def _note(self, _number: int, _frame: FrameType | None) -> None:
        self.count += 1


class _StoppedEarly(Exception):
    """A stop was asked for while the server was still starting."""


def port(text: str) -> int:
    """A port number from the command line."""
    if not text.isdecimal() or not 1 <= int(text) <= 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port: it has to be a number from 1 to 65535")
    return int(text)


def parse() -> tuple[argparse.Namespace, list[str]]:
    """Our options, and after `--` those of tritonserver."""
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").split("\n", 1)[0], epilog="What follows -- goes to tritonserver as it is."
    )
    ports = Ports()
    parser.add_argument(
        "--repository", type=Path, default=MODEL_REPOSITORY, help="model repository (default: this one's)"
    )
    parser.add_argument(
        "--model",
        action="append",
        metavar="NAME",
        help="model to load, may repeat (default: llm); 'all' loads every one",
    )
    parser.add_argument(
        "--host",
        default=os.environ.get("INFLIGHT_HOST", "127.0.0.1"),
        help="address to listen on (default: %(default)s)",
    )
    for name, default in (("http", ports.http), ("grpc", ports.grpc), ("metrics", ports.metrics)):
        variable = f"INFLIGHT_{name.upper()}_PORT"
        parser.add_argument(
            f"--{name}-port",
            type=port,
            default=os.environ.get(variable, str(default)),
            help=f"default: ${variable} or {default}",
        )
    parser.add_argument("--tritonserver", type=Path, metavar="PROGRAM", help="server to use instead of the one found")
    parser.add_argument("--log", type=Path, metavar="FILE", help="write the server's log here (default: the terminal)")
    parser.add_argument("--ready-file", type=Path, metavar="FILE", help="write addresses here (JSON) once it is ready")
    parser.add_argument("--check", action="store_true", help="only check whether the ports can be listened on")
    parser.add_argument(
        "--end-with-parent",
        action="store_true",
        help="for scripts: leave the terminal's Ctrl-C to the process that started this one, and stop when it ends",
    )
    parser.add_argument("--ready-timeout", type=float, default=300.0, metavar="S", help="default: %(default)s")
    parser.add_argument(
        "--drain-timeout", type=float, default=30.0, metavar="S", help="for streams to finish (default: %(default)s)"
    )
    parser.add_argument(
        "--stop-timeout", type=float, default=30.0, metavar="S", help="for the server after that (default: %(default)s)"
    )
    own, passed = sys.argv[1:], []
    if "--" in own:
        split = own.index("--")
        own, passed = own[:split], own[split + 1 :]
    return parser.parse_args(own), passed


def supervise(server: Server, arguments: argparse.Namespace, stop: StopRequest) -> int:
    """Wait until the server is ready, say so, and stay until it ends or is to stop. Returns the exit status."""
    progress = Progress()

    def tick(seconds: float) -> None:
        if stop.count:
            raise _StoppedEarly
        if arguments.log:
            progress.show(f"waiting for the server, {seconds:.0f} s")

    try:
        seconds = server.wait_ready(arguments.ready_timeout, tick)
    except _StoppedEarly:
        return 0
    finally:
        progress.clear()
    models = ", ".join(server.config.models) or "all models"
    print(f"ready after {seconds:.1f} s: {models}", flush=True)
    print(f"  gRPC {server.grpc_url}   HTTP http://{server.http_url}   metrics {server.metrics_url}", flush=True)
    if arguments.ready_file:
        addresses = {"grpc": server.grpc_url, "http": server.http_url, "metrics": server.metrics_url, "pid": server.pid}
        partial = arguments.ready_file.with_name(arguments.ready_file.name + ".part")
        partial.write_text(json.dumps(addresses) + "\n", encoding="utf-8")
        os.replace(partial, arguments.ready_file)
    while not stop.count:
        if server.exit_status() is not None:
            print(
                f"error: tritonserver ended by itself with status {server.exit_status()}: see {server.log}.",
                file=sys.stderr,
            )
            return ENDED_BY_ITSELF
        time.sleep(0.1)
    return 0


def end(server: Server, stop: StopRequest, status: int, say: Callable[[str], None]) -> int:
    """Stop the server, in order or at once on a second signal; returns the exit status of the script."""
    signals = stop.count
    if server.processes():
        say("stopping the server (once more to stop at once)")
    ended_before = server.has_ended()
    left = server.stop(hurry=lambda: stop.count > max(signals, 1))
    if not ended_before and not server.drained and (server.killed or left != 0):
        print(
            f"error: the server did not stop in time and was ended; requests in flight are lost: see {server.log}.",
            file=sys.stderr,
        )
        return UNCLEAN
    return status


def main() -> int:
    """Serve until asked to stop."""
    arguments, passed = parse()
    names = tuple(arguments.model or ["llm"])
    ports = Ports(arguments.http_port, arguments.grpc_port, arguments.metrics_port)
    config = ServerConfig(
        repository=arguments.repository.absolute(),
        models=() if "all" in names else names,
        ports=ports,
        host=arguments.host,
        arguments=tuple(passed),
        log=arguments.log.absolute() if arguments.log else None,
        drain_timeout_s=arguments.drain_timeout,
        stop_timeout_s=arguments.stop_timeout,
    )
    if not config.repository.is_dir():
        raise Failure(f"there is no model repository at {config.repository}: name one with --repository.")
    if arguments.check:
        ports.check(config.host)
        return 0
    if arguments.ready_file:
        arguments.ready_file.unlink(missing_ok=True)
    stop = StopRequest()
    if arguments.end_with_parent:
        os.setpgid(0, 0)
        end_with_parent()
    server = Server(config, find_triton(arguments.tritonserver))
    with ExitStack() as stack:
        if not arguments.log:
            stack.enter_context(Follower(server.log))
        status = 1
        try:
            server.start()
            status = supervise(server, arguments, stop)
        finally:
            if arguments.ready_file:
                arguments.ready_file.unlink(missing_ok=True)
            status = end(server, stop, status, lambda text: print(text, file=sys.stderr, flush=True))
    return status


if __name__ == "__main__":
    run_main(main)
