"""`vllm bench serve`: `python vllm_bench.py URL TOKENIZER`. The wheel for CPUs has no metadata of the name vllm, which
its command looks for; so its functions are called.
"""

from __future__ import annotations

import argparse
import os
import sys
from importlib import metadata

os.environ["HF_HUB_OFFLINE"] = "1"  # the tokenizer is a folder

from common import URL, report
from vllm.benchmarks.serve import add_cli_args, main

REQUESTS = 8


def bench(backend: str, path: str) -> None:
    parser = argparse.ArgumentParser()
    add_cli_args(parser)
    asked = ["--backend", backend, "--base-url", URL.removesuffix("/v1"), "--endpoint", path, "--model", "llm"]
    asked += ["--tokenizer", sys.argv[2], "--dataset-name", "random", "--random-input-len", "16"]
    asked += ["--random-output-len", "8", "--num-prompts", str(REQUESTS), "--ignore-eos"]
    found = main(parser.parse_args(asked))
    assert found["completed"] == REQUESTS, found
    assert found["total_output_tokens"] == REQUESTS * 8, found


report(
    metadata.packages_distributions()["vllm"][0],
    {
        "chat, streamed": lambda: bench("openai-chat", "/v1/chat/completions"),
        "completions, streamed": lambda: bench("openai", "/v1/completions"),
    },
)
