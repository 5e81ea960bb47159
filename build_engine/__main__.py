"""Entry point of `python -m build_engine`."""

from __future__ import annotations

import sys

from build_engine.cli import main

if __name__ == "__main__":
    sys.exit(main())
