"""Sender threads: take everything a stream has buffered, send it once, FINAL exactly once.

A `send` to Triton is a blocking round trip, so tokens are merged: engine outputs only go into a stream's inbox, and a
sender takes the whole inbox into one response. At low load a sender is always free and every token leaves at once;
under load a response carries several. A gap per stream, which grows with the number of streams and with what a response
costs now, keeps sending inside a small share of the CPU (`gap_s`). It is the arriving token that looks whether the gap
is over, so nothing wakes for a token that has to wait; first tokens and ends never wait. Only for tokens that wait and
are followed by no other in time (a long prefill, say) a thread looks, while there are any that wait.

Threads: `inflight-send-N` and `inflight-look`, started and joined by `Delivery`. One lock per stream spans every use of
Triton's response sender, because to ask for cancellation after FINAL is a use-after-free in the server.
"""

from __future__ import annotations

import collections
import logging
import queue
import threading
import time
from collections.abc import Callable, Mapping
from typing import Protocol

from inflight.answer.stream import Reply, Stream, Taken
from inflight.engine_process import processors
from inflight.engines.base import EngineOutput
from inflight.errors import RequestError, cancelled, internal
from inflight.serving.metrics import Metrics
from inflight.serving.refusals import Refusals

log = logging.getLogger("inflight.delivery")

SEND_COST_S = (100e-6, 300e-6, 1500e-6)  # of one response: least, at first, most believed
COST_WEIGHT = 1 / 64  # of the newest response in the running mean of what one costs
SEND_SHARE = 0.05  # of all cores, spent on sending while tokens could wait for each other
EVEN_GAP_S = 0.11  # for the sake of that share tokens wait no longer: beyond it one sees them come in lumps
MOST_SHARE = 0.1  # of all cores: what sending may take at that gap, before tokens wait longer all the same
MAX_GAP_S = 0.3
OVERLOAD_SHARE = 0.3  # of all cores: more than that is taken from the engine, which then makes fewer tokens
LONGEST_GAP_S = 1.2
BACKLOG_STREAMS = 8  # waiting for a sender before the reader lets the senders catch up
PACE_S = 0.02  # the longest it does so after one frame of the engine
PACE_LOOK_S = 0.0005
LOOK_S = 0.02  # how often to look for tokens that wait longer than the gap
IDLE_S = 0.5


class Responder(Protocol):
    """Triton's response sender, behind what we need of it. Calls are serialised by the live stream's lock."""

    def send(self, stream: Stream, reply: Reply, final: bool) -> None:
        """Send one response; with `final`, the last."""

    def fail(self, error: RequestError) -> None:
        """Send an error as the one terminal response."""

    def is_cancelled(self) -> bool:
        """Whether the client has left. Never called after the terminal response."""


class _Gone:
    """Stands where a responder was. Triton's sender keeps its model loaded for as long as anybody refers to it, so it
    is dropped with the terminal response, wherever the stream itself may still be referred to.
    """

    def send(self, stream: Stream, reply: Reply, final: bool) -> None:
        raise AssertionError("a send after the terminal response")

    def fail(self, error: RequestError) -> None:
        raise AssertionError("a second terminal response")

    def is_cancelled(self) -> bool:
        raise AssertionError("a question after the terminal response")


_GONE = _Gone()


class LiveStream:
    """A stream with its inbox, its responder and the lock that owns both."""

    __slots__ = (
        "closed",
        "counted",
        "deadline",
        "eager",
        "first_ns",
        "inbox",
        "last_ns",
        "last_send",
        "lock",
        "next_ns",
        "on_abandon",
        "on_closed",
        "queued",
        "request_id",
        "responder",
        "stream",
    )

    def __init__(self, request_id: int, stream: Stream, responder: Responder) -> None:
        self.request_id = request_id
        self.stream = stream
        self.responder = responder
        # What the engine said and nobody has looked at: an int is one more token of the first sequence.
        self.inbox: collections.deque[int | EngineOutput] = collections.deque()
        self.lock = threading.Lock()
        # Otherwise there is nothing to send and nothing to look for before the end.
        self.eager = stream.request.stream or bool(stream.request.stops)
        self.queued = False
        self.next_ns = 0  # tokens that come before this wait for each other; the first one never waits
        self.closed = False  # the terminal response has been sent
        self.counted = True  # in the metrics; a warm-up is not
        self.last_send = 0.0
        self.first_ns = 0  # when the engine's first and latest tokens came in; 0 is not yet
        self.last_ns = 0
        self.deadline: float | None = None
        self.on_abandon: Callable[[LiveStream], None] = _nothing
        self.on_closed: Callable[[LiveStream], None] = _nothing


