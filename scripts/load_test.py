#!/usr/bin/env python3
"""Measures a served model under load with the real perf_analyzer: `inflight load-test` by its path."""

from __future__ import annotations

from inflight_tools.common.report import run_main
from inflight_tools.load.load_test import main

if __name__ == "__main__":
    run_main(main)
