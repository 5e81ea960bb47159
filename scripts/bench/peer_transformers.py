"""transformers' `generate`, one request after the other, as one of the peers; run as a module it is the peer's process.

`python -m bench.peer_transformers CHECKPOINT` says one line when the model is loaded, and then answers one JSON line on
standard output for each on standard input:

    {"text": "...", "max_tokens": 64}
    {"arrivals": [s, ...]}

`arrivals` are the times of the tokens in seconds of `time.perf_counter`, which all processes of a machine share.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.arms import cpu_seconds
from bench.peer_client import Question, arrivals
from bench.peer_servers import resident_bytes
from inflight_tools.common.layout import REPOSITORY
from inflight_tools.common.report import Failure
from inflight_tools.load.perf_analyzer import Load
from inflight_tools.load.profile_export import Request
from inflight_tools.server.children import start_child

INSTALL = ".venv/bin/pip install --no-deps -r requirements/build.txt"
_LOAD_S = 120.0
_ANSWER_S = 300.0


class TransformersPeer:
    """See `bench.peer_servers.Peer`."""

    name = "transformers"
    weights = "bf16"
    most_in_flight = 1

    def __init__(self, checkpoint: Path) -> None:
        """Raises `Failure` with the command that installs it when it is not there."""
        if not all(importlib.util.find_spec(name) for name in ("torch", "transformers")):
            raise Failure(f"transformers is not installed: {INSTALL}")
        self._checkpoint = checkpoint
        self._process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        """See `Peer`."""
        self._process = start_child(
            lambda bind: subprocess.Popen(
                [sys.executable, "-m", "bench.peer_transformers", str(self._checkpoint)],
                env={**os.environ, "PYTHONPATH": str(REPOSITORY / "scripts"), "HF_HUB_OFFLINE": "1"},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                encoding="utf-8",
                errors="replace",
                start_new_session=True,
                preexec_fn=bind,
            )
        )
        self._answer(_LOAD_S)

    def stop(self) -> None:
        """See `Peer`."""
        if self._process is not None:
            self.resume()
            self._process.kill()
            self._process.wait(timeout=10)
            self._process = None

    def resume(self) -> None:
        """See `Peer`."""
        os.kill(self._started().pid, signal.SIGCONT)

    def pause(self) -> None:
        """See `Peer`."""
        os.kill(self._started().pid, signal.SIGSTOP)

    def cpu_s(self) -> float:
        """See `Peer`."""
        return cpu_seconds(self._started().pid)

    def memory(self) -> int:
        """See `Peer`."""
        return resident_bytes(self._started().pid)

    def drive(self, questions: Sequence[Question], load: Load, seed: str) -> list[Request]:
        """See `Peer`; a request that arrives while another one is answered waits for it."""
        stdin = self._started().stdin
        assert stdin is not None
        times = arrivals(load.rate, len(questions), seed) if load.rate is not None else None
        begin = time.perf_counter()
        found = []
        for number, question in enumerate(questions):
            sent = time.perf_counter()
            if times is not None:
                time.sleep(max(0.0, begin + times[number] - sent))
                sent = begin + times[number]
            stdin.write(json.dumps({"text": question.text, "max_tokens": question.max_tokens}) + "\n")
            stdin.flush()
            got = tuple((int(at * 1e9), 1) for at in self._answer(_ANSWER_S)["arrivals"])
            if len(got) != question.max_tokens:
                raise Failure(f"transformers gave {len(got)} tokens instead of {question.max_tokens}.")
            found.append(Request(int(sent * 1e9), got, got[-1][0], 0))
        return found

    def describe(self) -> dict[str, str]:
        """See `Peer`."""
        versions = [f"{name} {importlib.metadata.version(name)}" for name in ("transformers", "torch")]
        return {
            "version": ", ".join(versions),
            "weights": "bf16",
            "options": f"generate(do_sample=False), {os.cpu_count()} threads",
            "interface": "Python, in a process of its own",
        }

    def _answer(self, timeout_s: float) -> dict[str, Any]:
        stdout = self._started().stdout
        assert stdout is not None
        ready, _, _ = select.select([stdout], [], [], timeout_s)
        line = stdout.readline() if ready else ""
        if not line:
            raise Failure("transformers' process gave no answer: its output above says why.")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _started(self) -> subprocess.Popen[str]:
        if self._process is None:
            raise RuntimeError("transformers' process has not been started")
        return self._process


class _Clock:
    """A streamer for `generate` that notes when each token comes."""

    def __init__(self) -> None:
        self.times: list[float] = []
        self._prompt = True  # what comes first is the prompt itself

    def put(self, _value: object) -> None:
        """Called by `generate` for the prompt and for every token."""
        if not self._prompt:
            self.times.append(time.perf_counter())
        self._prompt = False

    def end(self) -> None:
        """Called by `generate` at the end."""


def main(checkpoint: str) -> None:
    """Serve until standard input ends."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever a library prints goes to standard error
    import torch
    import transformers

    torch.set_num_threads(os.cpu_count() or 1)
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.bfloat16).eval()
    model.generation_config.eos_token_id = None  # every answer has its whole length
    tokenizer: Any = transformers.AutoTokenizer.from_pretrained(checkpoint)
    print(json.dumps({"ready": True}), file=answers, flush=True)
    for line in sys.stdin:
        task = json.loads(line)
        clock = _Clock()
        with torch.inference_mode():
            inputs = tokenizer(task["text"], return_tensors="pt")
            model.generate(**inputs, max_new_tokens=task["max_tokens"], do_sample=False, streamer=clock)
        print(json.dumps({"arrivals": clock.times}), file=answers, flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
