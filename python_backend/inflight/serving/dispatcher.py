"""The one thread that decides what the engine works on: it owns the admission queue and every word said to the engine.

Everybody else posts events (a request arrived, one was cancelled, one left the engine, an engine came or went); thread
`inflight-dispatch` takes them in order, so nothing here needs a lock.
"""

from __future__ import annotations

import functools
import logging
import math
import queue
import threading
import time
from collections.abc import Callable

from inflight.engine_process import frames
from inflight.engine_process.framing import FrameError
from inflight.engine_process.link import EngineLink, LinkLost
from inflight.engines.base import EngineInfo, EngineRequest
from inflight.errors import ErrorCode, RequestError, internal, invalid, unavailable
from inflight.serving.admission import AdmissionQueue
from inflight.serving.arrival import Arrival
from inflight.serving.deadlines import Deadlines
from inflight.serving.delivery import Delivery, LiveStream

log = logging.getLogger("inflight.dispatcher")

IDLE_WAIT_S = 1.0
Event = Callable[[], None]
_RESTARTING = unavailable("the engine is restarting; try again in a few seconds")
_HELD_TOO_LONG = unavailable(
    "the engine is restarting and was not up again within the model's restart_hold_ms; try again in a few seconds"
)


class _Job:
    """A request from its arrival here until the engine has forgotten it."""

    __slots__ = ("again", "heard", "held_until", "live", "request", "sequences_left", "since")

    def __init__(self, live: LiveStream, request: EngineRequest, since: float) -> None:
        self.live = live
        self.request = request
        self.since = since  # in the queue, monotonic
        self.held_until = math.inf  # how long it waits for an engine, while there is none
        self.sequences_left = request.sampling.num_sequences
        self.heard = False  # whether the engine said anything of it but plain tokens, which its stream knows
        self.again = False  # whether it is with its second engine

    @property
    def closed(self) -> bool:
        """Whether its stream has ended."""
        return self.live.closed

    @property
    def may_begin_anew(self) -> bool:
        """Whether a lost engine had said nothing of it. Once: a prompt that ends engines must not end all of them."""
        return not (self.again or self.heard or self.live.first_ns or self.closed)


