"""`python -m inflight.control status`, `drain`, `undrain`: for a container's preStop hook and an operator's shell;
`health`: the port that probes and balancers ask, beside any Triton.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import signal
import sys
from typing import Any

from inflight.control.folder import candidate_folders
from inflight.control.health import listen, serve_health
from inflight.control.owner import ServerAt
from inflight.control.server import ANSWER_WAIT_S, ask_all, drain_request
from inflight.control.watch import Watch


def main(arguments: list[str]) -> int:
    """One command. `health` runs until it is told to stop; the others print one line of JSON per model, and are 0 when
    there are models and every one answered: an order that reached nobody was not carried out.
    """
    options = _parser().parse_args(arguments)
    if options.command == "health":
        return _health(options)
    request: dict[str, Any] = {"command": options.command}
    wait_s = ANSWER_WAIT_S
    if options.command == "drain":
        request, wait_s = drain_request(options.notice_ms, options.timeout_ms, options.stop)
    answers = ask_all(request, wait_s)
    for name, answer in answers.items():
        print(json.dumps({"model": name, **answer}))
    if not answers:
        print("no model that this user may speak to is running", file=sys.stderr)
        return 1
    return 1 if any("error" in answer for answer in answers.values()) else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m inflight.control", description="Speak to the running models.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    commands.add_parser("status", help="what the models are doing")
    drain = commands.add_parser("drain", help="not ready, then no new work, then the end of what has begun")
    drain.add_argument("--notice-ms", type=int, help="how long everything is still served (default: the model's)")
    drain.add_argument("--timeout-ms", type=int, help="how long streams may go on after that (default: the model's)")
    drain.add_argument("--stop", action="store_true", help="end the engines too, once drained")
    commands.add_parser("undrain", help="take a drain back")
    health = commands.add_parser("health", help="answer probes and balancers: GET /live and /ready, HAProxy's agent")
    host = os.environ.get("INFLIGHT_HOST", "127.0.0.1")
    health.add_argument("--host", default=host, help="address to listen on (default: $INFLIGHT_HOST or %(default)s)")
    health.add_argument("--port", type=int, default=8003, help="default: %(default)s")
    health.add_argument("--triton", default="127.0.0.1:8000", help="Triton's HTTP address (default: %(default)s)")
    health.add_argument(
        "--model", action="append", default=[], help="without this one the server is not ready; may repeat"
    )
    return parser


def _health(options: argparse.Namespace) -> int:
    host, _, port = options.triton.rpartition(":")
    if not (host and port.isdecimal()):
        print(f"error: --triton is {options.triton!r} and has to be HOST:PORT.", file=sys.stderr)
        return 2
    try:
        listener = listen(options.host, options.port)
    except (OSError, OverflowError) as error:
        print(f"error: --port {options.port} on {options.host} cannot be used ({error}).", file=sys.stderr)
        return 1
    host = host.strip("[]")
    watch = Watch(host, int(port), candidate_folders, wanted=options.model, is_ours=ServerAt(host, int(port)))

    async def until_told() -> None:
        task = asyncio.ensure_future(serve_health(listener, watch))
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, task.cancel)
        with contextlib.suppress(asyncio.CancelledError):
            await task

    print(f"health of {options.triton} on http://{options.host}:{options.port}/ready", file=sys.stderr)
    asyncio.run(until_told())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
