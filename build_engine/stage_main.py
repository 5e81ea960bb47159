"""The child's side of `build_engine.stages`: ``python -m build_engine.stage_main STAGE DESCRIPTOR < SPEC``."""

from __future__ import annotations

import ctypes
import importlib
import json
import logging
import os
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any

from build_engine.errors import AccuracyFailure, BuilderError, UserMistake

STAGES = {
    "openvino.export": "build_engine.openvino.export",
    "tensorrt.checkpoint": "build_engine.tensorrt.quantize",
    "tensorrt.hf_checkpoint": "build_engine.tensorrt.hf_quantize",
    "tensorrt.hf_int8": "build_engine.tensorrt.hf_int8",
    "gguf.expand": "build_engine.gguf_files.expand",
    "verify": "build_engine.verification.stage",
    "inspect.openvino": "build_engine.inspection.openvino_graph",
}
"""Stage name → module with ``run(spec, report) -> result``."""

_PR_SET_PDEATHSIG = 1


class Report:
    """Sends progress to the parent at most ten times a second; ``warn`` is shown to the user."""

    def __init__(self, descriptor: int) -> None:
        self._file = os.fdopen(descriptor, "w", buffering=1, encoding="utf-8")
        self._sent = 0.0

    def __call__(self, fraction: float | None, note: str = "") -> None:
        now = time.monotonic()
        if now - self._sent >= 0.1 or fraction in (0.0, 1.0):
            self._sent = now
            self.send({"progress": fraction, "note": note})

    def warn(self, message: str) -> None:
        self.send({"warn": message})

    def send(self, message: dict[str, Any]) -> None:
        try:
            self._file.write(json.dumps(message) + "\n")
        except BrokenPipeError:
            os._exit(1)


def main() -> int:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    name, report = sys.argv[1], Report(int(sys.argv[2]))
    spec = json.load(sys.stdin)
    silence_telemetry()
    logging.basicConfig(level=logging.INFO)
    logging.captureWarnings(True)
    try:
        run: Callable[[dict[str, Any], Report], dict[str, Any]] = importlib.import_module(STAGES[name]).run
        result = run(spec, report)
        result["peak_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        report.send({"result": result})
    except BuilderError as error:
        kind = "user" if isinstance(error, UserMistake) else "accuracy" if isinstance(error, AccuracyFailure) else ""
        report.send({"error": str(error), "kind": kind})
        return error.exit_code
    except MemoryError:
        report.send({"error": "there is not enough memory for this step: free some or use a larger machine"})
        return 1
    except Exception as error:  # noqa: BLE001 (the last resort: the parent needs one sentence)
        traceback.print_exc()
        first = (str(error).strip().splitlines() or [""])[0][:300]
        report.send({"error": f"{type(error).__name__}: {first}"})
        return 1
    return 0


def silence_telemetry() -> None:
    """Nobody asked to be counted: make the import of OpenVINO's telemetry fail, which its users take as 'off'."""
    sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]


if __name__ == "__main__":
    sys.exit(main())
