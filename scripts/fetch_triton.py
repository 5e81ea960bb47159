#!/usr/bin/env python3
"""Puts a real tritonserver into .cache/, ready to run, without a container or root."""

from __future__ import annotations

from inflight_tools.common.report import run_main
from inflight_tools.server.fetch_triton import main

if __name__ == "__main__":
    run_main(main)
