"""Fetches a checkpoint from the hub, in a process of its own: `python -m build_engine.fetch NAME PATTERN...`.

The hub's library downloads in threads that nothing ends before their file is complete. Their process can be ended, so
Ctrl-C in the middle of a large file takes no longer than in any other step. Progress goes to standard error, the
result as one line of JSON to standard output. What has been fetched by then stays in the hub's own cache.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence

from build_engine.errors import StageFailure, UserMistake
from build_engine.stages import child_environment, end_process

ETAG_TIMEOUT_S = 20.0
TWICE = ["*/*", "consolidated*"]
"""The same weights in other forms: in folders (original/, onnx/), or as Mistral stores them beside the usual ones."""


def fetch(name: str, patterns: Sequence[str]) -> str:
    """The folder in the hub's cache that holds the files of ``name`` that match ``patterns``; raises `UserMistake`.

    There is no limit on the time as a whole, which is that of the network; the library gives up a silent connection.
    """
    child = subprocess.Popen(
        [sys.executable, "-m", "build_engine.fetch", name, *patterns],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        env=child_environment(),
        start_new_session=True,
    )
    try:
        output, _ = child.communicate()
    finally:
        end_process(child)
    try:
        outcome = json.loads(output)
    except ValueError:
        raise StageFailure(f"fetching {name} from the hub: the process ended with status {child.returncode}") from None
    if "error" in outcome:
        raise UserMistake(
            f"{name} is not a directory here and could not be fetched from the hub ({outcome['error'][:200]})"
        )
    return str(outcome["directory"])


def main(arguments: Sequence[str]) -> int:
    """Fetch and say where it is, or why not."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    name, *patterns = arguments
    try:
        outcome = {
            "directory": snapshot_download(
                name, allow_patterns=patterns, ignore_patterns=TWICE, etag_timeout=ETAG_TIMEOUT_S
            )
        }
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        outcome = {"error": str(error).strip().partition("\n")[0] or type(error).__name__}
    print(json.dumps(outcome))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