def gap_s(streams: int, cost_s: float, cores: int) -> float:
    """The time between two responses of one stream, of so many, where one takes `cost_s` of a core."""
    share = streams * cost_s / cores  # of all cores, with one response each a second
    return max(
        min(EVEN_GAP_S, share / SEND_SHARE),
        min(MAX_GAP_S, share / MOST_SHARE),
        min(LONGEST_GAP_S, share / OVERLOAD_SHARE),
    )


def _nothing(_: LiveStream) -> None:
    return None


class Delivery:
    """The sender threads and the queue of streams that have something to say."""

    def __init__(self, threads: int, metrics: Metrics, live: Mapping[int, LiveStream]) -> None:
        """`live` are the streams without an end, kept by the owner; they are looked at for overdue tokens."""
        self._metrics = metrics
        self._live = live
        self._cost_s = SEND_COST_S[1]
        self._cores = len(processors.there())
        self.refusals = Refusals()
        self._ready: queue.SimpleQueue[LiveStream | None] = queue.SimpleQueue()
        self._waiting = threading.Event()  # tokens may lie in an inbox whose stream is not queued
        self._ended = threading.Event()
        self._looker = threading.Thread(target=self._look, name="inflight-look", daemon=True)
        self._threads = [
            threading.Thread(target=self._run, name=f"inflight-send-{number}", daemon=True) for number in range(threads)
        ]

    def start(self) -> None:
        """Start the threads."""
        self.refusals.start()
        self._looker.start()
        for thread in self._threads:
            thread.start()

    def stop(self, timeout_s: float) -> None:
        """End the threads; what is queued is still sent."""
        self._ended.set()
        self._waiting.set()
        self._looker.join(timeout_s)
        for _ in self._threads:
            self._ready.put(None)
        for thread in self._threads:
            thread.join(timeout_s)
        self.refusals.stop(timeout_s)

    def pace(self) -> None:
        """Let the senders catch up. Called by the one reader thread after each frame of the engine.

        An engine that is faster than delivery would otherwise keep the interpreter to the reader: tokens would all
        arrive here early, and leave late. Meanwhile the engine has its socket's buffer to write into.
        """
        until = time.monotonic() + PACE_S
        while self._ready.qsize() > BACKLOG_STREAMS and time.monotonic() < until:
            time.sleep(PACE_LOOK_S)

    def push_token(self, live: LiveStream, token_id: int, now_ns: int) -> None:
        """Put one token of the first sequence into a stream's inbox. Called by the one reader thread; never blocks."""
        live.inbox.append(token_id)
        waits = 2 * (live.next_ns - now_ns) > now_ns - live.last_ns  # the next token will be nearer to the gap's end
        live.last_ns = now_ns
        if not live.first_ns:
            live.first_ns = now_ns
        if live.eager and not live.queued:
            self._queue_or_note(live, waits)

    def push(self, live: LiveStream, output: EngineOutput, now_ns: int) -> None:
        """Put an engine output into a stream's inbox. Called by the one reader thread; never blocks."""
        live.inbox.append(output)
        waits = 2 * (live.next_ns - now_ns) > now_ns - live.last_ns  # as for a token
        if output.token_ids:
            live.last_ns = now_ns
            if not live.first_ns:
                live.first_ns = now_ns
        ends = output.finish is not None or output.error is not None  # an end never waits
        if ends or (live.eager and not live.queued):
            self._queue_or_note(live, waits and not ends)

    def _queue_or_note(self, live: LiveStream, waits: bool) -> None:
        if not waits:
            live.queued = True
            self._ready.put(live)
        elif not self._waiting.is_set():
            self._waiting.set()

    def fail(self, live: LiveStream, error: RequestError) -> None:
        """End a stream with an error, from any thread, now."""
        self._end(live, lambda stream: stream.fail(error))

    def end_by_deadline(self, live: LiveStream) -> None:
        """End a running stream with the text it has."""
        self._end(live, Stream.end_by_deadline)

    def end_counted(self, live: LiveStream) -> None:
        """Answer a request for the prompt's tokens alone."""
        self._end(live, Stream.end_counted)

    def _end(self, live: LiveStream, how: Callable[[Stream], None]) -> None:
        with live.lock:
            try:
                self._drain(live)
                how(live.stream)
            except Exception:
                log.exception("request %s: its last tokens are lost", live.stream.identity)
                live.stream.fail(internal(live.stream.identity.id))
            self._deliver(live)
        self._after(live)

    def poll_cancelled(self, live: LiveStream) -> bool:
        """Ask Triton whether the client has left, and end the stream if so."""
        with live.lock:
            if live.closed or not live.responder.is_cancelled():
                return False
            live.stream.fail(cancelled())
            self._deliver(live)
        self._after(live)
        return True

    def _run(self) -> None:
        while True:
            live: LiveStream | None
            try:
                live = self._ready.get(timeout=IDLE_S)
            except queue.Empty:
                continue
            if live is None:
                return
            self._serve(live)
            live = None  # while this thread waits it keeps no stream alive

    def _look(self) -> None:
        while not self._ended.is_set():
            if not self._waiting.wait(IDLE_S) or self._ended.wait(LOOK_S):
                continue
            self._waiting.clear()
            if self._queue_overdue(time.monotonic_ns()):
                self._waiting.set()

    def _queue_overdue(self, now_ns: int) -> bool:
        """Queue the streams whose tokens came within the gap and were followed by no other. Whether more wait."""
        more = False
        for live in list(self._live.values()):
            if live.inbox and live.eager and not live.queued:
                if now_ns >= live.next_ns:
                    live.queued = True
                    self._ready.put(live)
                else:
                    more = True
        return more

    def _serve(self, live: LiveStream) -> None:
        """One turn of one stream; its trouble must not end this thread, nor leave its client without an end."""
        live.next_ns = time.monotonic_ns() + self._gap_ns()
        live.queued = False  # from here on a token queues it again, once the gap is over
        try:
            with live.lock:
                self._drain(live)
                self._deliver(live)
            self._after(live)
        except Exception:
            log.exception("request %s: delivery failed", live.stream.identity)
            self.fail(live, internal(live.stream.identity.id))

    def _gap_ns(self) -> int:
        return int(gap_s(len(self._live), self._cost_s, self._cores) * 1e9)

    def _note_cost(self, seconds: float) -> None:
        """A response has taken so long. The clock stands for the CPU time of stub, server and client: a send returns
        when the server has taken it over, and takes longer the busier the cores are. Senders may overwrite each
        other's sums, which does no harm.
        """
        least, _, most = SEND_COST_S
        self._cost_s += COST_WEIGHT * (min(max(seconds, least), most) - self._cost_s)

    def _drain(self, live: LiveStream) -> None:
        inbox, stream = live.inbox, live.stream
        now_ns = live.last_ns
        tokens: list[int] = []
        while inbox:
            item = inbox.popleft()
            if isinstance(item, int):
                tokens.append(item)
                continue
            if tokens:
                stream.append(EngineOutput(live.request_id, 0, tokens), now_ns)
                tokens = []
            stream.append(item, now_ns)
        if tokens:
            stream.append(EngineOutput(live.request_id, 0, tokens), now_ns)
        if stream.timing.first_token_ns:
            stream.timing.first_token_ns = live.first_ns  # not when we looked

    def _deliver(self, live: LiveStream) -> None:
        """Send what the stream gives. Holds the stream's lock."""
        if live.closed:
            return
        abandon = True
        try:
            taken = live.stream.take()
            self._send(live, taken)
            abandon = taken.abandon
        except Exception:
            log.exception("request %s: sending failed", live.stream.identity)
            self._last_words(live)
        self._let_go(live)
        if abandon:
            live.on_abandon(live)

    @staticmethod
    def _let_go(live: LiveStream) -> None:
        if live.closed:
            live.responder = _GONE

    def _last_words(self, live: LiveStream) -> None:
        """After a failed send: end the request if Triton still takes an end. Holds the stream's lock."""
        live.stream.break_off()
        if not live.closed:
            live.closed = True
            self._answer(live, internal(live.stream.identity.id))

    def _answer(self, live: LiveStream, error: RequestError) -> None:
        self.refusals.answer(live.responder, error, live.stream.identity, live.stream.timing.arrival_ns)

    def _send(self, live: LiveStream, taken: Taken) -> None:
        if taken.error is not None:
            live.closed = True
            self._answer(live, taken.error)
            return
        last = len(taken.replies) - 1
        for place, reply in enumerate(taken.replies):
            final = taken.done and place == last
            live.closed = final
            began = time.monotonic()
            live.responder.send(live.stream, reply, final)
            self._note_cost(time.monotonic() - began)
        if taken.replies:
            self._measure(live, taken)

    def _measure(self, live: LiveStream, taken: Taken) -> None:
        """Tokens per response and the time between tokens, of streams."""
        now = time.monotonic()
        if live.stream.request.stream and live.counted and taken.tokens:
            self._metrics.observe("inflight_tokens_per_response", taken.tokens / len(taken.replies), len(taken.replies))
            if live.last_send:
                gap = (now - live.last_send) / taken.tokens
                self._metrics.observe("inflight_inter_token_latency_seconds", gap, taken.tokens)
        live.last_send = now

    def _after(self, live: LiveStream) -> None:
        """Tell the owner once, outside the lock, that a stream has ended."""
        if not live.closed:
            return
        with live.lock:
            callback, live.on_closed = live.on_closed, _nothing
        if callback is not _nothing:
            callback(live)
