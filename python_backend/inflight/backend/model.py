"""How a request travels: the wiring of one model, without a word of Triton.

model.py ─submit▶ parse pool ─▶ dispatcher ─▶ engine process
client  ◀─send── delivery ◀─── reader thread ◀──────┘
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import os
import time
from pathlib import Path
from typing import Any

from inflight.backend.about import about
from inflight.backend.forms import model_forms
from inflight.backend.leaving import LEFTOVER_S, Leaving
from inflight.backend.listeners import listeners
from inflight.backend.reader import Reader
from inflight.backend.served import built_from
from inflight.backend.starting import Starting
from inflight.backend.state import State
from inflight.engine_process import frames
from inflight.engine_process.link import EngineLink
from inflight.engines.base import EngineInfo
from inflight.errors import ErrorCode, LoadError, RequestError, unavailable
from inflight.guides.service import GuideLimits, GuideService
from inflight.identity import Identity
from inflight.model.files import path_of, text_of
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
from inflight.serving.drain import Drain
from inflight.serving.metrics import Flusher, Metrics, Sink
from inflight.serving.observation import EngineLives, Observation
from inflight.serving.parsing import ParsePool

log = logging.getLogger("inflight.backend")

LEAST_ITEMS = 4096  # values that any tensor may have, however short the context
JOIN_S = 5.0


class Backend:
    """One loaded model. `submit` may be called from any thread; everything else from Triton's."""

    def __init__(
        self,
        config: ModelConfig,
        version_folder: Path,
        warmup_requests: int = 0,
        name: str = "model",
        starting: Starting | None = None,
    ) -> None:
        """Read what can be read without the engine; raises `LoadError`.

        `warmup_requests` is how many requests Triton itself sends before it opens the model to clients; `name` is the
        model's; `starting` is its engine where that may load meanwhile: who made it stops it when this raises.
        """
        self._config = config
        engine = starting or Starting(config, version_folder)
        self._served, self._supervisor = engine.served, engine.supervisor
        folder = engine.folder
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
        self._live: dict[int, LiveStream] = {}
        self._lives = EngineLives()
        self._listeners = listeners(name, os.environ)
        metrics = Metrics()
        self._warmups_left = warmup_requests
        self._pool = ParsePool()
        # What the engine compiles inside a step must not look like a stall to the watchdog.
        limits = GuideLimits(most_compile_s=config.stall_timeout_ms / 2000)
        self._guides = GuideService(engine.engine, text_of(folder), limits, engine.python, self._served.change)
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
            self._left,
            self._closed,
        )
        self._poller = CancellationPoller(self._open_requests, self._poll_cancelled)
        drain = Drain()
        self._state = State(
            config,
            engine.engine,
            built_from(folder),
            pool=self._pool,
            arrivals=self._reader.arrivals,
            tokens_of=self._reader.tokens,
            live=self._live,
            dispatcher=self._dispatcher,
            supervisor=self._supervisor,
            drain=drain,
            lives=self._lives,
            listeners=self._listeners,
        )
        self._leaving = Leaving(config, drain, self._state, self._close, self._dispatcher.reopen)
        self._observation = Observation(metrics, self._state.snapshot, config.price_per_hour)
        self._observation.listeners = self._listeners
        self._flusher = Flusher(self._observation.flush, config.metrics_interval_ms / 1000)

    # -- life --------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start the engine and the threads; raises `LoadError` with a sentence for the operator."""
        self._delivery.start()
        self._dispatcher.start()
        self._pool.start()
        try:
            self._supervisor.start(self)
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
        info = self._state.info
        return max(2 * info.max_seq_len if info is not None else 0, LEAST_ITEMS)

    def ready(self) -> bool:
        """Whether a balancer should send requests here. O(1), takes no lock."""
        return self._state.readiness().ready

    def stop(self) -> None:
        """End every request that is left, then the engine and all threads."""
        self._state.leaving = "the model is being unloaded"
        gone = unavailable("the model is being unloaded; send the request to another server")
        self._close(gone)
        self._guides.stop()  # who waits for a guide goes back into the pool
        self._pool.close(gone, JOIN_S)  # what is being read comes out as streams, which end with the rest
        self._leaving.wait_for_none(LEFTOVER_S)
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
        refusal = self._state.refusal(raw.bytes_held)
        if refusal is not None:
            self.refuse(responder, refusal, raw.identity)
            return
        self._state.take()
        deadline_ms = early_deadline_ms(raw, self._config)
        arrival = Arrival(raw.identity, responder, self.refuse, time.monotonic_ns(), deadline_ms, warmup)
        self._reader.take(raw, arrival)

    def _closed(self, live: LiveStream) -> None:
        """A stream has had its terminal response."""
        self._live.pop(live.request_id, None)
        self._left()
        if live.counted:
            self._observation.stream_ended(live.stream, live.request_id)

    def _left(self) -> None:
        self._state.forget()

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
        self._state.info = info
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

    def health(self) -> dict[str, Any]:
        """What a health check needs, made in microseconds: several are made each second."""
        return self._state.health()

    def status(self) -> dict[str, Any]:
        """For operators: what the model is doing, and what its engine is and can do."""
        return self._state.status()

    def drain(self, timeout_ms: int | None = None, notice_ms: int | None = None) -> dict[str, Any]:
        """Leave in phases; see `Leaving`."""
        return self._leaving.drain(timeout_ms, notice_ms)

    def undrain(self) -> dict[str, Any]:
        """Take a drain back, however far it is, and serve again."""
        return self._leaving.undrain()

    def retire(self) -> None:
        """After a drain: end the engine in order, whatever becomes of this process (docs/operating.md)."""
        self._state.leaving = "the engine was ended after a drain"
        self._supervisor.stop()
        self._flusher.stop(JOIN_S)
        self._stop_listeners()  # Triton 24.10 may end this process without another word

    def _stop_listeners(self) -> None:
        for listener in self._listeners:
            listener.stop(LEFTOVER_S)

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


def _warmup(raw: RawRequest) -> RawRequest:
    """A warm-up's zero data is an empty prompt and max_tokens 0: warm the engine with a short prompt instead."""
    empty = raw.tensors.get("text_input") in ([b""], [""])
    if not empty:
        return raw
    return dataclasses.replace(raw, tensors={"text_input": ["Hello"], "max_tokens": [2]})
