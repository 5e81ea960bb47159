"""Every HTTP request enters here: its id, key and limits; the route; its line in the log and its counts.

Pure ASGI. One ticker (a task of the lifespan) looks after what is under way: comments keep idle streams open, and a
client that has not read for a while is let go.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
import json
import logging
import re
import secrets
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from inflight_gateway import playground
from inflight_gateway.core.errors import RETRY_AFTER, GatewayError, Kind
from inflight_gateway.core.models import Model, relaxations
from inflight_gateway.core.run import run
from inflight_gateway.http import routes
from inflight_gateway.http.exchange import COMMENT, Exchange, Receive, Scope, Send
from inflight_gateway.http.keys import Keys
from inflight_gateway.http.metrics import Metrics
from inflight_gateway.triton.fleet import Fleet
from inflight_gateway.wire.dialect import OPENAI, Dialect, Endpoint
from inflight_gateway.wire.fields import decode
from inflight_gateway.wire.openai import Plan, encoder
from inflight_gateway.wire.tgi.info import info_of

log = logging.getLogger("inflight_gateway")
access = logging.getLogger("inflight_gateway.access")

JSON = b"application/json"
TICK_S = 1.0
_ID = re.compile(rb"[\x21-\x7e]{1,128}")
PLACEHOLDERS = ("dummy", "tgi")  # what clients send by themselves where nobody named a model


@dataclasses.dataclass(frozen=True, slots=True)
class Limits:
    """What a client may take."""

    body_bytes: int = 4 << 20
    body_s: float = 30.0
    requests: int = 1024
    requests_per_key: int = 1024
    write_s: float = 60.0
    keep_alive_s: float = 15.0


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


Handler = Callable[[Exchange, Record, str], Awaitable[None]]


class Front:
    """The gateway as an ASGI application."""

    def __init__(self, triton: Fleet, keys: Keys, limits: Limits, *, log_json: bool = False, page: bool = True) -> None:
        self._triton = triton
        self._keys = keys
        self._limits = limits
        self._log_json = log_json
        self._page = playground.files() if page else {}
        self.metrics = Metrics()
        self._active: set[Exchange] = set()
        self._by_key: Counter[str] = Counter()
        self._generating = 0
        self.leaving = False  # not ready, and everything is served
        self.refusing = False  # nothing new is taken
        self._ticker: asyncio.Task[None] | None = None
        gets: dict[str, Handler] = {
            "/info": self._info,
            "/v1/models": self._models,
            "/v1/version": self._version,
            "/metrics": self._metrics,
        }
        self._routes: dict[tuple[str, str], Handler] = {
            ("POST", path): functools.partial(self._generate, endpoint) for path, endpoint in routes.ANSWERED.items()
        }
        self._routes |= {("GET", path): handler for path, handler in gets.items()}
        self._open = {"/live", "/health/live", "/ready", "/health/ready", "/health", "/ping", "/v2/health/ready"}

    # The lifespan, as the server asks for it.

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] == "lifespan":
            await self._lifespan(receive, send)
        elif scope["type"] == "http":
            await self._http(scope, receive, send)

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        await receive()
        await self._triton.start()
        self._ticker = asyncio.create_task(self._tick(), name="inflight-gateway-ticker")
        await send({"type": "lifespan.startup.complete"})
        await receive()
        self._ticker.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._ticker
        await self._triton.close()
        await send({"type": "lifespan.shutdown.complete"})

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(TICK_S)
            now = time.monotonic()
            for exchange in list(self._active):
                since = exchange.writing_since
                if since is not None and now - since > self._limits.write_s and exchange.task is not None:
                    exchange.stalled = True
                    exchange.task.cancel()
                elif since is None and exchange.streaming and now - exchange.last_write > self._limits.keep_alive_s:
                    exchange.last_write = now
                    with contextlib.suppress(Exception):  # the client is gone: its own task hears of it
                        await asyncio.wait_for(exchange.write(COMMENT), TICK_S)

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

    # One request.

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange = Exchange(scope, receive, send)
        asked = exchange.headers.get(b"x-request-id", b"")
        record = Record(asked.decode() if _ID.fullmatch(asked) else secrets.token_hex(12))
        exchange.extra.append((b"x-request-id", record.id.encode()))
        try:
            await self._routed(exchange, record)
        except GatewayError as error:
            await self._say_error(exchange, record, error)
        except asyncio.CancelledError:
            raise
        except Exception:
            log.exception("request %s: an error that nobody has foreseen", record.id)
            ours = GatewayError(Kind.INTERNAL, f"the gateway failed; its log has the reason under {record.id}")
            await self._say_error(exchange, record, ours)
        finally:
            self._told(exchange, record)

    async def _routed(self, exchange: Exchange, record: Record) -> None:
        path, method = exchange.scope["path"].rstrip("/") or "/", exchange.scope["method"]
        if path in self._open:
            record.route = path
            await self._health(exchange, path)
            return
        file = self._page.get(path) if method in ("GET", "HEAD") else None
        if file is not None:
            record.route = "/" if path == "/" else "/playground/{file}"
            await exchange.answer(200, file.data, file.kind, playground.HEADERS)
            return
        full = routes.full(path)
        record.dialect = routes.dialect_of(full)
        if record.dialect.id_header:
            exchange.extra.append((record.dialect.id_header, record.id.encode()))
        owner = self._keys.owner(exchange.headers)
        if owner is None:
            raise GatewayError(Kind.NO_KEY, "there is no API key, or a wrong one; send it as Authorization: Bearer KEY")
        if full.startswith("/v1/models/"):
            record.route = "/v1/models/{id}"
            await self._one_model(exchange, full.removeprefix("/v1/models/"))
            return
        handler = self._routes.get((method, full)) or (self._routes.get(("GET", full)) if method == "HEAD" else None)
        if handler is None:
            allowed = [one for one, known in self._routes if known == full]
            if allowed:
                record.route = full
                exchange.extra.append((b"allow", ", ".join(allowed).encode()))
                raise GatewayError(Kind.METHOD, f"{method} is not taken here; use {' or '.join(allowed)}")
            raise GatewayError(Kind.NO_ROUTE, "there is no such path; docs/gateway.md names those that there are")
        record.route = full
        await handler(exchange, record, owner)

    async def _say_error(self, exchange: Exchange, record: Record, error: GatewayError) -> None:
        with contextlib.suppress(OSError, RuntimeError):
            if not exchange.started:
                headers = {"retry-after": str(RETRY_AFTER[error.kind])} if error.kind in RETRY_AFTER else {}
                if error.kind is Kind.NO_KEY:
                    headers["www-authenticate"] = "Bearer"
                status, body = record.dialect.refused(error, record.id)
                await exchange.answer(status, encoder.encode(body), JSON, headers)
            elif exchange.streaming:
                await exchange.write(record.dialect.broken(error, record.id, record.renderer), more=False)

    def _told(self, exchange: Exchange, record: Record) -> None:
        status = str(exchange.status or 499)
        self.metrics.requests.labels(record.route, status).inc()
        if record.prompt_tokens:
            self.metrics.tokens.labels("prompt").inc(record.prompt_tokens)
        if record.tokens:
            self.metrics.tokens.labels("generation").inc(record.tokens)
        if record.route in self._open:
            return
        line: dict[str, Any] = {"id": record.id, "route": record.route, "status": int(status), "model": record.model}
        line |= {"prompt_tokens": record.prompt_tokens, "tokens": record.tokens}
        line["ttft_ms"] = None if record.first is None else round((record.first - record.began) * 1000, 1)
        line["ms"] = round((time.monotonic() - record.began) * 1000, 1)
        if self._log_json:
            access.info("%s", json.dumps(line))
        else:
            access.info("%s", " ".join(f"{name}={value}" for name, value in line.items() if value not in ("", None)))

    # Small answers.

    async def _health(self, exchange: Exchange, path: str) -> None:
        if path in ("/live", "/health/live"):
            await exchange.answer(200, b'{"live":true}', JSON)
            return
        reason = self._triton.reason
        if self.leaving or self.refusing:
            reason = "the gateway is draining"
        ready = not reason
        await exchange.answer(200 if ready else 503, encoder.encode({"ready": ready, "reason": reason}), JSON)

    async def _metrics(self, exchange: Exchange, _record: Record, _owner: str) -> None:
        await exchange.answer(200, self.metrics.text(), b"text/plain; version=0.0.4; charset=utf-8")

    async def _version(self, exchange: Exchange, _record: Record, _owner: str) -> None:
        releases = {model.info.release for model in self._triton.models.values()}
        await exchange.answer(200, encoder.encode({"version": ", ".join(sorted(releases)) or "unknown"}), JSON)

    async def _info(self, exchange: Exchange, _record: Record, _owner: str) -> None:
        await exchange.answer(
            200, encoder.encode(info_of(await self._model(PLACEHOLDERS[0]), self._limits.requests)), JSON
        )

    async def _models(self, exchange: Exchange, _record: Record, _owner: str) -> None:
        found = [_described(model) for model in self._triton.models.values()]
        await exchange.answer(200, encoder.encode({"object": "list", "data": found}), JSON)

    async def _one_model(self, exchange: Exchange, name: str) -> None:
        model = await self._triton.find(name)
        if model is None:
            raise _no_model(name, self._triton.models)
        await exchange.answer(200, encoder.encode(_described(model)), JSON)

    # Answers of models.

    async def _generate(self, endpoint: Endpoint, exchange: Exchange, record: Record, owner: str) -> None:
        if self.refusing:
            raise GatewayError(Kind.DRAINING, "the gateway is draining; send the request to another one")
        if self._generating >= self._limits.requests:
            raise GatewayError(Kind.BUSY, f"{self._generating} requests are under way here; try again in a moment")
        if self._by_key[owner] >= self._limits.requests_per_key:
            raise GatewayError(Kind.BUSY, "this key has as many requests under way as it may; try again in a moment")
        self._generating += 1
        self._by_key[owner] += 1
        self.metrics.in_flight.inc()
        self._active.add(exchange)
        try:
            values = decode(await exchange.body(self._limits.body_bytes, self._limits.body_s))
            endpoint = endpoint.of(values)
            record.dialect = endpoint.dialect
            name = values.get("model")
            model = await self._model(PLACEHOLDERS[0] if name is None and not endpoint.model_named else name)
            record.model = model.id
            plan = endpoint.parse(values, model)
            affinity = affinity_of(exchange.headers, values)
            if affinity:
                requests = tuple(dataclasses.replace(one, affinity=affinity) for one in plan.requests)
                plan = dataclasses.replace(plan, requests=requests)
            record.renderer = plan.renderer
            if plan.ignored:
                exchange.extra.append((b"x-inflight-ignored", _listed(plan.ignored, ",")))
            await self._beside_the_client(exchange, record, plan)
        finally:
            self._active.discard(exchange)
            self.metrics.in_flight.dec()
            self._by_key[owner] -= 1
            if not self._by_key[owner]:
                del self._by_key[owner]
            self._generating -= 1

    async def _model(self, name: Any) -> Model:
        if not isinstance(name, str) or not name:
            raise GatewayError(Kind.INVALID, "model must be the name of a model", "model")
        model = await self._triton.find(name)
        if model is not None:
            return model
        if not self._triton.ready:
            raise GatewayError(Kind.DOWN, f"{self._triton.reason}; try again in a few seconds")
        if name in PLACEHOLDERS:
            return next(iter(self._triton.models.values()))
        raise _no_model(name, self._triton.models)

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
                    self.metrics.cancelled.inc()
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
            self.metrics.first_token.observe(now - record.began)
        elif tokens:
            self.metrics.between.observe((now - record.last) / tokens)
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


def _described(model: Model) -> dict[str, Any]:
    return {
        "id": model.id,
        "object": "model",
        "created": model.created,
        "owned_by": "inflight",
        "root": model.triton_name,
        "parent": model.triton_name if model.adapter is not None else None,
        "max_model_len": model.info.context,
    }


def _no_model(name: str, known: Mapping[str, Model]) -> GatewayError:
    shown = ", ".join(list(known)[:10]) or "none"
    return GatewayError(Kind.NO_MODEL, f"model {name[:100]!r} is not served here; those that are: {shown}", "model")
