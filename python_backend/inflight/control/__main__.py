"""`python -m inflight.control status` and `drain`: made for a container's preStop hook and for an operator's shell."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from inflight.control.server import ANSWER_WAIT_S, ask_all


def main(arguments: list[str]) -> int:
    """`status` or `drain`; prints one line of JSON per model. 0 when every model answered."""
    parser = argparse.ArgumentParser(prog="python -m inflight.control", description="Speak to the running models.")
    parser.add_argument("command", choices=("status", "drain"))
    parser.add_argument("--timeout-ms", type=int, default=None, help="how long streams may go on (drain)")
    parser.add_argument("--stop", action="store_true", help="end the engines too, once drained")
    options = parser.parse_args(arguments)
    request: dict[str, Any] = {"command": options.command, "stop": options.stop}
    if options.timeout_ms is not None:
        request["timeout_ms"] = options.timeout_ms
    wait = (options.timeout_ms or 3_600_000) / 1000 if options.command == "drain" else 0.0
    answers = ask_all(request, wait + ANSWER_WAIT_S)
    for name, answer in answers.items():
        print(json.dumps({"model": name, **answer}))
    if not answers:
        print("no model that this user may speak to is running", file=sys.stderr)
    return 1 if any("error" in answer for answer in answers.values()) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
