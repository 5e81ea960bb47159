#!/usr/bin/env python3
"""Turns a model repository of NVIDIA's TensorRT-LLM backend into an Inflight model: `inflight import` by its path."""

from __future__ import annotations

from inflight_tools.common.report import run_main
from inflight_tools.server.import_config import main

if __name__ == "__main__":
    run_main(main)
