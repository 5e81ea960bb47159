"""The two sides of a comparison, each in processes of its own that are stopped (SIGSTOP) while the other side runs."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from inflight.engines.openvino.pages import large_pages
from inflight_tools.clients.grpc import Connection
from inflight_tools.common.layout import REPOSITORY
from inflight_tools.common.report import Failure
from inflight_tools.load.perf_analyzer import Inputs, Load, measure
from inflight_tools.load.profile_export import Request
from inflight_tools.server.children import start_child
from inflight_tools.server.processes import command_line
from inflight_tools.server.server import Server

_LOAD_TIMEOUT_S = 120.0
_RUN_TIMEOUT_S = 600.0
_WARM_TOKENS = 4
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Prompt:
    """One prompt as text and as the token ids that the served model makes of it."""

    text: str
    token_ids: list[int]


@dataclass(frozen=True, slots=True)
class Measured:
    """One run: its requests, their tokens where the arm tells them, and CPU seconds by the part that used them."""

    requests: list[Request]
    token_ids: list[list[int]]
    cpu_s: Mapping[str, float]

    @property
    def tokens(self) -> int:
        """Tokens of all requests."""
        return sum(request.tokens for request in self.requests)

    @property
    def tokens_per_s(self) -> float:
        """Tokens over the time from the first request sent to the last response."""
        begin = min(request.sent for request in self.requests)
        return self.tokens / ((max(request.ended for request in self.requests) - begin) / 1e9)

    @property
    def ttfts_ms(self) -> list[float]:
        """Times to first token."""
        return [request.ttft / 1e6 for request in self.requests if request.ttft is not None]


class Arm(Protocol):
    """One side. `resume` and `pause` frame every run."""

    name: str
    shares_cache: bool  # its process has answered the other arms' prompts too

    def resume(self) -> None:
        """Let its processes run."""

    def pause(self) -> None:
        """Stop them; nothing of this side uses the CPU from here on."""

    def warm(self, prompt: Prompt) -> None:
        """One small request, after which nothing of this side is cold."""

    def run(self, prompts: Sequence[Prompt], concurrency: int, max_tokens: int) -> Measured:
        """Greedy answers of exactly `max_tokens` tokens, `concurrency` at a time, until every prompt is answered."""


class ServedArm:
    """Through tritonserver and gRPC streaming, with perf_analyzer as the client."""

    def __init__(self, server: Server, connection: Connection, perf_analyzer: Path, model: str) -> None:
        """`server` is ready and `connection` leads to it."""
        self.name = "triton"
        self.shares_cache = False
        self._connection = connection
        self._batched = connection.is_batched(model, "auto")
        self._server = server
        self._perf_analyzer = perf_analyzer
        self._model = model
        self._pids = sorted(server.processes(), key=start_order)

    def resume(self) -> None:
        """Engine first, server last, so that nobody waits for somebody who is still stopped."""
        for pid in reversed(self._pids):
            os.kill(pid, signal.SIGCONT)

    def pause(self) -> None:
        """Server first."""
        for pid in self._pids:
            os.kill(pid, signal.SIGSTOP)

    def warm(self, prompt: Prompt) -> None:
        """See `Arm`."""
        self.tokens_of(prompt, _WARM_TOKENS)

    def tokens_of(self, prompt: Prompt, max_tokens: int) -> list[int]:
        """The greedy tokens of one prompt, sent alone."""
        inputs = {**_request_inputs(prompt, max_tokens), "return_token_ids": True}
        responses = self._connection.stream(self._model, inputs, self._batched)
        return [token for response in responses for token in response.outputs["output_ids"]]

    def run(self, prompts: Sequence[Prompt], concurrency: int, max_tokens: int) -> Measured:
        """See `Arm`; sends texts, so that tokenizing is part of what is measured."""
        inputs: list[Inputs] = [
            {name: [value] for name, value in _request_inputs(prompt, max_tokens).items()} for prompt in prompts
        ]
        before, client_before = self._cpu(), _children_cpu()
        load = Load(concurrency=concurrency)
        requests = measure(self._perf_analyzer, self._server.grpc_url, self._model, load, inputs, _RUN_TIMEOUT_S)
        cpu = {name: seconds - before[name] for name, seconds in self._cpu().items()}
        return Measured(requests, [], {**cpu, "client": _children_cpu() - client_before})

    def _cpu(self) -> dict[str, float]:
        roles = {"stub": self._server.stub_pids(), "engine": self._server.engine_pids(), "server": [self._server.pid]}
        return {role: sum(cpu_seconds(pid) for pid in pids) for role, pids in roles.items()}


class BareArm:
    """The bare pipeline (or, for diagnosis, the backend's engine class) in a worker process."""

    def __init__(self, worker: BareWorker, mode: str = "pipeline") -> None:
        """`mode`: see `bench.bare_worker`. Several arms may share a worker."""
        self.name = "bare" if mode == "pipeline" else mode
        self.shares_cache = mode != "pipeline"
        self._worker = worker
        self._mode = mode

    def resume(self) -> None:
        """See `Arm`."""
        self._worker.send_signal(signal.SIGCONT)

    def pause(self) -> None:
        """See `Arm`."""
        self._worker.send_signal(signal.SIGSTOP)

    def warm(self, prompt: Prompt) -> None:
        """See `Arm`."""
        self.run([prompt], 1, _WARM_TOKENS)

    def run(self, prompts: Sequence[Prompt], concurrency: int, max_tokens: int) -> Measured:
        """See `Arm`; starts from token ids."""
        answer = self._worker.ask(
            {
                "mode": self._mode,
                "prompts": [prompt.token_ids for prompt in prompts],
                "concurrency": concurrency,
                "max_tokens": max_tokens,
            }
        )
        requests = [_request(each) for each in answer["requests"]]
        return Measured(requests, [each["token_ids"] for each in answer["requests"]], {"engine": answer["cpu_s"]})


class BareWorker:
    """The process of `bench.bare_worker`. As a context manager it starts and ends."""

    def __init__(self, spec: Mapping[str, Any]) -> None:
        """`spec`: what to load, the fields of `inflight.engines.factory.WorkerSpec`."""
        self._spec = spec
        self._process: subprocess.Popen[str] | None = None
        self.blocks = 0  # of the KV pool, once started

    def __enter__(self) -> BareWorker:
        """Load the engine. Raises `Failure`."""
        scripts = str(REPOSITORY / "scripts")
        self._process = start_child(
            lambda bind: subprocess.Popen(
                [sys.executable, "-m", "bench.bare_worker", json.dumps(self._spec)],
                env={**os.environ, **large_pages(os.environ), "PYTHONPATH": scripts},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                encoding="utf-8",
                errors="replace",
                # A session of its own: the kernel wakes stopped members of a group whose shell has gone.
                start_new_session=True,
                preexec_fn=bind,
            )
        )
        try:
            self.blocks = int(self._answer(_LOAD_TIMEOUT_S)["blocks"])
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_error: object) -> None:
        """End it."""
        process = self._started()
        if process.poll() is None:
            self.send_signal(signal.SIGCONT)
            process.kill()
        process.wait(timeout=10)

    def send_signal(self, number: int) -> None:
        """To the process."""
        os.kill(self._started().pid, number)

    def ask(self, task: Mapping[str, Any]) -> dict[str, Any]:
        """One task, one answer."""
        stdin = self._started().stdin
        assert stdin is not None
        stdin.write(json.dumps(task) + "\n")
        stdin.flush()
        return self._answer(_RUN_TIMEOUT_S)

    def _answer(self, timeout_s: float) -> dict[str, Any]:
        stdout = self._started().stdout
        assert stdout is not None
        ready, _, _ = select.select([stdout], [], [], timeout_s)  # one line per task: nothing is buffered beyond it
        line = stdout.readline() if ready else ""
        if not line:
            reason = "ended (its output above says why)" if ready else f"gave no answer for {timeout_s:g} s"
            raise Failure(f"the bare engine's process {reason}: run the benchmark again.")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _started(self) -> subprocess.Popen[str]:
        if self._process is None:
            raise RuntimeError("the bare engine's process has not been started")
        return self._process


def _request_inputs(prompt: Prompt, max_tokens: int) -> dict[str, str | int | float | bool]:
    return {
        "text_input": prompt.text,
        "stream": True,
        "max_tokens": max_tokens,
        "temperature": 0.0,
        "ignore_eos": True,
        "return_num_output_tokens": True,
    }


def _request(answer: Mapping[str, Any]) -> Request:
    arrivals = tuple((int(at * 1e9), int(tokens)) for at, tokens in answer["arrivals"])
    return Request(int(answer["sent"] * 1e9), arrivals, arrivals[-1][0], 0)


def start_order(pid: int) -> int:
    """tritonserver, then the stub, then engine processes."""
    arguments = command_line(pid)
    if "inflight.engine_worker" in arguments:
        return 2
    return 1 if arguments and Path(arguments[0]).name == "triton_python_backend_stub" else 0


def cpu_seconds(pid: int) -> float:
    """User and system time of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS_PER_S


def _children_cpu() -> float:
    """CPU time of our children that have ended and been waited for."""
    times = os.times()
    return times.children_user + times.children_system
