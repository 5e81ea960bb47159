"""Starts Triton with a model and keeps it in the foreground until Ctrl-C or SIGTERM.

The model is what a person has in hand: a model repository, an engine directory, a Hugging Face checkpoint or its name
on the hub, which is built first. Uses the server that scripts/quickstart.sh fetched, or the one of the container it
runs in. Exit status: 0 stopped on request; 1 could not start; 3 the server ended by itself; 4 the stop took too long
and was cut short; 130 and 143 stopped while building.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import FrameType

from build_engine.errors import Interrupted
from inflight.triton.config import is_whole
from inflight_gateway import options as gateway_options
from inflight_tools.clients.connection import GRPC_URL, HTTP_URL, has_grpc
from inflight_tools.common.layout import IS_CHECKOUT, MODEL_REPOSITORY
from inflight_tools.common.report import Failure, Progress, run_main
from inflight_tools.server.children import end_with_parent
from inflight_tools.server.find import Triton, find_triton
from inflight_tools.server.gateway import GatewayProcess, lacking
from inflight_tools.server.log import Follower
from inflight_tools.server.serve_options import parse
from inflight_tools.server.server import Ports, Server, ServerConfig
from inflight_tools.server.what import KINDS, Kind, What, recognise

ENDED_BY_ITSELF = 3
UNCLEAN = 4
GATEWAY_READY_S = 15.0  # after Triton is
NOTICE_S = 5.0  # of the gateway on SIGTERM, where none is named
_DEFAULT_MODEL = "llm"


class StopRequest:
    """Counts SIGTERM and SIGINT: the first asks for an orderly stop, a second one for a quick one.

    Balancers get their notice before a SIGTERM's stop; a person with Ctrl-C, or one whose terminal is gone, has none.
    """

    def __init__(self) -> None:
        """Listen from now on."""
        self.count = 0
        self.at_once = False
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._note)

    def _note(self, number: int, _frame: FrameType | None) -> None:
        self.at_once = self.at_once or number != signal.SIGTERM
        self.count += 1


class _StoppedEarly(Exception):
    """A stop was asked for while the server was still starting."""


def _complain(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def gateway_of(server: Server, options: argparse.Namespace) -> GatewayProcess | None:
    """The gateway beside that server, not started yet; None where none is wanted or its packages lack, which is said.

    Raises `Failure` where it was asked for by name and its packages lack, or a file of its options is not right.
    """
    port = server.ports.gateway
    if not port:
        return None
    problem, given = lacking(), gateway_options.words(options)
    if problem is not None:
        if options.gateway_asked or given:
            raise Failure(f"{problem}.")
        _complain(f"no gateway on port {port}: {problem}; --no-gateway does without it.")
        return None
    try:
        gateway_options.check(options)
    except ValueError as error:
        raise Failure(f"{error}.") from None
    notice_s = NOTICE_S if options.drain_notice is None else options.drain_notice
    arguments = ["--triton", server.grpc_url, "--host", server.config.host, "--port", str(port)]
    if server.ports.health:
        arguments += ["--health", f"{server.reachable_host}:{server.ports.health}"]
    arguments += ["--drain-notice", str(notice_s), "--drain-timeout", str(options.drain_timeout), *given]
    return GatewayProcess(
        f"{'https' if options.tls_cert else 'http'}://{server.reachable_host}:{port}",
        arguments,
        server.log,
        _complain,
        drain_s=notice_s + options.drain_timeout,
    )


def _wait_for(gateway: GatewayProcess, stop: StopRequest) -> bool:
    """Whether the gateway has become ready, too."""
    give_up = time.monotonic() + GATEWAY_READY_S
    while gateway.why_not():
        if stop.count:
            raise _StoppedEarly
        if gateway.given_up or time.monotonic() > give_up:
            return False
        gateway.keep_alive()
        time.sleep(0.05)
    return True


def supervise(
    server: Server, arguments: argparse.Namespace, stop: StopRequest, gateway: GatewayProcess | None = None
) -> int:
    """Wait until the server is ready, say so, and stay until it ends or is to stop. Returns the exit status."""
    progress = Progress()

    def tick(seconds: float) -> None:
        if stop.count:
            raise _StoppedEarly
        if gateway is not None:
            gateway.keep_alive()
        if arguments.log:
            progress.show(f"waiting for the server, {seconds:.0f} s")

    try:
        seconds = server.wait_ready(arguments.ready_timeout, tick)
        answers = gateway is not None and _wait_for(gateway, stop)
    except _StoppedEarly:
        stop.at_once = True  # nobody sends requests here yet
        return 0
    finally:
        progress.clear()
    models = ", ".join(server.config.models) or "all models"
    print(f"ready after {seconds:.1f} s: {models}", flush=True)
    print(f"  gRPC {server.grpc_url}   HTTP http://{server.http_url}   metrics {server.metrics_url}", flush=True)
    if server.health_url:
        print(f"  health {server.health_url}", flush=True)
    if answers and gateway is not None:
        print(f"  OpenAI's API {gateway.url}/v1", flush=True)
        print(f"  Playground {gateway.url}/", flush=True)
    elif gateway is not None:
        _complain(
            f"error: Triton is ready and the gateway on port {server.ports.gateway} is not ({gateway.why_not()}): see "
            f"{server.log}."
        )
    for line in how_to_ask(server, os.environ):
        print(f"  {line}", flush=True)
    if arguments.ready_file:
        addresses: dict[str, str | int] = {
            "grpc": server.grpc_url,
            "http": server.http_url,
            "metrics": server.metrics_url,
            "health": server.health_url,
            "gateway": gateway.url if gateway is not None else "",
            "pid": server.pid,
        }
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
        if gateway is not None:
            gateway.keep_alive()
        time.sleep(0.1)
    return 0


def end(
    server: Server, stop: StopRequest, status: int, say: Callable[[str], None], gateway: GatewayProcess | None = None
) -> int:
    """Stop the gateway and the server, in order or at once on a second signal; returns the exit status of the script.

    The gateway is not ready from the first moment. It and the models give notice and finish their streams at the same
    time, so that one limit holds for both; Triton is stopped when the gateway has ended.
    """
    signals = stop.count

    def hurry() -> bool:
        return stop.count > max(signals, 1)

    def gateway_ended() -> None:
        if gateway is not None:
            gateway.finish(hurry)

    if server.processes():
        say("stopping the server (once more to stop at once)")
    ended_before = server.has_ended()
    if gateway is not None:
        gateway.leave(stop.at_once or ended_before)
    left = server.stop(hurry, stop.at_once, gateway_ended)
    gateway_ended()
    if not ended_before and not server.drained and (server.killed or left != 0):
        print(
            f"error: the server did not stop in time and was ended; requests in flight are lost: see {server.log}.",
            file=sys.stderr,
        )
        return UNCLEAN
    return status


def how_to_ask(server: Server, environment: Mapping[str, str]) -> list[str]:
    """Two lines that a person can copy: one for curl, one for `inflight chat`."""
    model = server.config.models[0] if server.config.models else "MODEL"
    program = str(Path(sys.executable).with_name("inflight"))
    on_path = shutil.which("inflight", path=environment.get("PATH")) is not None
    words = ["inflight" if on_path or not os.access(program, os.X_OK) else program, "chat"]
    address = server.grpc_url if has_grpc() else f"http://{server.http_url}"
    if address not in (GRPC_URL, f"http://{HTTP_URL}"):
        words += ["--url", address]
    if model != _DEFAULT_MODEL:
        words += ["--model", model]
    url = f"{server.http_url}/v2/models/{model}/generate"
    return [
        f"""curl -s {url} -d '{{"text_input": "The capital of France is", "max_tokens": 16}}'""",
        f'{shlex.join(words)} "Tell me a joke."',
    ]


def models_of(what: What, named: Sequence[str], *, choose: bool) -> tuple[str, ...]:
    """The models to load; an empty tuple is every one. Where none is `named` it is llm, and where we may `choose`,
    every one of a repository that has no such model.
    """
    names = tuple(named or ([what.model] if what.model else []))
    if names:
        return () if "all" in names else names
    return () if choose and not (Path(what.place) / _DEFAULT_MODEL).is_dir() else (_DEFAULT_MODEL,)


def _check_options(what: What, arguments: argparse.Namespace) -> None:
    """Raise `Failure` for an option that has nothing to say about what is to be served."""
    if what.kind is not Kind.REPOSITORY:
        if arguments.model:
            raise Failure(f"--model goes with a model repository: the model made of {what.place} is named with --name.")
        return
    asked = {"--name": arguments.name, "--quantization": arguments.quantization}
    asked |= {"--engine": arguments.engine.removeprefix("auto"), "--engine-python": arguments.engine_python}
    for option, value in asked.items():
        if value:
            raise Failure(f"{option} does not go with a model repository: that is said in the model's config.pbtxt.")


def _made(what: What, arguments: argparse.Namespace, ports: Ports, stack: ExitStack) -> tuple[Triton, Path, str]:
    """The server, and the repository and the name of the one model that was made of `what`; it is kept while `stack`
    is open.

    What would fail at the start is looked at first: a build may take minutes.
    """
    triton = find_triton(arguments.tritonserver)
    ports.check(arguments.host)
    from build_engine.console import make_console
    from inflight_tools.server.engine_cache import in_use
    from inflight_tools.server.prepare import Wish, prepare

    wish = Wish(arguments.name or _DEFAULT_MODEL, arguments.quantization, arguments.engine, arguments.engine_python)
    prepared = prepare(what, wish, make_console(as_json=False))
    stack.enter_context(in_use(prepared.directory))
    return triton, prepared.repository, wish.name


def _what(arguments: argparse.Namespace) -> What:
    if arguments.what is not None and arguments.repository is not None:
        raise Failure("WHAT and --repository say the same: give one of them.")
    if arguments.what is not None:
        return recognise(arguments.what)
    if arguments.repository is None and not IS_CHECKOUT:
        raise Failure(f"there is no model repository of its own here, as in a checkout of Inflight: name {KINDS}.")
    repository = arguments.repository or MODEL_REPOSITORY
    if not repository.is_dir():
        raise Failure(f"there is no model repository at {repository.absolute()}: name one with --repository.")
    return What(Kind.REPOSITORY, str(repository))


def main(arguments: Sequence[str] | None = None, program: str | None = None) -> int:
    """Serve until asked to stop."""
    options, passed = parse(arguments, program, (__doc__ or "").split("\n", 1)[0])
    ports = Ports(options.http_port, options.grpc_port, options.metrics_port, options.health_port, options.gateway_port)
    what = _what(options)
    _check_options(what, options)
    if options.check:
        ports.check(options.host)
        return 0
    if options.ready_file:
        options.ready_file.unlink(missing_ok=True)
    if options.end_with_parent:
        os.setpgid(0, 0)
        end_with_parent()
    with ExitStack() as stack:
        triton: Triton | None = None
        if what.kind is Kind.REPOSITORY:
            repository = Path(what.place).absolute()
            models = models_of(what, options.model or [], choose=options.what is not None)
        else:
            try:
                triton, repository, name = _made(what, options, ports, stack)
            except Interrupted as interrupted:
                print("stopped; nothing was left behind", file=sys.stderr)
                return interrupted.exit_code
            models = (name,)
        stop = StopRequest()
        config = ServerConfig(
            repository=repository,
            models=models,
            ports=ports,
            host=options.host,
            arguments=(*passed, *as_they_are(repository)),
            log=options.log.absolute() if options.log else None,
            drain_timeout_s=options.drain_timeout,
            drain_notice_s=options.drain_notice,
            stop_timeout_s=options.stop_timeout,
            gather=options.gather,
        )
        return run(Server(config, triton or find_triton(options.tritonserver)), options, stop, stack)


def as_they_are(repository: Path) -> tuple[str, ...]:
    """What tells Triton to take the models' configurations as they are, where each says everything: it starts sooner by
    more than a second. A model of another backend in the repository may need what Triton adds.
    """
    try:
        configs = [folder / "config.pbtxt" for folder in repository.iterdir() if folder.is_dir()]
        whole = all(is_whole(config.read_text(encoding="utf-8")) for config in configs)
    except (OSError, UnicodeDecodeError):
        return ()
    return ("--disable-auto-complete-config",) if configs and whole else ()


def run(server: Server, options: argparse.Namespace, stop: StopRequest, stack: ExitStack) -> int:
    """Start, stay, and stop in order; returns the exit status."""
    gateway = gateway_of(server, options)
    if not options.log:
        stack.enter_context(Follower(server.log))
    status = 1
    try:
        server.start()
        health = server.watch()
        if health is not None:
            stack.callback(health.stop)
        if gateway is not None:
            gateway.start()
        status = supervise(server, options, stop, gateway)
        if health is not None:
            health.watch.stopping = True
    finally:
        if options.ready_file:
            options.ready_file.unlink(missing_ok=True)
        status = end(server, stop, status, _complain, gateway)
    return status


if __name__ == "__main__":
    run_main(main)
