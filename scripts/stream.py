#!/usr/bin/env python3
"""Sends a prompt to a model on Triton and prints the answer as it comes: `inflight chat` by its path."""

from __future__ import annotations

from inflight_tools.clients.stream import main
from inflight_tools.common.report import run_main

if __name__ == "__main__":
    run_main(main)
