"""What a model is at this moment: what is under way, and how that is told to balancers, operators and the metrics."""

from __future__ import annotations

import datetime
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from inflight import __version__
from inflight.backend.listeners import Listener
from inflight.engine_process.supervisor import Health, Supervisor
from inflight.engines.base import EngineInfo
from inflight.errors import RequestError, unavailable
from inflight.model.parameters import ModelConfig
from inflight.serving.arrival import Arrival
from inflight.serving.delivery import LiveStream
from inflight.serving.dispatcher import Dispatcher
from inflight.serving.drain import Drain, Phase, Readiness, judge
from inflight.serving.observation import EngineLives, Snapshot
from inflight.serving.parsing import ParsePool


class State:
    """Of one model. Any thread may ask; nothing here blocks.

    `leaving` is why nothing is served ever again, "" while that may be; `info` is the engine's, once there was one.
    """

    def __init__(
        self,
        config: ModelConfig,
        engine: str,
        built_from: tuple[str, str],
        *,
        pool: ParsePool,
        arrivals: set[Arrival],
        tokens_of: Callable[[int], int],
        live: Mapping[int, LiveStream],
        dispatcher: Dispatcher,
        supervisor: Supervisor,
        drain: Drain,
        lives: EngineLives,
        listeners: Sequence[Listener],
    ) -> None:
        """`engine` is its name until it has said its own; `built_from` is the source and the recipe of its directory;
        `tokens_of` says about how many tokens a prompt of so many bytes has.
        """
        self._config = config
        self._engine = engine
        self._built_from = built_from
        self._pool = pool
        self._arrivals = arrivals
        self._tokens_of = tokens_of
        self._live = live
        self._dispatcher = dispatcher
        self._supervisor = supervisor
        self._drain = drain
        self._lives = lives
        self._listeners = listeners
        self._lock = threading.Lock()
        self.under_way = 0  # requests that were taken and have no end
        self.info: EngineInfo | None = None
        self.leaving = ""

    def take(self) -> None:
        """One more is under way."""
        with self._lock:
            self.under_way += 1

    def forget(self) -> None:
        """One has had its end."""
        with self._lock:
            self.under_way -= 1

    # -- what comes next ---------------------------------------------------------------------------------------------

    def refusal(self, held: int) -> RequestError | None:
        """Why a request of so many bytes is turned away; None: it is not."""
        if self.leaving or self._drain.refuses(time.monotonic()):
            return unavailable("the server is draining; send the request to another server")
        if self._supervisor.health is not Health.READY:
            if self._supervisor.health is Health.FAILED:
                return unavailable(self._supervisor.given_up)
            if not self._config.restart_hold_ms:
                return unavailable("the engine is restarting; try again in a few seconds")
        full = self.full(self._tokens_of(held))
        if full is not None:
            return unavailable(f"{full}; try again in a moment")
        return self._pool.refusal(held)

    def full(self, tokens: int) -> str | None:
        """Why the queue does not take another prompt of so many tokens."""
        if self.info is None:
            return None
        if self.under_way >= self._config.max_queue_size + self.info.max_running:
            return f"the queue is full ({self.under_way} requests are under way)"
        most, waiting = self._config.max_queue_tokens, self._dispatcher.waiting_tokens + self._pool.waiting_tokens
        if most and waiting and waiting + tokens > most:
            return f"the queue is full ({waiting} prompt tokens wait)"
        return None

    def readiness(self) -> Readiness:
        """Whether a balancer should send requests here, and why not. O(1), takes no lock."""
        now, supervisor = time.monotonic(), self._supervisor
        engine = Health.STOPPED if self.leaving else supervisor.health
        reason = self.leaving or supervisor.reason
        drain = self._drain
        return judge(engine.value, reason, drain.phase(now), drain.notice_left(now), self.full(1))

    # -- for operators -----------------------------------------------------------------------------------------------

    def snapshot(self) -> Snapshot:
        """The numbers of this moment, for the metrics."""
        dispatcher, supervisor = self._dispatcher, self._supervisor
        streams = [live.stream for live in list(self._live.values()) if live.counted]
        return Snapshot(
            info=self.info,
            stats=self._lives.stats(),
            up=supervisor.health is Health.READY,
            draining=self._drain.phase(time.monotonic()) is not Phase.SERVING
            and supervisor.health is not Health.STOPPED,
            restarts=supervisor.restarts,
            losses={loss.value: at for loss, at in supervisor.last_losses.items()},
            limits=self._limits(),
            build=self._build(),
            waiting=dispatcher.waiting + self._pool.waiting,
            oldest_waiting_s=self._oldest_waiting_s(),
            running=dispatcher.running,
            blocks_reserved=dispatcher.blocks_reserved,
            live_tokens=sum(stream.output_tokens for stream in streams),
        )

    def _oldest_waiting_s(self) -> float:
        """The age of the oldest request that is not in the engine yet."""
        timings = [live.stream.timing for live in list(self._live.values())]
        since = [arrival.arrival_ns for arrival in self._arrivals.copy()]
        since += [timing.arrival_ns for timing in timings if not timing.scheduled_ns]
        now_ns = time.monotonic_ns()
        return max(0, now_ns - min(since, default=now_ns)) / 1e9

    def _limits(self) -> dict[str, int]:
        """What is taken at most, for `inflight_limit`."""
        config, info = self._config, self.info
        places = 0 if info is None else min(config.max_running or info.max_running, info.max_running)
        return {
            "running": places,
            "queue_requests": config.max_queue_size,
            "queue_tokens": config.max_queue_tokens,
            "context_tokens": 0 if info is None else info.max_seq_len,
        }

    def _build(self) -> tuple[str, ...] | None:
        """What serves, for `inflight_build_info`."""
        info = self.info
        if info is None or self._supervisor.health is Health.STOPPED:
            return None
        return __version__, info.name, info.version, *self._built_from

    def health(self) -> dict[str, Any]:
        """What a health check needs, made in microseconds: several are made each second."""
        info, readiness = self.info, self.readiness()
        return {
            "ready": readiness.ready,
            "health": readiness.state,
            "reason": readiness.reason,
            "phase": readiness.phase.value,
            "under_way": self.under_way,
            "limit": self._config.max_queue_size + (info.max_running if info is not None else 0),
        }

    def status(self) -> dict[str, Any]:
        """For operators: what the model is doing, and what its engine is and can do."""
        info, readiness = self.info, self.readiness()
        return {
            "engine": self._engine if info is None else f"{info.name} {info.version}",
            "capabilities": [] if info is None else sorted(capability.value for capability in info.capabilities),
            "ready": readiness.ready,
            "health": readiness.state,
            "reason": readiness.reason,
            "draining": readiness.phase is not Phase.SERVING,
            "phase": readiness.phase.value,
            "running": self._dispatcher.running,
            "waiting": self._dispatcher.waiting + self._pool.waiting,
            "under_way": self.under_way,
            "blocks_reserved": self._dispatcher.blocks_reserved,
            "oldest_waiting_s": round(self._oldest_waiting_s(), 3),
            "limits": self._limits(),
            "engine_pid": self._supervisor.engine_pid,
            "restarts": self._supervisor.restarts,
            "last_restarts": {loss.value: _when(at) for loss, at in self._supervisor.last_losses.items() if at},
            "release": __version__,
            "source": self._built_from[0],
            "quantization": self._built_from[1],
            "price_per_hour": self._config.price_per_hour,
            **{key: value for listener in self._listeners for key, value in listener.state().items()},
        }


def _when(at: float) -> str:
    """Unix time for a person."""
    return datetime.datetime.fromtimestamp(at, datetime.timezone.utc).isoformat(timespec="seconds")
