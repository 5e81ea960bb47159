"""Every HTTP request enters here: its id, key and limits; the route; its line in the log and its counts.

Pure ASGI. What models answer is `answers.py`'s.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import re
import secrets
import time
from collections.abc import Awaitable, Callable
from typing import Any

from inflight_gateway import playground
from inflight_gateway.core.errors import GatewayError, Kind, retry_after
from inflight_gateway.core.models import Model
from inflight_gateway.http import routes
from inflight_gateway.http.answers import JSON, Answers, Limits, Record
from inflight_gateway.http.exchange import Exchange, Receive, Scope, Send
from inflight_gateway.http.keys import Keys
from inflight_gateway.http.log import Line
from inflight_gateway.http.metrics import Metrics
from inflight_gateway.triton.fleet import Fleet
from inflight_gateway.wire.openai import encoder
from inflight_gateway.wire.tgi.info import info_of

log = logging.getLogger("inflight_gateway")
access = logging.getLogger("inflight_gateway.access")

_ID = re.compile(rb"[\x21-\x7e]{1,128}")


Handler = Callable[[Exchange, Record, str], Awaitable[None]]


class Front:
    """The gateway as an ASGI application."""

    def __init__(self, triton: Fleet, keys: Keys, limits: Limits, *, page: bool = True) -> None:
        self._triton = triton
        self._keys = keys
        self._limits = limits
        self._page = playground.files() if page else {}
        self.metrics = Metrics()
        self.answers = Answers(triton, limits, self.metrics)
        self.leaving = False  # not ready, and everything is served
        self._ticker: asyncio.Task[None] | None = None
        gets: dict[str, Handler] = {
            "/info": self._info,
            "/v1/models": self._models,
            "/v1/version": self._version,
            "/metrics": self._metrics,
        }
        self._routes: dict[tuple[str, str], Handler] = {
            ("POST", path): functools.partial(self.answers.generate, endpoint)
            for path, endpoint in routes.ANSWERED.items()
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
        self._ticker = asyncio.create_task(self.answers.tick(), name="inflight-gateway-ticker")
        await send({"type": "lifespan.startup.complete"})
        try:
            await receive()
        except asyncio.CancelledError:  # ended at once by a second signal: nobody waits for what follows
            return
        self._ticker.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._ticker
        await self._triton.close()
        await send({"type": "lifespan.shutdown.complete"})

    # One request.

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange = Exchange(scope, receive, send)
        asked = exchange.headers.get(b"x-request-id", b"")
        record = Record(asked.decode() if _ID.fullmatch(asked) else secrets.token_hex(12))
        exchange.extra.append((b"x-request-id", record.id.encode()))
        self.answers.watched.add(exchange)
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
            self.answers.watched.discard(exchange)
            self._told(exchange, record)

    async def _routed(self, exchange: Exchange, record: Record) -> None:
        path, method = exchange.scope["path"].rstrip("/") or "/", exchange.scope["method"]
        if path in self._open:
            record.route = path
            await self._health(exchange, path)
            return
        of_model = path.removeprefix("/health")
        if of_model.startswith("/ready/"):
            record.route = "/ready"
            await self._ready(exchange, of_model.removeprefix("/ready/"))
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
        of_one_model = full.startswith("/v1/models/")
        allowed = [one for one, known in self._routes if known == full]
        if of_one_model or allowed:  # another path is no name for anything: there may be any number of them
            record.route = "/v1/models/{id}" if of_one_model else full
        owner = self._keys.owner(exchange.headers)
        if owner is None:
            raise GatewayError(Kind.NO_KEY, "there is no API key, or a wrong one; send it as Authorization: Bearer KEY")
        if of_one_model:
            await self._one_model(exchange, full.removeprefix("/v1/models/"))
            return
        handler = self._routes.get((method, full)) or (self._routes.get(("GET", full)) if method == "HEAD" else None)
        if handler is None:
            if allowed:
                exchange.extra.append((b"allow", ", ".join(allowed).encode()))
                raise GatewayError(Kind.METHOD, f"{method} is not taken here; use {' or '.join(allowed)}")
            raise GatewayError(Kind.NO_ROUTE, "there is no such path; docs/gateway.md names those that there are")
        await handler(exchange, record, owner)

    async def _say_error(self, exchange: Exchange, record: Record, error: GatewayError) -> None:
        with contextlib.suppress(OSError, RuntimeError):
            if not exchange.started:
                later = retry_after(error.kind)
                headers = {} if later is None else {"retry-after": str(later)}
                if error.kind is Kind.NO_KEY:
                    headers["www-authenticate"] = "Bearer"
                if error.kind is Kind.SLOW_BODY:  # what still trickles in would hold the connection
                    headers["connection"] = "close"
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
        line = Line(id=record.id, route=record.route, status=int(status), model=record.model)
        line |= {"prompt_tokens": record.prompt_tokens, "tokens": record.tokens}
        line["ttft_ms"] = None if record.first is None else round((record.first - record.began) * 1000, 1)
        line["ms"] = round((time.monotonic() - record.began) * 1000, 1)
        access.info(line)

    # Small answers.

    async def _health(self, exchange: Exchange, path: str) -> None:
        if path in ("/live", "/health/live"):
            await exchange.answer(200, b'{"live":true}', JSON)
            return
        await self._ready(exchange)

    async def _ready(self, exchange: Exchange, name: str = "") -> None:
        """Of the whole, or of the model that clients call `name`."""
        model = self._triton.models.get(name)
        if name and model is None:
            await exchange.answer(404, encoder.encode({"ready": False, "reason": "there is no such model"}), JSON)
            return
        reason = self._triton.reason(model.triton_name if model is not None else "")
        if self.leaving or self.answers.refusing:
            reason = "the gateway is draining"
        ready = not reason
        await exchange.answer(200 if ready else 503, encoder.encode({"ready": ready, "reason": reason}), JSON)

    async def _metrics(self, exchange: Exchange, _record: Record, _owner: str) -> None:
        await exchange.answer(200, self.metrics.text(), b"text/plain; version=0.0.4; charset=utf-8")

    async def _version(self, exchange: Exchange, _record: Record, _owner: str) -> None:
        releases = {model.info.release for model in self._triton.models.values()}
        await exchange.answer(200, encoder.encode({"version": ", ".join(sorted(releases)) or "unknown"}), JSON)

    async def _info(self, exchange: Exchange, _record: Record, _owner: str) -> None:
        await exchange.answer(200, encoder.encode(info_of(await self.answers.model(), self._limits.requests)), JSON)

    async def _models(self, exchange: Exchange, _record: Record, _owner: str) -> None:
        found = [_described(model) for model in self._triton.models.values()]
        await exchange.answer(200, encoder.encode({"object": "list", "data": found}), JSON)

    async def _one_model(self, exchange: Exchange, name: str) -> None:
        model = await self.answers.model(name)
        await exchange.answer(200, encoder.encode(_described(model)), JSON)


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
