#!/usr/bin/env python3
"""Measures how peak memory and time of a build grow with the model: random Llamas of up to a billion parameters.

Writes build_growth.json and build_growth.svg. Exit status: 0 done, 1 an error.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from build_engine import svg
from build_engine.arguments import Parser
from inflight_tools.common import option_types as types
from inflight_tools.common.layout import BACKEND_SOURCE, REPOSITORY
from inflight_tools.common.report import Failure, run_main

LIMIT_S = 1800
COMMON = {"vocab_size": 49152, "max_position_embeddings": 2048, "tie_word_embeddings": True}
SHAPES = {
    "135M": (576, 1536, 30, 9, 3),
    "340M": (1024, 2816, 24, 16, 8),
    "1.07B": (2048, 8192, 16, 32, 8),
}
NAMES = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
BUILDS = (("openvino", "int8"), ("openvino", "int4"), ("tensorrt-llm", "none"), ("tensorrt-llm", "fp8"))
WRITE = """
import json, sys
from pathlib import Path
from inflight_tools.common.tiny_models import write_checkpoint
write_checkpoint(Path(sys.argv[1]), "llama", dtype="bfloat16", **json.loads(sys.argv[2]))
"""


def run(*words: object) -> None:
    """One child process. Raises `Failure` with its last line."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(BACKEND_SOURCE), str(REPOSITORY)))}
    done = subprocess.run(
        [sys.executable, *map(str, words)],
        env=environment,
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        timeout=LIMIT_S,
        check=False,
    )
    if done.returncode:
        raise Failure((done.stderr.strip().splitlines() or ["a child process failed"])[-1])


def measure(model: Path, name: str, target: str, recipe: str, output: Path) -> dict[str, Any]:
    """One build: bytes of the weights, its heaviest step's peak memory, seconds."""
    more = ["--stop-after", "checkpoint"] if target == "tensorrt-llm" else []
    began = time.monotonic()
    run(
        "-m", "build_engine", "build", model, "--target", target, "--quantization", recipe, "--no-verify", "--no-cache",
        *more, "--output", output, "--force",
    )  # fmt: skip
    seconds = time.monotonic() - began
    details = json.loads((output / "engine.json").read_text(encoding="utf-8"))["built"]["details"]
    weights = sum(path.stat().st_size for path in model.glob("*.safetensors"))
    return {
        "model": name,
        "weights_bytes": weights,
        "build": f"{target} {recipe}",
        "peak_bytes": details["peak_memory_bytes"],
        "seconds": round(seconds, 1),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """See the module's text."""
    parser = Parser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument(
        "--output", type=types.output_folder, default=REPOSITORY / "docs" / "benchmarks", help="default: %(default)s"
    )
    folder: Path = parser.parse_args(arguments).output
    records: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="inflight-growth-") as work:
        for name, shape in SHAPES.items():
            model = Path(work) / name
            run("-c", WRITE, model, json.dumps({**COMMON, **dict(zip(NAMES, shape, strict=True))}))
            for target, recipe in BUILDS:
                records.append(measure(model, name, target, recipe, Path(work) / "built"))
                print(records[-1], flush=True)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "build_growth.json").write_text(json.dumps(records, indent=1) + "\n", encoding="utf-8")
    series = [
        svg.Series(
            build,
            [(each["weights_bytes"] / 1e9, each["peak_bytes"] / 1e9) for each in records if each["build"] == build],
            labels=[f"{each['seconds']:.0f} s" for each in records if each["build"] == build],
        )
        for build in dict.fromkeys(each["build"] for each in records)
    ]
    ends = [(each["weights_bytes"] / 1e9, 2.5 * each["weights_bytes"] / 1e9) for each in records]
    series.append(svg.Series("2.5 copies", sorted(set(ends))))
    title = "Peak memory of a build against the size of its checkpoint (beside the points: seconds)"
    drawing = svg.chart(title, svg.Axis("checkpoint, GB"), svg.Axis("peak memory, GB"), series)
    (folder / "build_growth.svg").write_text(drawing, encoding="utf-8")
    return 0


if __name__ == "__main__":
    run_main(main)