class Dispatcher:
    """See the module's text. Public methods may be called from any thread unless they say otherwise."""

    def __init__(
        self, delivery: Delivery, make_queue: Callable[[EngineInfo], AdmissionQueue], restart_hold_s: float = 0.0
    ) -> None:
        """What waits when an engine is lost, what it had without a token of it, and what comes before the next one is
        up, is held for `restart_hold_s`; with 0 it ends at once.
        """
        self._delivery = delivery
        self._make_queue = make_queue
        self._hold_s = restart_hold_s
        self._holds: Deadlines[_Job] = Deadlines()
        self._no_engine = _RESTARTING  # the answer while there is no queue
        self._events: queue.SimpleQueue[Event | None] = queue.SimpleQueue()
        self._jobs: dict[int, _Job] = {}  # written by our thread, read by the engine's reader
        self._queue: AdmissionQueue | None = None
        self._link: EngineLink | None = None
        self._closed: RequestError | None = None
        self._deadlines: Deadlines[LiveStream | Arrival] = Deadlines()
        self._thread = threading.Thread(target=self._run, name="inflight-dispatch", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self, timeout_s: float) -> None:
        """End the thread after the events already posted."""
        self._events.put(None)
        self._thread.join(timeout_s)

    @property
    def waiting(self) -> int:
        """Requests in the queue (a snapshot)."""
        return self._queue.waiting if self._queue is not None else 0

    @property
    def waiting_tokens(self) -> int:
        """Tokens of their prompts (a snapshot)."""
        queue = self._queue
        return queue.waiting_tokens if queue is not None else 0

    @property
    def running(self) -> int:
        """Requests in the engine (a snapshot)."""
        return self._queue.running if self._queue is not None else 0

    @property
    def blocks_reserved(self) -> int:
        """KV blocks reserved by running requests (a snapshot)."""
        return self._queue.blocks_used if self._queue is not None else 0

    # -- events ------------------------------------------------------------------------------------------------------

    def watch(self, arrival: Arrival, deadline: float) -> None:
        """A request that is no stream yet is to end at `deadline` (monotonic), whatever it waits for."""
        self._events.put(lambda: self._deadlines.add(deadline, arrival))

    def submit(self, live: LiveStream, request: EngineRequest) -> None:
        """A new request with its prompt ready."""
        self._events.put(lambda: self._submit(live, request))

    def abandon(self, live: LiveStream) -> None:
        """Nobody wants the rest of this stream (cancelled, stop string, deadline, error)."""
        self._events.put(lambda: self._abandon(live))

    def engine_up(self, link: EngineLink, info: EngineInfo) -> None:
        """An engine is ready."""
        self._events.put(lambda: self._engine_up(link, info))

    def engine_down(self, reason: str) -> None:
        """The engine is gone. Every stream that is not held for the next one ends UNAVAILABLE."""
        self._events.put(lambda: self._engine_down(reason))

    def engine_failed(self, error: RequestError) -> None:
        """No engine is started any more: what is held ends with `error`, and so does what is on its way here."""
        self._events.put(lambda: self._engine_failed(error))

    def close(self, error: RequestError) -> None:
        """End everything with `error` (drain, finalize), and what is still on its way here as well."""
        self._events.put(lambda: self._close(error))

    def reopen(self) -> None:
        """Take requests again after `close`."""
        self._events.put(self._reopen)

    # -- on the engine's reader thread -------------------------------------------------------------------------------

    def on_outputs(self, message: frames.Outputs) -> None:
        """Give outputs to their streams. Reader thread only."""
        jobs, push, push_token, now_ns = self._jobs, self._delivery.push, self._delivery.push_token, time.monotonic_ns()
        for request_id, token in zip(message.ids, message.tokens, strict=True):
            job = jobs.get(request_id)
            if job is not None:
                push_token(job.live, token, now_ns)
        for output in message.outputs:
            job = jobs.get(output.request_id)
            if job is None:
                continue
            job.heard = True
            if output.error is not None:
                who, number = job.live.stream.identity, output.request_id
                log.error("request %s (%d of the engine's) ends: %s", who, number, output.error)
            push(job.live, output, now_ns)
            if output.finish is not None or output.error is not None:
                job.sequences_left -= 1
                if not job.sequences_left:
                    self._events.put(functools.partial(self._release, output.request_id))

    def on_refused(self, message: frames.Refused) -> None:
        """The engine did not take a request. Reader thread only."""
        self._events.put(lambda: self._refused(message))

    # -- our thread --------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while True:
            try:
                event = self._events.get(timeout=self._wait_s())
            except queue.Empty:
                pass
            else:
                if event is None:
                    return
                self._do(event)
            self._do(self._expire)
            self._do(self._start_requests)

    @staticmethod
    def _do(event: Event) -> None:
        try:
            event()
        except Exception:  # one request's trouble must never end this thread
            log.exception("an event failed")

    def _wait_s(self) -> float:
        now = time.monotonic()
        wait = IDLE_WAIT_S
        for deadline in (self._deadlines.next(), self._holds.next()):
            if deadline is not None:
                wait = min(wait, max(0.0, deadline - now))
        if self._queue is not None and self._link is not None and not self._link.is_lost:
            soon = self._queue.next_wakeup(now)
            wait = wait if soon is None else min(wait, soon)
        return wait

    def _submit(self, live: LiveStream, request: EngineRequest) -> None:
        if self._closed is not None or self._queue is None:
            self._delivery.fail(live, self._closed or self._no_engine)
            return
        job = _Job(live, request, time.monotonic())
        try:
            self._queue.offer(request, job.since)
        except RequestError as error:
            self._delivery.fail(live, error)
            return
        self._jobs[request.request_id] = job
        if self._link is None:
            self._hold(job)
        if live.deadline is not None:
            self._deadlines.add(live.deadline, live)
        if live.closed:  # cancelled before it came here, or while we were at it
            self._abandon(live)

    def _start_requests(self) -> None:
        if self._queue is None or self._link is None or self._link.is_lost:
            return
        for request_id in self._queue.take(time.monotonic()):
            job = self._jobs[request_id]
            job.live.stream.timing.scheduled_ns = time.monotonic_ns()
            try:
                self._say(frames.Add(job.request))
            except FrameError:  # larger than any frame; nothing was sent
                self._delivery.fail(job.live, invalid("input_ids", "is too long for one request"))
                self._release(request_id)

    def _say(self, message: frames.ToEngine) -> None:
        """Tell the engine. A lost link is the supervisor's to notice and to report."""
        if self._link is not None:
            try:
                self._link.send(message)
            except LinkLost:
                log.warning("the engine cannot be reached")

    def _abandon(self, live: LiveStream) -> None:
        if live.request_id not in self._jobs or self._queue is None:
            return
        if self._queue.withdraw(live.request_id):
            del self._jobs[live.request_id]
        else:
            self._say(frames.Cancel(live.request_id))

    def _release(self, request_id: int) -> None:
        if self._queue is not None and self._queue.release(request_id, time.monotonic()):
            del self._jobs[request_id]

    def _refused(self, message: frames.Refused) -> None:
        job = self._jobs.get(message.request_id)
        if job is None:
            return
        error: RequestError
        if message.code is ErrorCode.INTERNAL:
            who = job.live.stream.identity
            log.error("request %s (%d of the engine's): the engine could not take it", who, message.request_id)
            error = internal(who.id)
        elif message.code is not ErrorCode.INVALID_ARG:
            error = RequestError(message.code, message.message)
        elif message.parameter is None:
            error = RequestError(ErrorCode.INVALID_ARG, f"the engine refuses this request: {message.message}")
        else:
            error = RequestError(ErrorCode.INVALID_ARG, f"{message.parameter} {message.message}", message.parameter)
        self._delivery.fail(job.live, error)
        self._release(message.request_id)

    def _expire(self) -> None:
        """End what has passed its deadline: the running with the text they have, all others with an error."""
        for item in self._deadlines.due(time.monotonic()):
            if isinstance(item, Arrival):
                item.end_by_deadline()
            else:
                self._expire_stream(item)
        now = time.monotonic()
        for job in self._holds.due(now):
            request_id = job.request.request_id
            if self._link is None and now >= job.held_until and self._queue and self._queue.withdraw(request_id):
                del self._jobs[request_id]
                self._fail(job, _HELD_TOO_LONG)

    def _expire_stream(self, live: LiveStream) -> None:
        if live.request_id not in self._jobs or self._queue is None:
            return
        if self._queue.withdraw(live.request_id):
            del self._jobs[live.request_id]
            self._delivery.fail(
                live,
                unavailable(
                    "the deadline passed while the request was queued; raise deadline_ms, or the request's timeout"
                ),
            )
        else:
            self._delivery.end_by_deadline(live)

    def _engine_up(self, link: EngineLink, info: EngineInfo) -> None:
        self._queue = self._make_queue(info)
        self._link = link
        for request_id, job in list(self._jobs.items()):  # held
            try:
                self._queue.offer(job.request, job.since)
            except RequestError as error:  # the new engine has less room
                del self._jobs[request_id]
                self._fail(job, error)

    def _engine_down(self, reason: str) -> None:
        """What the engine never had, or said nothing of, may wait for the next one; the rest of an answer would not
        go with what its client has.
        """
        silent = self._link is not None and self._link.is_silent
        self._link = None
        self._no_engine = _RESTARTING
        lost = unavailable(f"{reason} and is being restarted; try again in a few seconds")
        if self._queue is None or not self._hold_s:
            self._queue = None
            self._fail_all(lost)
            return
        for request_id, job in list(self._jobs.items()):
            if request_id in self._queue:
                self._hold(job)
            elif silent and job.may_begin_anew:
                self._begin_anew(job)
            else:
                self._release(request_id)
                self._fail(job, lost)

    def _begin_anew(self, job: _Job) -> None:
        """From the lost engine back into the queue, at the place that its arrival gives it."""
        assert self._queue is not None
        job.again = True
        self._queue.release(job.request.request_id, time.monotonic())
        try:
            self._queue.offer(job.request, job.since)
        except RequestError as error:
            del self._jobs[job.request.request_id]
            self._fail(job, error)
        else:
            self._hold(job)

    def _hold(self, job: _Job) -> None:
        job.held_until = time.monotonic() + self._hold_s
        self._holds.add(job.held_until, job)

    def _engine_failed(self, error: RequestError) -> None:
        self._link = self._queue = None
        self._no_engine = error
        self._fail_all(error)

    def _close(self, error: RequestError) -> None:
        self._closed = error
        self._fail_all(error)

    def _reopen(self) -> None:
        self._closed = None

    def _fail_all(self, error: RequestError) -> None:
        """End every stream. What the engine still has stays a job until its terminal outputs release it."""
        for request_id, job in list(self._jobs.items()):
            self._fail(job, error)
            if self._queue is None or self._queue.withdraw(request_id):
                self._jobs.pop(request_id, None)
            else:
                self._say(frames.Cancel(request_id))

    def _fail(self, job: _Job, error: RequestError) -> None:
        """End one of several streams; its trouble is not theirs."""
        try:
            self._delivery.fail(job.live, error)
        except Exception:
            log.exception("request %s: ending it failed", job.live.stream.identity)
