"""An engine in a process of its own, asked like one in the test's: over the frames that the backend uses."""

from __future__ import annotations

import contextlib
import queue
import time

from inflight.engine_process import frames
from inflight.engine_process.launch import EngineProcess
from inflight.engine_process.link import EngineLink
from inflight.engines.base import EngineInfo, EngineOutput, EngineRefusal, EngineRequest, EngineStats
from inflight.engines.spec import WorkerSpec

LOAD_S = 280.0
LEAVE_S = 10.0


class EngineApart:
    """See `engines.base.Engine`. A refusal comes back with the next `step`, since nothing answers an `add`."""

    info: EngineInfo

    def __init__(self, spec: WorkerSpec) -> None:
        """Start the process and wait until it is ready. Raises `LoadError`."""
        self._process = EngineProcess(spec)
        self._said: queue.SimpleQueue[frames.Outputs | frames.Refused] = queue.SimpleQueue()
        self._stats = EngineStats()
        try:
            self.info = self._process.start(LOAD_S, lambda: False)
        except BaseException:
            self._process.kill()
            raise
        assert self._process.connection is not None
        self._link = EngineLink(self._process.connection, self._process.buffer, self)
        self._link.start()

    def on_outputs(self, message: frames.Outputs) -> None:
        """Called by the link's reader."""
        self._said.put(message)

    def on_refused(self, message: frames.Refused) -> None:
        """Called by the link's reader."""
        self._said.put(message)

    def add(self, request: EngineRequest) -> None:
        self._link.send(frames.Add(request))

    def cancel(self, request_id: int) -> None:
        self._link.send(frames.Cancel(request_id))

    def step(self, timeout_s: float) -> list[EngineOutput]:
        """What the engine has said within `timeout_s`, one iteration of it."""
        assert not self._link.lost.is_set(), "the engine process is gone"
        with contextlib.suppress(queue.Empty):
            message = self._said.get(timeout=timeout_s)
            if isinstance(message, frames.Refused):
                raise EngineRefusal(message.message, message.parameter)
            self._stats = message.stats
            tokens = zip(message.ids, message.tokens, strict=True)
            return [EngineOutput(request_id, 0, [token]) for request_id, token in tokens] + message.outputs
        return []

    def stats(self) -> EngineStats:
        return self._stats

    def close(self) -> None:
        with contextlib.suppress(Exception):
            self._link.send(frames.Shutdown())
        give_up = time.monotonic() + LEAVE_S
        while self._process.exit_code() is None and time.monotonic() < give_up:
            time.sleep(0.05)
        self._link.close()
        self._process.kill()
