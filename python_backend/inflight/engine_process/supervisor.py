"""Keeps one engine process alive: starts it, watches it, and starts it again when it dies or stalls.

Thread `inflight-supervisor` lives as long as the model; it alone spawns engines, because the kernel's death signal to
the child fires when the thread that spawned it ends. The first engine may load while its observer is still being made
(`launch`); it comes into service in `start`.
"""

from __future__ import annotations

import contextlib
import enum
import logging
import math
import os
import threading
import time
from collections.abc import Callable
from typing import Protocol

from inflight.engine_process import frames
from inflight.engine_process.cpu_wait import cpu_waits
from inflight.engine_process.launch import EngineProcess
from inflight.engine_process.link import EngineLink, LinkHandler, LinkLost
from inflight.engine_process.watchdog import WATCH_INTERVAL_S, Watchdog, beat_of, patience_with, watch_interval_s
from inflight.engines.base import EngineInfo
from inflight.engines.run_folder import sweep_run_folders
from inflight.engines.spec import WorkerSpec
from inflight.errors import LoadError

log = logging.getLogger("inflight.supervisor")

BACK_OFF_S = (0.1, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
HEALTHY_AFTER_S = 600.0  # a life this long wipes the slate of restarts
SHUTDOWN_GRACE_S = 3.0
GIVEN_UP = "the engine has failed and is not started again; unload and load the model, or restart the server"


class Health(enum.Enum):
    """What the model can promise now."""

    STARTING = "starting"
    READY = "ready"
    RESTARTING = "restarting"
    FAILED = "failed"
    STOPPED = "stopped"


class Loss(enum.Enum):
    """Why an engine was given up."""

    LOST = "lost"  # it ended, or cannot be reached
    STALLED = "stalled"
    LOAD_FAILED = "load_failed"


class _Replaced(Exception):
    """The engine directory holds another engine than the model was loaded with; the message is for clients."""


class Observer(LinkHandler, Protocol):
    """Who hears of engines that come and go. Called on the supervisor's thread."""

    def on_engine_up(self, link: EngineLink, info: EngineInfo) -> None:
        """An engine is ready for requests."""

    def on_engine_down(self, reason: str) -> None:
        """The engine is gone; whatever it was doing is lost."""

    def on_engine_failed(self) -> None:
        """No engine is started any more, after one was there."""


class Supervisor:
    """See the module's text."""

    def __init__(
        self,
        spec: WorkerSpec,
        *,
        load_timeout_s: float,
        stall_timeout_s: float,
        max_restarts: int,
        changed: Callable[[], str] = lambda: "",
    ) -> None:
        """`changed` says why what lies in the engine directory is not what the model was loaded with; empty: it is."""
        self._spec = spec
        self._load_timeout = load_timeout_s
        self._stall_timeout = stall_timeout_s
        self._max_restarts = max_restarts
        self._changed = changed
        self._stop = threading.Event()
        self._first = threading.Event()
        self.loaded = threading.Event()  # the first engine could take requests
        self._observed = threading.Event()
        self._observer: Observer  # there once `_observed` is set
        self._parent = os.getppid()
        self._error: LoadError | None = None
        self.health = Health.STARTING
        self.reason = "the engine is starting"
        self.given_up = GIVEN_UP  # what clients are told once `health` is FAILED
        self.restarts = 0
        self.last_losses = dict.fromkeys(Loss, 0.0)  # Unix time of the last one of each kind; 0: never
        self.engine_pid = 0
        self._ready_at = math.inf  # when this life's engine was ready
        self._thread = threading.Thread(target=self._run, name="inflight-supervisor", daemon=True)

    def launch(self) -> None:
        """Let the first engine load from now on; nobody hears of it before `start`. `stop` ends it."""
        self._thread.start()

    def start(self, observer: Observer) -> None:
        """Bring the first engine into service, launched or not, and wait until it is ready. Raises `LoadError` when its
        load fails.
        """
        self._observer = observer
        self._observed.set()
        if self._thread.ident is None:
            self.launch()
        self._first.wait(self._load_timeout + 30.0)
        if self._error is not None:
            raise self._error
        if self.health is not Health.READY:
            self._stop.set()
            raise LoadError("the engine did not load in the time allowed; raise the model parameter load_timeout_s.")

    def stop(self) -> None:
        """End the engine and the thread."""
        self._stop.set()
        if self._thread.ident is not None:
            self._thread.join(SHUTDOWN_GRACE_S + 15.0)

    def _run(self) -> None:
        failures = 0
        sweep_run_folders()
        while not self._stop.is_set():
            self._ready_at = math.inf
            loss = Loss.LOAD_FAILED
            try:
                loss, reason = self._one_life()
            except LoadError as error:
                reason = str(error)
                if not self._first.is_set():
                    self._error = error
                    self.health, self.reason = Health.FAILED, reason
                    break
            except _Replaced as error:
                self.given_up = str(error)
                self._error = LoadError(f"{error}.")  # where it is the first
                self.health, self.reason = Health.FAILED, self.given_up
                log.error("the engine is not started: %s", self.reason)
                break
            except Exception:
                log.exception("the supervisor failed to run the engine")
                reason = "the engine could not be started"
                if not self._first.is_set():
                    self._error = LoadError("the engine process could not be started; the log has the reason.")
                    break
            if self._stop.is_set():
                break
            self.last_losses[loss] = time.time()
            healthy = time.monotonic() - self._ready_at > HEALTHY_AFTER_S
            failures = 1 if healthy else failures + 1
            if failures > self._max_restarts:
                self.health, self.reason = Health.FAILED, f"{reason}, and it was restarted {self._max_restarts} times"
                log.error("giving up: %s; unload and load the model, or restart the server", self.reason)
                break
            self.health, self.reason = Health.RESTARTING, reason
            wait = BACK_OFF_S[min(failures, len(BACK_OFF_S)) - 1]
            log.warning("%s; restart %d of %d in %.1f s", reason, failures, self._max_restarts, wait)
            self._stop.wait(wait)
            self.restarts += 1
        if self.health is Health.FAILED and self._first.is_set():
            self._observer.on_engine_failed()
        self._first.set()
        if self._stop.is_set():
            self.health = Health.STOPPED

    def _one_life(self) -> tuple[Loss, str]:
        """Run one engine process to its end; the reason why it ended."""
        self._check_unchanged()
        process = EngineProcess(self._spec)
        link: EngineLink | None = None
        grace = 0.0
        try:
            info = process.start(self._load_timeout, lambda: self._given_up(process))
            self._check_unchanged()  # else it may have loaded the one or the other
            self._wait_for_observer(process)
            assert process.connection is not None
            link = EngineLink(process.connection, process.buffer, self._observer)
            link.start()
            self.engine_pid = process.pid
            self._ready_at = time.monotonic()
            self._observer.on_engine_up(link, info)
            self.health, self.reason = Health.READY, ""
            log.info("engine %s %s is ready (process %d)", info.name, info.version, process.pid)
            self._first.set()
            ended = self._watch(process, link, info.longest_step_s)
            if self._stop.is_set():
                grace = SHUTDOWN_GRACE_S
                self._ask_to_leave(link)
            return ended
        finally:
            if link is not None:
                if not self._stop.is_set():
                    link.close()  # nothing more can come from it: what it has not said by now it never said
                if self.health is Health.READY:
                    self.health, self.reason = Health.RESTARTING, "the engine was lost"
                self._observer.on_engine_down("the engine was lost")
            process.kill(grace)
            if link is not None:
                link.close()

    def _wait_for_observer(self, process: EngineProcess) -> None:
        """Until `start` has brought one; it is there from the second life on. Raises `LoadError`."""
        self.loaded.set()
        while not self._observed.wait(WATCH_INTERVAL_S):
            if process.exit_code() is not None or self._given_up(process):
                raise LoadError("the engine process ended before the model was ready for it; its log says why.")

    def _check_unchanged(self) -> None:
        changed = self._changed()
        if changed:
            raise _Replaced(changed)

    def _watch(self, process: EngineProcess, link: EngineLink, longest_step_s: float) -> tuple[Loss, str]:
        watchdog = Watchdog(self._stall_timeout, watch_interval_s(self._stall_timeout), time.monotonic())
        while not self._stop.is_set():
            if link.lost.wait(watchdog.interval_s):
                return Loss.LOST, f"the engine process {process.pid} was lost"
            if process.exit_code() is not None:
                return Loss.LOST, f"the engine process {process.pid} ended with exit code {process.exit_code()}"
            self._leave_if_orphaned(process)
            state, beat_ns = process.page.read()
            now = time.monotonic()
            beat = beat_of(state, beat_ns / 1e9, link.waiting_since, now)
            if beat is None:
                continue
            waits = cpu_waits(process.pid) if watchdog.wants_waits(now, beat) else None
            patience = patience_with(state, longest_step_s / self._stall_timeout)
            if watchdog.tick(now, beat, patience, waits):
                seconds = patience * self._stall_timeout
                stalled = f"the engine process {process.pid} stalled (no progress for {seconds:.3g} s)"
                return Loss.STALLED, stalled
        return Loss.LOST, "the server is stopping"

    def _given_up(self, process: EngineProcess) -> bool:
        """Whether nobody wants the engine any more, asked while it loads."""
        self._leave_if_orphaned(process)
        return self._stop.is_set()

    def _leave_if_orphaned(self, process: EngineProcess) -> None:
        """Leave at once, engine and all, when tritonserver is gone.

        Its stub would end by itself but for threads that wait in a call into the server which nobody will ever answer.
        """
        if os.getppid() != self._parent:
            process.kill()
            os._exit(1)

    @staticmethod
    def _ask_to_leave(link: EngineLink) -> None:
        with contextlib.suppress(LinkLost):
            link.send(frames.Shutdown())
