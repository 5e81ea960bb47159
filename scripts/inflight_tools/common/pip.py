"""Runs pip for the scripts of this folder: a line of progress while it works, one sentence when it fails.

As a program: `python -m inflight_tools.common.pip ARGUMENTS-OF-PIP`, with the interpreter that pip should install for.
"""

from __future__ import annotations

import itertools
import re
import subprocess
import sys
from collections import deque
from collections.abc import Sequence

from inflight_tools.common.layout import LOGS
from inflight_tools.common.report import Failure, Progress, run_main

_WORKING_ON = re.compile(r"^\s*(?:Collecting|Processing|Downloading|Using cached|Obtaining)\s+(\S+)(.*)$")
_STARTS_PACKAGE = re.compile(r"^(?:Collecting|Processing|Requirement already satisfied|Obtaining)\b")

# Signs in pip's output, in the order in which they are looked for, and what they mean to the person who reads it.
_CAUSES: tuple[tuple[str, str], ...] = (
    (
        r"No space left on device",
        "the disk is full: free a few gigabytes, or set TMPDIR and PIP_CACHE_DIR to a disk that has them",
    ),
    (
        r"DO NOT MATCH THE HASHES",
        "a downloaded file is not the one that was pinned: run again with PIP_NO_CACHE_DIR=1, and if it "
        "stays so distrust the package index in use",
    ),
    (
        r"Failed to establish a new connection|Temporary failure in name resolution|Name or service not known"
        r"|Network is unreachable|Connection refused|ConnectTimeout|ReadTimeout|Read timed out|Connection reset",
        "the package index cannot be reached: check the network (and HTTPS_PROXY or PIP_INDEX_URL where they are "
        "needed) and run again, what is already downloaded is kept",
    ),
    (
        r"SSLError|CERTIFICATE_VERIFY_FAILED",
        "the package index's certificate is not trusted: set PIP_CERT to the certificate bundle of your network",
    ),
    (r"Permission denied", "a folder may not be written: run as the user that owns this folder"),
)


def explain(output: str, what: str) -> str:
    """Turn what pip printed into one sentence about `what`, which pip was to do."""
    for sign, cause in _CAUSES:
        if re.search(sign, output):
            return f"{what} failed, because {cause}."
    missing = re.search(r"No matching distribution found for (\S+)", output)
    if missing:
        return (
            f"{what} failed, because the package index in use has no build of {missing.group(1)} for this machine and "
            f"Python {sys.version_info.major}.{sys.version_info.minor}: use CPython 3.10, 3.11 or 3.12 on Linux x86_64 "
            "(glibc 2.35 or newer), or an index that has it (PIP_INDEX_URL)."
        )
    lines = [line.strip() for line in output.splitlines() if "ERROR" in line or "error:" in line]
    last = re.sub(r"^ERROR:\s*", "", lines[-1]) if lines else "it printed no reason"
    return f"{what} failed: {last.rstrip('.')}."


def run_pip(arguments: Sequence[str], what: str, expected: int = 0) -> None:
    """Run `python -m pip` with `arguments`.

    `what` names the work in the sentence of a failure; `expected` is the number of packages, for the progress line
    (0: not known). Raises `Failure` when pip fails.
    """
    LOGS.mkdir(parents=True, exist_ok=True)
    log = LOGS / "pip.log"
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input", "--retries", "2", *arguments]
    progress = Progress()
    tail: deque[str] = deque(maxlen=400)
    seen = 0
    with (
        log.open("w", encoding="utf-8") as whole,
        subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            encoding="utf-8",
            errors="replace",
        ) as pip,
    ):
        if pip.stdout is None:
            raise RuntimeError("pip was started without a pipe")
        try:
            for line in pip.stdout:
                whole.write(line)
                tail.append(line)
                seen += bool(_STARTS_PACKAGE.match(line))
                counter = f"{min(seen, expected)}/{expected}" if expected else f"{seen}"
                working = _WORKING_ON.match(line)
                if working:
                    name = working.group(1).rsplit("/", 1)[-1]
                    size = re.search(r"\([\d.]+ [kMG]?B\)", working.group(2))
                    progress.show(f"{counter}  {name} {size.group(0) if size else ''}")
                elif line.startswith("Installing collected packages"):
                    progress.show(f"{counter}  unpacking")
        finally:
            if sys.exc_info()[0] is not None:
                pip.terminate()
            progress.clear()
        status = pip.wait()
    if status != 0:
        raise Failure(f"{explain(''.join(tail), what)} (Whole output: {log})")


def count_requirements(arguments: Sequence[str]) -> int:
    """How many packages the requirement files among pip's `arguments` name; pins told apart by markers count once."""
    names: set[str] = set()
    for flag, value in itertools.pairwise(arguments):
        if flag in ("-r", "--requirement"):
            with open(value, encoding="utf-8") as lines:
                names.update(line.split("==")[0].strip() for line in lines if "==" in line)
    return len(names)


def main() -> int:
    """Run pip with the arguments of the command line."""
    arguments = sys.argv[1:]
    what = "installing Python packages" if arguments[:1] == ["install"] else f"pip {' '.join(arguments[:1])}"
    run_pip(arguments, what, count_requirements(arguments))
    return 0


if __name__ == "__main__":
    run_main(main)
