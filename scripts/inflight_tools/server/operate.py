"""`inflight status`, `drain` and `undrain`: the models of this machine, wherever their control sockets lie."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from build_engine.arguments import Parser
from inflight import control

_FIRST = ("health", "reason")  # what is said first of a model; the rest follows in the order of the answer


def parser(program: str) -> Parser:
    """The options of the three commands."""
    whole = Parser(prog=program, description="Speaks to the models that run on this machine.")
    commands = whole.add_subparsers(dest="command", required=True, metavar="COMMAND")
    # Nothing is guessed here: a drain turns clients away.
    status = commands.add_parser(
        "status", allow_abbrev=False, description="What the models that run on this machine are doing."
    )
    drain = commands.add_parser(
        "drain",
        allow_abbrev=False,
        description="Orders the models that run on this machine to say that they are not ready, to serve until "
        "balancers have noticed, to take no more then and to finish what they have begun.",
    )
    undrain = commands.add_parser(
        "undrain", allow_abbrev=False, description="Takes a drain back: the models serve again, however far it was."
    )
    drain.add_argument(
        "--notice-ms", type=int, metavar="MS", help="how long everything is still served (default: the model's)"
    )
    drain.add_argument("--timeout-ms", type=int, metavar="MS", help="how long streams may go on (default: the model's)")
    drain.add_argument("--stop", action="store_true", help="end the engines too, once drained")
    for command in (status, drain, undrain):
        command.add_argument("models", nargs="*", metavar="MODEL", help="which models (default: every one)")
        command.add_argument("--json", action="store_true", help="one line of JSON per model")
    return whole


def request_of(options: Any) -> tuple[dict[str, Any], float]:
    """What is sent to a control socket, and for how many seconds its answer is waited for."""
    if options.command != "drain":
        return {"command": options.command}, control.ANSWER_WAIT_S
    return control.drain_request(options.notice_ms, options.timeout_ms, options.stop)


def as_text(socket_name: str, answer: Mapping[str, Any]) -> str:
    """One model's answer for a person: a heading, then a line for each value."""
    model, _, process = socket_name.rpartition("-")
    names = [*(name for name in _FIRST if answer.get(name)), *(name for name in answer if name not in _FIRST)]
    width = max((len(name) for name in names), default=0) + 2
    lines = [f"  {name:<{width}}{_plain(answer[name])}" for name in names]
    return "\n".join([f"{model} (process {process})", *lines])


def _plain(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_plain(part)}" for name, part in value.items()) or "none"
    if isinstance(value, (list, tuple)):
        return ", ".join(_plain(part) for part in value) or "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "none" if value is None or value == "" else str(value)


def main(arguments: Sequence[str], program: str) -> int:
    """`status`, `drain` or `undrain`; 0 when there are models and every one answered."""
    options = parser(program).parse_args(arguments)
    request, wait_s = request_of(options)
    if options.command == "drain" and sys.stderr.isatty():  # it takes its time
        print("not ready from now on, and draining soon (inflight undrain takes it back)", file=sys.stderr)
    answers = control.ask_all(request, wait_s, options.models)
    for name, answer in answers.items():
        print(json.dumps({"model": name, **answer}) if options.json else as_text(name, answer))
    if not answers:
        named = f"no model called {' or '.join(options.models)}" if options.models else "no model"
        print(f"{named} runs here that this user may speak to: start one with inflight serve.", file=sys.stderr)
        return 1
    return 1 if any("error" in answer for answer in answers.values()) else 0
