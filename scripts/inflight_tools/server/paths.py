"""Which paths a Triton server can start this backend from. It does not say so itself: it waits for ever.

Triton's Python backend starts each model's stub through bash, with the stub's path, the backend's, the model's and the
model's name unquoted on one line (seen of 24.10, and read in a later stub_launcher.cc). A blank makes two words of one,
and the server waits for a stub that never answers; other signs are bash's to interpret. A backend directory with a
letter beyond ASCII fails in the stub, whose Python takes ASCII for the encoding of file names.
"""

from __future__ import annotations

import re
from pathlib import Path

from inflight_tools.common.report import Failure

_NOT_PLAIN = re.compile(r"[^\w@%+=:,./-]")  # what bash takes for more than itself, blanks among it


def check_backend_directory(folder: Path) -> None:
    """Raise `Failure` where Triton cannot start a stub of a backend in `folder`."""
    _check(folder, "the backend directory", "move the checkout (or the server) to a path of plain ASCII letters")
    if not str(folder).isascii():
        raise Failure(
            f"Triton cannot load a Python backend from {folder}, because of the letters that are not ASCII: move the "
            "checkout (or the server) to a path of plain ASCII letters."
        )


def check_repository(folder: Path, models: tuple[str, ...]) -> None:
    """Raise `Failure` where Triton cannot start the stub of a model in `folder`: one of `models`, or where that is
    empty, any that is there.
    """
    _check(folder, "the model repository", "move it, or name a link to it that has none with --repository")
    for name in models or tuple(sorted(path.name for path in folder.glob("*") if (path / "config.pbtxt").is_file())):
        _check(Path(name), "the model", "rename its folder")


def _check(path: Path, what: str, mend: str) -> None:
    found = _NOT_PLAIN.search(str(path))
    if found:
        sign = "a blank" if found[0].isspace() else f"the sign {found[0]}"
        raise Failure(
            f"Triton cannot start a Python backend with {sign} in the path of {what} ({path}), it would wait for ever: "
            f"{mend}."
        )
