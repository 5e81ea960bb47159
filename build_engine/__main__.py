"""Entry point of `python -m build_engine`."""

from __future__ import annotations

import sys

from build_engine.interrupt import leaving_at_once


def run() -> int:
    """The command line, with ^C answered in a sentence while it is still being imported."""
    with leaving_at_once():
        from build_engine.cli import main
    return main()


if __name__ == "__main__":
    sys.exit(run())
