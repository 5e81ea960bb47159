"""How a request travels: the wiring of one model, without a word of Triton.

model.py ─submit▶ parse pool ─▶ dispatcher ─▶ engine process
client  ◀─send── delivery ◀─── reader thread ◀──────┘
"""

from __future__ import annotations

import dataclasses
import datetime
import functools
import logging
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from inflight import __version__
from inflight.backend.about import about
from inflight.backend.forms import model_forms
from inflight.backend.listeners import listeners
from inflight.backend.reader import Reader
from inflight.backend.served import ServedEngine
from inflight.engine_process import frames
from inflight.engine_process.link import EngineLink
from inflight.engine_process.supervisor import Health, Supervisor
from inflight.engines.base import EngineInfo
from inflight.engines.factory import resolve_engine
from inflight.engines.python import ask, choose_python, python_executable
from inflight.engines.spec import WorkerSpec
from inflight.errors import ErrorCode, LoadError, RequestError, quoted, sendable, unavailable
from inflight.guides.service import GuideLimits, GuideService
from inflight.identity import Identity
from inflight.manifest import ManifestError
from inflight.manifest import read as read_manifest
from inflight.model.files import is_folder, path_of, text_of
from inflight.model.parameters import ModelConfig
from inflight.request.defaults import read_generation_defaults
from inflight.request.parse import RawRequest, early_deadline_ms
from inflight.request.prompt import PromptBuilder
from inflight.request.template_files import load_chat_templates
from inflight.request.tokenizer import TextTokenizer
from inflight.serving.admission import AdmissionQueue
from inflight.serving.arrival import Arrival
from inflight.serving.cancellation import CancellationPoller
from inflight.serving.delivery import Delivery, LiveStream, Responder
from inflight.serving.dispatcher import Dispatcher
from inflight.serving.drain import Drain, Phase, Readiness, judge
from inflight.serving.metrics import Flusher, Metrics, Sink
from inflight.serving.observation import EngineLives, Observation, Snapshot
from inflight.serving.parsing import ParsePool

log = logging.getLogger("inflight.backend")

LEAST_ITEMS = 4096  # values that any tensor may have, however short the context
JOIN_S = 5.0
LEFTOVER_S = 2.0
ARRIVING_S = 0.05  # a request that was taken just before it would have been refused is counted by then


