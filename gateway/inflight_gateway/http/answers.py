"""Answers of models: who may ask, what is asked, and the answer beside a client that may leave.

One ticker looks after what is under way: comments keep idle streams open, and a client that has not read for a while is
let go.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import difflib
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from inflight_gateway.core.errors import GatewayError, Kind
from inflight_gateway.core.models import Model, relaxations
from inflight_gateway.core.run import run
from inflight_gateway.http.exchange import COMMENT, Exchange
from inflight_gateway.http.metrics import Metrics
from inflight_gateway.triton.fleet import Fleet
from inflight_gateway.wire.dialect import OPENAI, Dialect, Endpoint
from inflight_gateway.wire.fields import decode, too_deep
from inflight_gateway.wire.openai import Plan

JSON = b"application/json"
TICK_S = 1.0
PLACEHOLDERS = ("dummy", "tgi")  # what clients send by themselves where nobody named a model
FIRST = PLACEHOLDERS[0]
# What a misspelt field may have meant, beside the names of the model's own inputs.
_FIELDS = frozenset(
    [
        "messages",
        "max_completion_tokens",
        "response_format",
        "stream_options",
        "presence_penalty",
        "frequency_penalty",
        "echo",
        "prompt",
        "n",
        "parallel_tool_calls",
        "reasoning_effort",
        "logprobs",
        "top_logprobs",
    ]
)


@dataclasses.dataclass(frozen=True, slots=True)
class Limits:
    """What a client may take."""

    body_bytes: int = 4 << 20
    body_s: float = 30.0
    requests: int = 1024
    requests_per_key: int = 1024
    write_s: float = 60.0
    keep_alive_s: float = 15.0
    refuse_unknown: bool = False  # a field that nobody knows is an error, not a header


@dataclasses.dataclass(slots=True)
class Record:
    """What is told of one request when it has ended."""

    id: str
    route: str = "unknown"
    model: str = ""
    dialect: Dialect = OPENAI
    renderer: Any = None  # of an answer that has begun
    began: float = dataclasses.field(default_factory=time.monotonic)
    first: float | None = None
    last: float = 0.0
    prompt_tokens: int = 0
    tokens: int = 0


class Answers:
    """All that are under way."""

    def __init__(self, triton: Fleet, limits: Limits, metrics: Metrics) -> None:
        self._triton = triton
        self._limits = limits
        self._metrics = metrics
        self.watched: set[Exchange] = set()  # every request whose client has not been told all, errors too
        self._comments: set[asyncio.Task[None]] = set()
        self._active: set[Exchange] = set()
        self._by_key: Counter[str] = Counter()
        self._generating = 0
        self.refusing = False  # nothing new is taken

    async def tick(self) -> None:
        """For ever: comments in idle streams, and the end of clients that do not read."""
        while True:
            await asyncio.sleep(TICK_S)
            now = time.monotonic()
            for exchange in list(self.watched):
                since = exchange.writing_since
                if since is not None and now - since > self._limits.write_s:
                    exchange.stalled = True
                    exchange.abort()
                    if exchange.task is not None:
                        exchange.task.cancel()
                elif since is None and exchange.streaming and now - exchange.last_write > self._limits.keep_alive_s:
                    # Not awaited: one client that does not read would keep the others waiting. If it blocks, the next
                    # ticks see that, as they see it of any write.
                    exchange.last_write = now
                    comment = asyncio.create_task(exchange.write(COMMENT))
                    self._comments.add(comment)
                    comment.add_done_callback(self._said)

    def _said(self, comment: asyncio.Task[None]) -> None:
        self._comments.discard(comment)
        if not comment.cancelled():
            comment.exception()  # the client is gone: its own task hears of it

    @property
    def under_way(self) -> int:
        """Answers under way."""
        return self._generating

    def end_all(self) -> None:
        """End every answer under way with its error."""
        for exchange in list(self._active):
            if exchange.task is not None:
                exchange.stalled = False
                exchange.task.cancel()

    async def generate(self, endpoint: Endpoint, exchange: Exchange, record: Record, owner: str) -> None:
        """Answer a request whose body has not been read. Raises `GatewayError`."""
        if self.refusing:
            raise GatewayError(Kind.DRAINING, "the gateway is draining; send the request to another one")
        if self._generating >= self._limits.requests:
            raise GatewayError(Kind.BUSY, f"{self._generating} requests are under way here; try again in a moment")
        if self._by_key[owner] >= self._limits.requests_per_key:
            raise GatewayError(Kind.BUSY, "this key has as many requests under way as it may; try again in a moment")
        self._generating += 1
        self._by_key[owner] += 1
        self._metrics.in_flight.inc()
        self._active.add(exchange)
        try:
            values = decode(await exchange.body(self._limits.body_bytes, self._limits.body_s))
            endpoint = endpoint.of(values)
            record.dialect = endpoint.dialect
            name = values.get("model")
            model = await self.model(FIRST if name is None and not endpoint.model_named else name)
            record.model = model.id
            try:
                plan = endpoint.parse(values, model)
            except RecursionError:  # a text within the body, or what is written again from more calls within each other
                raise too_deep() from None
            affinity = affinity_of(exchange.headers, values)
            if affinity:
                requests = tuple(dataclasses.replace(one, affinity=affinity) for one in plan.requests)
                plan = dataclasses.replace(plan, requests=requests)
            record.renderer = plan.renderer
            if plan.ignored:
                self._metrics.ignored.inc(len(plan.ignored))
                if self._limits.refuse_unknown:
                    raise _unknown(plan.ignored[0], model)
                exchange.extra.append((b"x-inflight-ignored", _listed(plan.ignored, ",")))
            await self._beside_the_client(exchange, record, plan)
        finally:
            self._active.discard(exchange)
            self._metrics.in_flight.dec()
            self._by_key[owner] -= 1
            if not self._by_key[owner]:
                del self._by_key[owner]
            self._generating -= 1

    async def model(self, name: Any = FIRST) -> Model:
        """The model that a client names. Raises `GatewayError`."""
        if not isinstance(name, str) or not name:
            raise GatewayError(Kind.INVALID, "model must be the name of a model", "model")
        model = await self._triton.find(name)
        if model is not None:
            return model
        if not self._triton.ready:
            raise GatewayError(Kind.DOWN, self._triton.reason())
        if name in PLACEHOLDERS:
            return next(iter(self._triton.models.values()))
        raise no_model(name, self._triton.models)

    async def _beside_the_client(self, exchange: Exchange, record: Record, plan: Plan) -> None:
        """Answer, and stop when the client leaves."""
        work = asyncio.create_task(self._answer(exchange, record, plan))
        exchange.task = work
        left = asyncio.create_task(exchange.left())
        try:
            await asyncio.wait({work, left}, return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                work.cancel()
            try:
                await work
            except asyncio.CancelledError:
                if left.done() or exchange.stalled:
                    self._metrics.cancelled.inc()
                    if exchange.stalled:
                        exchange.abort()
                    return
                raise GatewayError(Kind.DRAINING, "the gateway is stopping; send the request again") from None
        finally:
            left.cancel()
            work.cancel()

    async def _answer(self, exchange: Exchange, record: Record, plan: Plan) -> None:
        renderer = plan.renderer
        kept = b""  # of the last event: written with the stream's end at once
        async with contextlib.aclosing(run(self._triton.infer, plan.requests, self._triton.restarted)) as events:
            async for event in events:
                self._timed(record, event.tokens)
                record.prompt_tokens = record.prompt_tokens or event.prompt_tokens
                if not plan.stream:
                    renderer.push(event)
                    notes = relaxations(event.info)
                    if notes:
                        exchange.extra.append((b"x-inflight-relaxed", _listed(notes, "; ")))
                    continue
                if not exchange.started:  # the model has accepted
                    exchange.tell(record.dialect.headers(renderer, None))
                    await exchange.start_stream()
                data = renderer.chunks(event)
                if event.last:
                    kept = data
                elif data:
                    await exchange.write(data)
        record.prompt_tokens = renderer.usage.prompt_tokens
        if plan.stream:
            try:
                kept += renderer.end()
            except GatewayError:  # told by whoever called; what came before it is the client's
                if kept:
                    await exchange.write(kept)
                raise
            await exchange.write(kept, more=False)
        else:
            body = renderer.whole()
            headers = record.dialect.headers(renderer, time.monotonic() - record.began)
            await exchange.answer(200, body, JSON, headers)

    def _timed(self, record: Record, tokens: int) -> None:
        now = time.monotonic()
        if record.first is None:
            record.first = now
            self._metrics.first_token.observe(now - record.began)
        elif tokens:
            self._metrics.between.observe((now - record.last) / tokens)
        record.last = now
        record.tokens += tokens


def _listed(names: Sequence[str], between: str) -> bytes:
    """As a header's value: what can stand in one, cut where that is long."""
    return between.join(name for name in names if name.isascii() and name.isprintable()).encode()[:1000]


def affinity_of(headers: Mapping[bytes, bytes], values: Mapping[str, Any]) -> str:
    """Whose requests should meet the same server: a session's, else those of one shared prompt, else a user's."""
    session = headers.get(b"x-session-id", b"")
    if session:
        return f"session {session.decode('latin-1')}"
    for name in ("prompt_cache_key", "user"):
        value = values.get(name)
        if isinstance(value, str) and value:
            return f"{name} {value}"
    return ""


def _unknown(name: str, model: Model) -> GatewayError:
    near = difflib.get_close_matches(name, sorted(model.inputs | _FIELDS), 1)
    meant = f"; did you mean {near[0]}?" if near else "; docs/gateway.md names those that are"
    return GatewayError(Kind.UNSUPPORTED, f"{name[:100]} has no effect here{meant}", name[:100])


def no_model(name: str, known: Mapping[str, Model]) -> GatewayError:
    """There is none of that name."""
    shown = ", ".join(list(known)[:10]) or "none"
    return GatewayError(Kind.NO_MODEL, f"model {name[:100]!r} is not served here; those that are: {shown}", "model")
