#!/usr/bin/env python3
"""Starts Triton with this backend and keeps it in the foreground: `inflight serve` by its path."""

from __future__ import annotations

from inflight_tools.common.report import run_main
from inflight_tools.server.serve import main

if __name__ == "__main__":
    run_main(main)
