#!/usr/bin/env python3
"""Makes SmolLM2-135M-Instruct a Hugging Face checkpoint in .cache/models, without a model hub."""

from __future__ import annotations

from inflight_tools.common.fetch_model import main
from inflight_tools.common.report import run_main

if __name__ == "__main__":
    run_main(main)
