"""A gRPC client for tests: any number of requests over one stream, each with its own queue, every wait with an end."""

from __future__ import annotations

import itertools
import queue
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any

import grpc
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc

from inflight_tools.clients.answer import Answer, Response
from tests.harness.tensors import add_input, outputs

MAX_MESSAGE = 1 << 30


class RequestFailed(Exception):
    """The server answered a request with an error; the text is its message."""


class Pending:
    """One request under way. Iterating gives its responses as they come and ends after the final one."""

    def __init__(self, request_id: str, timeout_s: float) -> None:
        self.request_id = request_id
        self.answer = Answer(time.perf_counter())
        self.responses: list[Response] = []
        self.finals = 0  # responses marked final; exactly one is right
        self._timeout_s = timeout_s
        self._arrived: queue.Queue[Response | Exception] = queue.Queue()
        self.done = threading.Event()

    def put(self, item: Response | Exception) -> None:
        """Called by the reader thread."""
        self._arrived.put(item)
        if isinstance(item, Exception) or item.final:
            self.finals += 1
            self.done.set()

    def __iter__(self) -> Iterator[Response]:
        while True:
            try:
                item = self._arrived.get(timeout=self._timeout_s)
            except queue.Empty:
                raise TimeoutError(f"request {self.request_id}: nothing for {self._timeout_s} s") from None
            if isinstance(item, Exception):
                raise item
            self.responses.append(item)
            self.answer.add(item)
            yield item
            if item.final:
                return

    def result(self) -> Pending:
        """Wait for the end and return this. Raises `RequestFailed` for an error, `TimeoutError` when nothing comes."""
        for _ in self:
            pass
        return self

    def first(self) -> Response:
        """Wait for the next response."""
        return next(iter(self))

    @property
    def text(self) -> str:
        """Text of the first sequence so far."""
        return self.answer.sequences[0].text if self.answer.sequences else ""

    @property
    def texts(self) -> list[str]:
        """Text of each sequence so far."""
        return [self.answer.sequences[index].text for index in sorted(self.answer.sequences)]

    @property
    def finish_reason(self) -> str:
        """Why the first sequence ended; needs return_finish_reason."""
        return self.answer.sequences[0].finish_reason if self.answer.sequences else ""

    @property
    def output_tokens(self) -> int:
        """Tokens of the first sequence so far; needs return_num_output_tokens."""
        return self.answer.sequences[0].num_output_tokens if self.answer.sequences else 0

    @property
    def output_ids(self) -> list[int]:
        """Token ids of the first sequence so far; needs return_token_ids."""
        return list(self.answer.sequences[0].outputs.get("output_ids", [])) if self.answer.sequences else []


