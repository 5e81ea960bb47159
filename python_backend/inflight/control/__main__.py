"""`python -m inflight.control status`, `drain`, `undrain`: for a container's preStop hook and an operator's shell."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from inflight.control.server import ANSWER_WAIT_S, ask_all, drain_request


def main(arguments: list[str]) -> int:
    """One command; prints one line of JSON per model. 0 when every model answered."""
    parser = argparse.ArgumentParser(prog="python -m inflight.control", description="Speak to the running models.")
    parser.add_argument("command", choices=("status", "drain", "undrain"))
    parser.add_argument(
        "--notice-ms", type=int, default=None, help="how long everything is still served (drain; default: the model's)"
    )
    parser.add_argument(
        "--timeout-ms",
        type=int,
        default=None,
        help="how long streams may go on after that (drain; default: the model's)",
    )
    parser.add_argument("--stop", action="store_true", help="end the engines too, once drained")
    options = parser.parse_args(arguments)
    request: dict[str, Any] = {"command": options.command}
    wait_s = ANSWER_WAIT_S
    if options.command == "drain":
        request, wait_s = drain_request(options.notice_ms, options.timeout_ms, options.stop)
    answers = ask_all(request, wait_s)
    for name, answer in answers.items():
        print(json.dumps({"model": name, **answer}))
    if not answers:
        print("no model that this user may speak to is running", file=sys.stderr)
    return 1 if any("error" in answer for answer in answers.values()) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
