"""One Triton server: a gRPC stream for each request to a model, and its models.

Every call here runs on the gateway's event loop. A request's stream is cancelled when its iterator is closed, which
ends the request in the engine.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import posixpath
import secrets
import time
from collections.abc import AsyncGenerator, Mapping
from typing import Any

import grpc
import msgspec
from tritonclient.grpc import service_pb2 as pb

from inflight_gateway.core.errors import GatewayError, Kind
from inflight_gateway.core.events import Event, ModelRequest
from inflight_gateway.core.models import Model, ModelInfo
from inflight_gateway.core.refusal import refusal
from inflight_gateway.triton.health import ServerHealth
from inflight_gateway.triton.messages import Reader, encode

log = logging.getLogger("inflight_gateway.triton")

WATCH_S = 1.0
HURRY_S = 0.25  # between looks while no model is ready
FRESH_S = 10.0  # what a model says of itself is asked again after it
ASK_S = 5.0
RESTART_S = 10.0  # that a request without a token waits for an engine to start again
RESTART_STEP_S = 0.5
_SERVICE = "/inference.GRPCInferenceService/"
_OPTIONS = [
    ("grpc.max_receive_message_length", 64 << 20),
    ("grpc.max_send_message_length", 64 << 20),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_permit_without_calls", 0),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    ("grpc.initial_reconnect_backoff_ms", 200),
]
DOWN = "the model's server cannot be reached; try again in a few seconds"
FORM = "the model answers in a form that this gateway does not know; its log has the reason"
LOADING = "the model is being loaded again; try again in a few seconds"
BROKE = "the model's server ended before the answer was whole; send the request again"


class TritonServer:
    """One server. `start` and `close` belong to the gateway's lifespan."""

    def __init__(self, address: str, health: ServerHealth | None = None) -> None:
        """`address`: host:port of Triton's gRPC; `health`: the server's own word, where it has one."""
        self.address = address
        self._health = health
        self.ready = False
        self.reason = "the model's server has not answered yet; try again in a few seconds"
        self.models: Mapping[str, Model] = {}
        self._asked: dict[str, float] = {}
        self._lock = asyncio.Lock()
        self._looked = 0.0
        self._channel: Any = None
        self._tasks: list[asyncio.Task[None]] = []

    def unwilling(self, model: str = "") -> str:
        """Why new requests to that model of Triton's, without a name to any of them, should go elsewhere, though they
        may still be served here; empty where nothing says so.
        """
        return self.reason or (self._health.reason(model) if self._health is not None else "")

    async def start(self) -> None:
        """Connect, and begin to watch which models there are."""
        self._channel = grpc.aio.insecure_channel(self.address, options=_OPTIONS)
        # A stream of requests in Triton's eyes. One that ends with its first request is the same bytes and fewer steps.
        # Without a deserializer the responses come as bytes, for `Reader`.
        self._stream = self._channel.unary_stream(
            _SERVICE + "ModelStreamInfer", request_serializer=pb.ModelInferRequest.SerializeToString
        )
        await self.look()
        self._tasks.append(asyncio.create_task(self._watch(), name="inflight-gateway-watch"))
        if self._health is not None:
            await self._health.ask()
            self._tasks.append(asyncio.create_task(self._health.watch(), name="inflight-gateway-health"))

    async def close(self) -> None:
        """End the watch and every stream."""
        for task in self._tasks:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        if self._channel is not None:
            await self._channel.close(grace=None)

    async def find(self, name: str) -> Model | None:
        """The model of that name, looked for once more where it is not known."""
        model = self.models.get(name)
        if model is None and time.monotonic() - self._looked > 0.25:
            await self.look()
            model = self.models.get(name)
        return model

    async def restarted(self, request: ModelRequest) -> None:
        """Return when the engine of that model has had time to start again: what a request waits that met it so."""
        await asyncio.sleep(RESTART_STEP_S)
        end = time.monotonic() + RESTART_S
        while time.monotonic() < end:
            try:
                model = self._model_of(request)
                if model is None:
                    return
                await self._info(model.triton_name, model.batched, model.inputs)
                return
            except GatewayError as error:
                if error.kind not in (Kind.RESTARTING, Kind.DOWN):
                    return
            await asyncio.sleep(RESTART_STEP_S)

    def infer(self, request: ModelRequest) -> AsyncGenerator[Event, None]:
        """The events of one request, the last of which ends it. Raises `GatewayError`."""
        model = self._model_of(request)
        if model is None:
            return self._infer(request, False, frozenset())
        return self._infer(request, model.batched, model.inputs)

    async def _infer(self, request: ModelRequest, batched: bool, inputs: frozenset[str]) -> AsyncGenerator[Event, None]:
        call = self._stream(encode(request, secrets.token_hex(12), batched), timeout=request.deadline_s)
        reader = Reader()
        try:
            while True:
                message = await call.read()
                if message is grpc.aio.EOF:
                    raise GatewayError(Kind.DOWN, BROKE)
                try:
                    event = reader.read(message)
                except ValueError as error:
                    log.error(
                        "%s: model %s answers in a form that is not known: %s", self.address, request.model, error
                    )
                    raise GatewayError(Kind.INTERNAL, FORM) from None
                if isinstance(event, str):
                    refused = refusal(event, inputs)
                    if refused.kind is Kind.NO_MODEL and self._model_of(request) is not None:
                        raise GatewayError(Kind.DOWN, LOADING)  # it was there, and will be again
                    raise refused
                if event.finish == "cancelled":
                    raise GatewayError(Kind.CANCELLED, "the request was cancelled on the model's server")
                if event.finish == "deadline":
                    event.finish, event.stop_reason = "length", "deadline"
                last = event.last  # of this request; who takes the event may say otherwise of several
                yield event
                if last:
                    return
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
                raise GatewayError(Kind.DEADLINE, "the deadline passed") from None
            log.warning("%s: %s: %s", self.address, error.code().name, error.details())
            raise GatewayError(Kind.DOWN, DOWN) from None
        finally:
            call.cancel()

    def _model_of(self, request: ModelRequest) -> Model | None:
        return next((one for one in self.models.values() if one.triton_name == request.model), None)

    async def look(self) -> None:
        """Ask which models there are now."""
        async with self._lock:
            try:
                found = await self._found()
            except (grpc.aio.AioRpcError, GatewayError, asyncio.TimeoutError) as error:
                if self.reason != DOWN:
                    why = error.details() if isinstance(error, grpc.aio.AioRpcError) else str(error) or "no answer"
                    log.warning("%s cannot be reached; is it Triton's gRPC port? %s", self.address, why)
                self.ready, self.reason = False, DOWN
            else:
                if set(found) != set(self.models) or bool(found) != self.ready:
                    log.info("%s has %s", self.address, ", ".join(found) or "no Inflight model that is ready")
                self.models = found
                self.ready = bool(found)
                self.reason = "" if found else "no model is ready on the model's server; try again in a few seconds"
            self._looked = time.monotonic()

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(WATCH_S if self.ready else HURRY_S)
            try:
                await self.look()
            except Exception:
                log.exception("%s: which models it has cannot be told", self.address)

    async def _ask(self, name: str, request: Any, answer: Any) -> Any:
        method = self._channel.unary_unary(
            _SERVICE + name, request_serializer=type(request).SerializeToString, response_deserializer=answer.FromString
        )
        return await method(request, timeout=ASK_S)

    async def _found(self) -> dict[str, Model]:
        index = await self._ask("RepositoryIndex", pb.RepositoryIndexRequest(ready=True), pb.RepositoryIndexResponse)
        names = sorted({model.name for model in index.models if model.state == "READY"})
        found: list[Model] = []
        for name in names:
            known = next((model for model in self.models.values() if model.triton_name == name), None)
            if known is not None and time.monotonic() - self._asked.get(name, 0.0) < FRESH_S:
                found.append(known)
                continue
            model = await self._learn(name, known)
            if model is not None:
                self._asked[name] = time.monotonic()
                found.append(model)
        return _listed(found)

    async def _learn(self, name: str, known: Model | None) -> Model | None:
        """What there is to know of a model; None: it is none of ours."""
        answer = await self._ask("ModelConfig", pb.ModelConfigRequest(name=name), pb.ModelConfigResponse)
        config = answer.config
        if config.backend != "inflight":
            return None
        inputs = frozenset(one.name for one in config.input)
        batched = config.max_batch_size > 0
        folder = config.parameters["engine_dir"].string_value if "engine_dir" in config.parameters else "engine"
        try:
            info = await self._info(name, batched, inputs)
        except GatewayError as error:  # its engine is starting again, say
            if known is not None:
                return known
            log.warning("%s: model %s does not say what it is: %s", self.address, name, error.message)
            info = ModelInfo(chat=True)
        place = posixpath.normpath(posixpath.join(name, "1", folder))
        return Model(name, name, batched, inputs, info, None, int(time.time()), place)

    async def _info(self, name: str, batched: bool, inputs: frozenset[str]) -> ModelInfo:
        request = ModelRequest(name, text="a", options={"max_tokens": 0, "return_model_info": True}, deadline_s=ASK_S)
        said = ""
        async with contextlib.aclosing(self._infer(request, batched, inputs)) as events:
            async for event in events:
                said = said or event.info
        try:
            return msgspec.json.decode(said, type=ModelInfo)
        except msgspec.DecodeError as error:
            raise GatewayError(Kind.INTERNAL, f"model {name} describes itself in another form: {error}") from None


def _listed(found: list[Model]) -> dict[str, Model]:
    """Name → model. Of two models on one engine directory the one without a batch dimension is listed; adapters are
    models of their own.
    """
    plain = {model.engine_dir for model in found if not model.batched}
    models: dict[str, Model] = {}
    for model in found:
        if not (model.batched and model.engine_dir in plain):
            models[model.id] = model
    for model in list(models.values()):
        for adapter in model.info.adapters:
            models.setdefault(adapter, msgspec.structs.replace(model, id=adapter, adapter=adapter))
    return models