class Backend:
    """One loaded model. `submit` may be called from any thread; everything else from Triton's."""

    def __init__(
        self, config: ModelConfig, version_folder: Path, warmup_requests: int = 0, name: str = "model"
    ) -> None:
        """Read what can be read without the engine; raises `LoadError`.

        `warmup_requests` is how many requests Triton itself sends before it opens the model to clients; `name` is the
        model's.
        """
        self._config = config
        folder = version_folder / path_of(config.engine_dir)
        if not is_folder(folder):
            raise LoadError(
                f"there is no engine directory {quoted(config.engine_dir)} in the model's version folder; build one "
                "with python -m build_engine build MODEL --target openvino --quantization int8 --output DIR."
            )
        folder = folder.resolve()
        self._served = ServedEngine(folder)
        python = choose_python(version_folder, config.engine_python)
        self._engine = resolve_engine(
            config.engine, folder, lambda names: ask(python or python_executable(), names).packages
        )
        tokenizer = TextTokenizer(folder)
        override = version_folder / path_of(config.chat_template) if config.chat_template else None
        templates = load_chat_templates(folder, override, tokenizer.special_tokens)
        forms = model_forms(
            config,
            templates.for_tools if templates is not None else "",
            templates is not None and templates.show_tools,
            tokenizer.special_ids,
        )
        builder = PromptBuilder(tokenizer, templates, config.max_prompt_bytes, config.special_tokens_in_messages)
        defaults = read_generation_defaults(folder)
        self._about = functools.partial(about, config, forms, templates, defaults)
        self._built_from = _built_from(folder)
        self._info: EngineInfo | None = None
        self._live: dict[int, LiveStream] = {}
        self._accepted = 0
        self._accepted_lock = threading.Lock()
        self._drain = Drain()
        self._undo_lock = threading.Lock()  # what a drain ends is ended before anybody takes the drain back
        self._leaving = ""  # why nothing is served ever again
        self._lives = EngineLives()
        metrics = Metrics()
        self._observation = Observation(metrics, self._snapshot, config.price_per_hour)
        self._listeners = listeners(name, os.environ)
        self._observation.listeners = self._listeners
        self._flusher = Flusher(self._observation.flush, config.metrics_interval_ms / 1000)
        self._warmups_left = warmup_requests
        self._pool = ParsePool()
        # What the engine compiles inside a step must not look like a stall to the watchdog.
        limits = GuideLimits(most_compile_s=config.stall_timeout_ms / 2000)
        self._guides = GuideService(self._engine, text_of(folder), limits, python, self._served.change)
        self._delivery = Delivery(config.sender_threads, metrics, self._live)
        self._dispatcher = Dispatcher(self._delivery, self._make_queue, config.restart_hold_ms / 1000)
        self._reader = Reader(
            config,
            tokenizer,
            builder,
            forms,
            defaults,
            self._pool,
            self._guides,
            self._dispatcher,
            self._delivery,
            self._live,
            self._forget,
            self._closed,
        )
        self._poller = CancellationPoller(self._open_requests, self._poll_cancelled)
        self._supervisor = Supervisor(
            WorkerSpec(self._engine, text_of(folder), dict(config.engine_options), config.max_running, python),
            self,
            load_timeout_s=config.load_timeout_s,
            stall_timeout_s=config.stall_timeout_ms / 1000,
            max_restarts=config.max_restarts,
            changed=self._served.change,
        )

    # -- life --------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start the engine and the threads; raises `LoadError` with a sentence for the operator."""
        self._delivery.start()
        self._dispatcher.start()
        self._pool.start()
        try:
            self._supervisor.start()
        except LoadError:
            self.stop()
            raise
        self._poller.start()
        self._flusher.start()

    def export_metrics(self, sink: Sink) -> None:
        """Flush metrics into `sink` from now on, and once at once: the first scrape finds every family."""
        self._observation.sink = sink
        self._flusher.now()

    @property
    def most_items(self) -> int:
        """How many values any tensor of a request may have: more than fit, so that parsing can say what does."""
        return max(2 * self._info.max_seq_len if self._info is not None else 0, LEAST_ITEMS)

    def ready(self) -> bool:
        """Whether a balancer should send requests here. O(1), takes no lock."""
        return self.readiness().ready

    def readiness(self) -> Readiness:
        """Whether a balancer should send requests here, and why not. O(1), takes no lock."""
        now, supervisor = time.monotonic(), self._supervisor
        engine = Health.STOPPED if self._leaving else supervisor.health
        reason = self._leaving or supervisor.reason
        drain = self._drain
        return judge(engine.value, reason, drain.phase(now), drain.notice_left(now), self._full(1))

    def stop(self) -> None:
        """End every request that is left, then the engine and all threads."""
        self._leaving = "the model is being unloaded"
        gone = unavailable("the model is being unloaded; send the request to another server")
        self._close(gone)
        self._guides.stop()  # who waits for a guide goes back into the pool
        self._pool.close(gone, JOIN_S)  # what is being read comes out as streams, which end with the rest
        self._wait_for_none(LEFTOVER_S)
        if self._poller.running:
            self._poller.stop(JOIN_S)
        self._supervisor.stop()
        self._dispatcher.stop(JOIN_S)
        self._delivery.stop(JOIN_S)
        self._flusher.stop(JOIN_S)
        self._stop_listeners()
        self._served.close()

    def _close(self, error: RequestError) -> None:
        """End everything, whatever it waits for."""
        self._dispatcher.close(error)
        self._reader.end_all(error)
        self._pool.clear(error)

    # -- requests ----------------------------------------------------------------------------------------------------

    def submit(self, raw: RawRequest, responder: Responder) -> None:
        """Take a request. Whatever happens, `responder` gets exactly one terminal response. Never raises, never
        blocks.
        """
        warmup = self._warmups_left > 0
        if warmup:
            self._warmups_left -= 1
            raw = _warmup(raw)
        refusal = self._refusal(raw)
        if refusal is not None:
            self.refuse(responder, refusal, raw.identity)
            return
        with self._accepted_lock:
            self._accepted += 1
        deadline_ms = early_deadline_ms(raw, self._config)
        arrival = Arrival(raw.identity, responder, self.refuse, time.monotonic_ns(), deadline_ms, warmup)
        self._reader.take(raw, arrival)

    def _refusal(self, raw: RawRequest) -> RequestError | None:
        if self._leaving or self._drain.refuses(time.monotonic()):
            return unavailable("the server is draining; send the request to another server")
        if self._supervisor.health is not Health.READY:
            if self._supervisor.health is Health.FAILED:
                return unavailable(self._supervisor.given_up)
            if not self._config.restart_hold_ms:
                return unavailable("the engine is restarting; try again in a few seconds")
        held = raw.bytes_held
        full = self._full(self._reader.tokens(held))
        if full is not None:
            return unavailable(f"{full}; try again in a moment")
        return self._pool.refusal(held)

    def _full(self, tokens: int) -> str | None:
        """Why the queue does not take another prompt of so many tokens."""
        if self._info is None:
            return None
        if self._accepted >= self._config.max_queue_size + self._info.max_running:
            return f"the queue is full ({self._accepted} requests are under way)"
        most, waiting = self._config.max_queue_tokens, self._dispatcher.waiting_tokens + self._pool.waiting_tokens
        if most and waiting and waiting + tokens > most:
            return f"the queue is full ({waiting} prompt tokens wait)"
        return None

    def _closed(self, live: LiveStream) -> None:
        """A stream has had its terminal response."""
        self._live.pop(live.request_id, None)
        self._forget()
        if live.counted:
            self._observation.stream_ended(live.stream, live.request_id)

    def _forget(self) -> None:
        with self._accepted_lock:
            self._accepted -= 1

    def refuse(
        self, responder: Responder, error: RequestError, identity: Identity, arrival_ns: int | None = None
    ) -> None:
        """Answer a request that never became a stream; it arrived at `arrival_ns` (monotonic), or now. Never raises,
        never blocks.
        """
        now_ns = time.monotonic_ns()
        self._observation.refused(error, identity, now_ns if arrival_ns is None else arrival_ns)
        self._delivery.refusals.answer(responder, error, identity, now_ns)
        if error.code is ErrorCode.INTERNAL:
            log.error("request %s ended with an internal error", identity)

    def _live_streams(self) -> list[LiveStream]:
        return list(self._live.values())

    def _open_requests(self) -> list[LiveStream | Arrival]:
        """Everything without an end."""
        return [*self._reader.arrivals.copy(), *self._live_streams()]

    def _poll_cancelled(self, request: LiveStream | Arrival) -> bool:
        identity = request.identity if isinstance(request, Arrival) else request.stream.identity
        try:
            return request.poll_cancelled() if isinstance(request, Arrival) else self._delivery.poll_cancelled(request)
        except Exception:
            log.exception("request %s: asking whether its client has left failed", identity)
            return False

    # -- what the engine says (`supervisor.Observer`) ------------------------------------------------------------------

    def on_engine_up(self, link: EngineLink, info: EngineInfo) -> None:
        """An engine is ready."""
        self._reader.engine_up(info, self._about(info))
        self._info = info
        self._lives.began()
        self._dispatcher.engine_up(link, info)

    def on_engine_down(self, reason: str) -> None:
        """The engine is gone."""
        self._lives.ended()
        self._dispatcher.engine_down(reason)

    def on_engine_failed(self) -> None:
        """No engine is started any more."""
        self._dispatcher.engine_failed(unavailable(self._supervisor.given_up))

    def on_outputs(self, message: frames.Outputs) -> None:
        """One iteration."""
        self._lives.said(message.stats)
        self._dispatcher.on_outputs(message)
        self._delivery.pace()

    def on_refused(self, message: frames.Refused) -> None:
        """The engine did not take a request."""
        self._dispatcher.on_refused(message)

    # -- for operators -----------------------------------------------------------------------------------------------

    def _snapshot(self) -> Snapshot:
        """The numbers of this moment, for the metrics."""
        dispatcher, supervisor = self._dispatcher, self._supervisor
        streams = [live.stream for live in self._live_streams() if live.counted]
        return Snapshot(
            info=self._info,
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
        timings = [live.stream.timing for live in self._live_streams()]
        since = [arrival.arrival_ns for arrival in self._reader.arrivals.copy()]
        since += [timing.arrival_ns for timing in timings if not timing.scheduled_ns]
        now_ns = time.monotonic_ns()
        return max(0, now_ns - min(since, default=now_ns)) / 1e9

    def _limits(self) -> dict[str, int]:
        """What is taken at most, for `inflight_limit`."""
        config, info = self._config, self._info
        places = 0 if info is None else min(config.max_running or info.max_running, info.max_running)
        return {
            "running": places,
            "queue_requests": config.max_queue_size,
            "queue_tokens": config.max_queue_tokens,
            "context_tokens": 0 if info is None else info.max_seq_len,
        }

    def _build(self) -> tuple[str, ...] | None:
        """What serves, for `inflight_build_info`."""
        info = self._info
        if info is None or self._supervisor.health is Health.STOPPED:
            return None
        return __version__, info.name, info.version, *self._built_from

    def health(self) -> dict[str, Any]:
        """What a health check needs, made in microseconds: several are made each second."""
        info, readiness = self._info, self.readiness()
        return {
            "ready": readiness.ready,
            "health": readiness.state,
            "reason": readiness.reason,
            "phase": readiness.phase.value,
            "under_way": self._accepted,
            "limit": self._config.max_queue_size + (info.max_running if info is not None else 0),
        }

    def status(self) -> dict[str, Any]:
        """For operators: what the model is doing, and what its engine is and can do."""
        info, readiness = self._info, self.readiness()
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
            "under_way": self._accepted,
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

    def drain(self, timeout_ms: int | None = None, notice_ms: int | None = None) -> dict[str, Any]:
        """Say that the model leaves, and serve for `notice_ms`; then take no new work and let streams finish for
        `timeout_ms`; end the rest UNAVAILABLE. None: the model's own. Returns early when the drain is undone.
        """
        limit_ms = self._config.drain_timeout_ms if timeout_ms is None else timeout_ms
        notice_ms = self._config.drain_notice_ms if notice_ms is None else notice_ms
        number = self._drain.order(time.monotonic(), notice_ms / 1000, limit_ms / 1000)
        self._wait(number, lambda now: self._drain.phase(now) is not Phase.NOTICE)
        at_start, settled = self._accepted, time.monotonic() + ARRIVING_S
        self._wait(number, lambda now: not self._drain.time_left(now) or (now >= settled and not self._accepted))
        with self._undo_lock:
            if not self._drain.finish(number):
                return {"drained": False, "reason": "the drain was taken back", "left": self._accepted}
            left = self._accepted
            if left:
                self._close(unavailable("the server is draining; send the request to another server"))
        self._wait_for_none(LEFTOVER_S)
        finished = max(at_start - left, 0)
        return {"drained": True, "finished": finished, "ended": left, "left": self._accepted}

    def undrain(self) -> dict[str, Any]:
        """Take a drain back, however far it is, and serve again."""
        if self._leaving:
            return {"error": f"a drain cannot be taken back any more: {self._leaving}."}
        with self._undo_lock:
            undone = self._drain.undo()
            self._dispatcher.reopen()
        return {"undrained": undone, **self.health()}

    def _wait(self, number: int, over: Callable[[float], bool]) -> None:
        """Until something is over, or this drain, or the model."""
        while self._drain.is_on(number) and not self._leaving and not over(time.monotonic()):
            time.sleep(0.01)

    def retire(self) -> None:
        """After a drain: end the engine in order, whatever becomes of this process (docs/operating.md)."""
        self._leaving = "the engine was ended after a drain"
        self._supervisor.stop()
        self._flusher.stop(JOIN_S)
        self._stop_listeners()  # Triton 24.10 may end this process without another word

    def _stop_listeners(self) -> None:
        for listener in self._listeners:
            listener.stop(LEFTOVER_S)

    def _wait_for_none(self, timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        while self._accepted and time.monotonic() < deadline:
            time.sleep(0.01)

    def _make_queue(self, info: EngineInfo) -> AdmissionQueue:
        config = self._config
        return AdmissionQueue(
            info,
            config.max_running,
            config.max_queue_size,
            config.max_queue_tokens,
            config.batching_strategy,
            config.batching_max_wait_ms / 1000,
        )


def _when(at: float) -> str:
    """Unix time for a person."""
    return datetime.datetime.fromtimestamp(at, datetime.timezone.utc).isoformat(timespec="seconds")


def _built_from(folder: Path) -> tuple[str, str]:
    """(source, quantization recipe) of an engine directory; empty where no manifest says it."""
    try:
        manifest = read_manifest(folder)
    except ManifestError:  # the engine says what is wrong with it, if it needs one
        return "", ""
    return sendable(manifest.source.name), sendable(manifest.quantization.recipe)


def _warmup(raw: RawRequest) -> RawRequest:
    """A warm-up's zero data is an empty prompt and max_tokens 0: warm the engine with a short prompt instead."""
    empty = raw.tensors.get("text_input") in ([b""], [""])
    if not empty:
        return raw
    return dataclasses.replace(raw, tensors={"text_input": ["Hello"], "max_tokens": [2]})
