"""What the scripts and the command `inflight` are made of, by role: common, server, clients, load, fuzz, selfcheck.

In a checkout nothing has to be installed for it: the packages that lie in the same repository are found, before any
that are installed.
"""

from __future__ import annotations

import sys
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[2]
if (_ROOT / "python_backend" / "model.py").is_file():
    sys.path[:0] = [str(_ROOT / "python_backend"), str(_ROOT), str(_ROOT / "gateway")]
