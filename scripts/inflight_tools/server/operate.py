"""`inflight status` and `inflight drain`: the models of this machine, wherever their control sockets lie."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from build_engine.arguments import Parser
from inflight import control

_LONGEST_DRAIN_S = 3600.0
_FIRST = ("health", "reason")  # what is said first of a model; the rest follows in the order of the answer


def parser(program: str) -> Parser:
    """The options of both commands."""
    whole = Parser(prog=program, description="Speaks to the models that run on this machine.")
    commands = whole.add_subparsers(dest="command", required=True, metavar="COMMAND")
    # Nothing is guessed here: a drain cannot be taken back.
    status = commands.add_parser(
        "status", allow_abbrev=False, description="What the models that run on this machine are doing."
    )
    drain = commands.add_parser(
        "drain",
        allow_abbrev=False,
        description="Orders the models that run on this machine to finish what they have begun and to take no more.",
    )
    drain.add_argument("--timeout-ms", type=int, metavar="MS", help="how long streams may go on (default: the model's)")
    drain.add_argument("--stop", action="store_true", help="end the engines too, once drained")
    for command in (status, drain):
        command.add_argument("models", nargs="*", metavar="MODEL", help="which models (default: every one)")
        command.add_argument("--json", action="store_true", help="one line of JSON per model")
    return whole


def request_of(options: Any) -> tuple[dict[str, Any], float]:
    """What is sent to a control socket, and for how many seconds its answer is waited for."""
    request: dict[str, Any] = {"command": options.command}
    if options.command == "status":
        return request, control.ANSWER_WAIT_S
    request["stop"] = options.stop
    if options.timeout_ms is None:
        return request, _LONGEST_DRAIN_S + control.ANSWER_WAIT_S
    request["timeout_ms"] = options.timeout_ms
    return request, options.timeout_ms / 1000 + control.ANSWER_WAIT_S


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
    """`status` or `drain`; 0 when there are models and every one answered."""
    options = parser(program).parse_args(arguments)
    request, wait_s = request_of(options)
    answers = control.ask_all(request, wait_s, options.models)
    for name, answer in answers.items():
        print(json.dumps({"model": name, **answer}) if options.json else as_text(name, answer))
    if not answers:
        named = f"no model called {' or '.join(options.models)}" if options.models else "no model"
        print(f"{named} runs here that this user may speak to: start one with inflight serve.", file=sys.stderr)
        return 1
    return 1 if any("error" in answer for answer in answers.values()) else 0