class GrpcClient:
    """A channel to a server, with one ModelStreamInfer stream that is opened by the first `start`.

    Closing it cancels what is under way, as a client does that goes away.
    """

    def __init__(self, url: str, model: str = "llm", timeout_s: float = 60.0, status_errors: bool = False) -> None:
        """`timeout_s`: longest wait for a response. `status_errors`: the first error ends the whole stream with its
        gRPC status in front of the message (the only way to see the status of a streamed error)."""
        self.model = model
        self._timeout_s = timeout_s
        self._channel = grpc.insecure_channel(
            url,
            options=[
                ("grpc.max_receive_message_length", MAX_MESSAGE),
                ("grpc.max_send_message_length", MAX_MESSAGE),
                ("grpc.use_local_subchannel_pool", 1),  # a connection of its own, which can be lost alone
            ],
        )
        self.stub = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)
        self._metadata = [("triton_grpc_error", "true")] if status_errors else []
        self._outgoing: queue.Queue[pb.ModelInferRequest | None] = queue.Queue()
        self._pending: dict[str, Pending] = {}
        self._lock = threading.Lock()
        self._numbers = itertools.count(1)
        self._call: Any = None
        self._reader: threading.Thread | None = None

    def build(
        self,
        *,
        model: str | None = None,
        batched: bool = False,
        request_id: str | None = None,
        wanted: Sequence[str] = (),
        parameters: Mapping[str, str | int | float | bool] | None = None,
        **inputs: Any,
    ) -> pb.ModelInferRequest:
        """A request. Keyword arguments are input tensors; `wanted` names outputs, `parameters` request parameters."""
        request = pb.ModelInferRequest(model_name=model or self.model, id=request_id or f"t{next(self._numbers)}")
        for name, value in inputs.items():
            if value is not None:
                add_input(request, name, value, batched=batched)
        for name in wanted:
            request.outputs.add(name=name)
        for name, parameter in {"triton_enable_empty_final_response": True, **(parameters or {})}.items():
            field = {bool: "bool_param", int: "int64_param", float: "double_param", str: "string_param"}
            setattr(request.parameters[name], field[type(parameter)], parameter)
        return request

    def send(self, request: pb.ModelInferRequest) -> Pending:
        """Send a request that was made with `build`."""
        request.parameters["triton_enable_empty_final_response"].bool_param = True
        pending = Pending(request.id, self._timeout_s)
        with self._lock:
            self._pending[request.id] = pending
            if self._call is None:
                self._call = self.stub.ModelStreamInfer(iter(self._outgoing.get, None), metadata=self._metadata)
                self._reader = threading.Thread(target=self._read, args=(self._call,), daemon=True)
                self._reader.start()
        self._outgoing.put(request)
        return pending

    def start(self, text_input: Any = None, *, stream: bool = True, **arguments: Any) -> Pending:
        """Send a request, streaming unless told otherwise; arguments as for `build`."""
        return self.send(self.build(text_input=text_input, stream=stream, **arguments))

    def generate(self, text_input: Any = None, **arguments: Any) -> Pending:
        """`start`, and wait for the end."""
        return self.start(text_input, **arguments).result()

    def infer(self, request: pb.ModelInferRequest) -> dict[str, list[Any]]:
        """ModelInfer, without a stream (which Triton refuses for decoupled models). Raises `RequestFailed`."""
        try:
            return outputs(self.stub.ModelInfer(request, timeout=self._timeout_s))
        except grpc.RpcError as error:
            raise RequestFailed(f"{error.code().name}: {error.details()}") from None

    def is_ready(self) -> bool:
        """Whether the model is ready."""
        request = pb.ModelReadyRequest(name=self.model)
        return bool(self.stub.ModelReady(request, timeout=self._timeout_s).ready)

    def _read(self, call: Any) -> None:
        failure: Exception = RequestFailed("CANCELLED: the stream has ended")
        try:
            for message in call:
                answer = message.infer_response
                if message.error_message:
                    self._give(answer.id, RequestFailed(message.error_message))
                else:
                    final = answer.parameters["triton_final_response"].bool_param
                    self._give(answer.id, Response(time.perf_counter(), outputs(answer), final))
        except grpc.RpcError as error:
            failure = RequestFailed(f"{error.code().name}: {error.details()}")
        with self._lock:
            left, self._pending = list(self._pending.values()), {}
        for pending in left:
            if not pending.done.is_set():
                pending.put(failure)

    def _give(self, request_id: str, item: Response | Exception) -> None:
        with self._lock:
            pending = self._pending.get(request_id)
            if pending is None and len(self._pending) == 1 and not request_id:
                (pending,) = self._pending.values()  # an error that does not say whose it is
        if pending is not None:
            pending.put(item)

    def close(self, cancel: bool = True) -> None:
        """Leave: cancel what is under way, or with `cancel` false let it run out; then close the channel.

        A stream without anything under way is closed in order: Triton 24.10 never lets go of a request whose stream is
        cancelled right after its final response, and then takes its whole exit time-out to stop.
        """
        if self._call is not None:
            with self._lock:
                under_way = any(not pending.done.is_set() for pending in self._pending.values())
            if cancel and under_way:
                self._call.cancel()
            self._outgoing.put(None)
            if self._reader:
                self._reader.join(self._timeout_s)
            self._call = None
        self._channel.close()

    def __enter__(self) -> GrpcClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
