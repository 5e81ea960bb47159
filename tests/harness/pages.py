"""Commands and programs that a page of the documents shows."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
ASKS_A_SERVER = re.compile(
    r"curl |\.venv/bin/inflight chat "
)  # run by tests/integration/test_readme.py, as is the command that it asks:
SERVES = ".venv/bin/inflight serve"


def fenced(page: str, language: str) -> list[str]:
    """Texts of the fenced blocks in that language, in order."""
    text = (ROOT / page).read_text("utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def commands(page: str) -> list[str]:
    """Every command that a page tells to type: those of its shell blocks, without comments, and those in the cells of
    its tables, which begin with `./` or `.venv/`.
    """
    found = [command for block in fenced(page, "sh") for command in _split(block)]
    rows = [line for line in (ROOT / page).read_text("utf-8").splitlines() if line.startswith("|")]
    found += [cell for row in rows for cell in re.findall(r"`((?:\./|\.venv/)[^`]+)`", row)]
    return list(dict.fromkeys(found))


def _split(block: str) -> list[str]:
    """A block's commands; one goes on over lines while a quotation is open or the line ends with a backslash."""
    found, lines = [], ""
    for line in block.splitlines():
        lines += line + "\n"
        try:
            words = shlex.split(lines, comments=True)
        except ValueError:  # a quotation is open
            continue
        if lines.endswith("\\\n"):
            continue
        if words:
            found.append(re.sub(r"\s+#[^'\"]*$", "", lines).strip())
        lines = ""
    assert not lines, f"a command does not end: {lines}"
    return found
