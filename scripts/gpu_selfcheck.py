#!/usr/bin/env python3
"""Checks on a GPU machine what could not be checked where Inflight was written: `inflight selfcheck` by its path."""

from __future__ import annotations

from inflight_tools.common.report import run_main
from inflight_tools.selfcheck.gpu_selfcheck import main

if __name__ == "__main__":
    run_main(main)
