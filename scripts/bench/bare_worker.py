"""The bare engine as a process: openvino_genai.ContinuousBatchingPipeline driven directly, no socket, text or Triton.

`python -m bench.bare_worker SPEC_JSON` loads the engine with exactly the settings that the served model uses, says one
line when it is ready, and then answers one JSON line on standard output for each JSON line on standard input:

    {"mode": "pipeline", "prompts": [[1, 2], ...], "concurrency": 8, "max_tokens": 64}
    {"requests": [{"sent": s, "arrivals": [[s, tokens], ...], "token_ids": [...]}, ...], "cpu_s": s}

Mode "pipeline" is the bare pipeline; mode "engine" goes through the backend's engine class, which tells what that
costs. Times are seconds of `time.perf_counter`. End of standard input ends the process.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "python_backend"))

import numpy as np
import openvino
import openvino_genai

from inflight.engines.base import EngineRequest, SamplingParams
from inflight.engines.factory import create_engine
from inflight.engines.openvino.engine import OpenVinoEngine
from inflight.engines.spec import WorkerSpec

Answers = list[dict[str, Any]]


class Run:
    """A closed loop: `concurrency` requests in flight until every prompt has been answered."""

    def __init__(self, prompts: list[list[int]], concurrency: int) -> None:
        """Nothing is sent yet."""
        self.prompts = prompts
        self.answers: Answers = []
        self.open = 0
        self._concurrency = concurrency

    def fill(self, send: Callable[[int, list[int]], None]) -> None:
        """Send what fits. `send(index, prompt)`."""
        while self.open < self._concurrency and len(self.answers) < len(self.prompts):
            index = len(self.answers)
            self.answers.append({"sent": time.perf_counter(), "arrivals": [], "token_ids": []})
            self.open += 1
            send(index, self.prompts[index])

    def got(self, index: int, token_ids: list[int], ended: bool) -> None:
        """Note new tokens of a request."""
        answer = self.answers[index]
        if token_ids:
            answer["arrivals"].append([time.perf_counter(), len(token_ids)])
            answer["token_ids"] += token_ids
        self.open -= ended


def run_pipeline(pipeline: Any, prompts: list[list[int]], concurrency: int, max_tokens: int) -> Answers:
    """Greedy, exactly `max_tokens` each, on the bare pipeline."""
    config = openvino_genai.GenerationConfig()
    config.max_new_tokens = max_tokens
    config.ignore_eos = True
    run = Run(prompts, concurrency)
    handles: dict[int, Any] = {}

    def send(index: int, prompt: list[int]) -> None:
        tensor = openvino.Tensor(np.array([prompt], dtype=np.int64))
        handles[index] = pipeline.add_request(index, tensor, config)

    run.fill(send)
    while handles:
        pipeline.step()
        for index, handle in list(handles.items()):
            token_ids: list[int] = []
            ended = False
            while handle.can_read():
                for generated in handle.read().values():
                    token_ids += generated.generated_ids
                    ended = generated.finish_reason != openvino_genai.GenerationFinishReason.NONE
            if ended:
                del handles[index]
            run.got(index, token_ids, ended)
        run.fill(send)
    return run.answers


def run_engine(engine: OpenVinoEngine, prompts: list[list[int]], concurrency: int, max_tokens: int) -> Answers:
    """The same through the backend's engine class."""
    run = Run(prompts, concurrency)

    def send(index: int, prompt: list[int]) -> None:
        engine.add(EngineRequest(request_id=index, token_ids=prompt, sampling=SamplingParams(max_tokens=max_tokens)))

    run.fill(send)
    while run.open:
        for output in engine.step(0.005):
            run.got(output.request_id, output.token_ids, output.finish is not None)
        run.fill(send)
    return run.answers


def main(spec_text: str) -> None:
    """Serve until standard input ends."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever a library prints goes to standard error
    engine = create_engine(WorkerSpec.from_json(json.loads(spec_text)))
    if not isinstance(engine, OpenVinoEngine):
        raise SystemExit("error: only the openvino engine has a bare pipeline to compare with.")
    print(json.dumps({"ready": True, "blocks": engine.info.blocks_total}), file=answers, flush=True)
    for line in sys.stdin:
        task = json.loads(line)
        mode = task.pop("mode")
        before = time.process_time()
        requests = run_pipeline(engine._pipeline, **task) if mode == "pipeline" else run_engine(engine, **task)
        print(json.dumps({"requests": requests, "cpu_s": time.process_time() - before}), file=answers, flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
