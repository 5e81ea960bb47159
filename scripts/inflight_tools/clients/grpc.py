"""A connection to a model on Triton over gRPC: what stream.py and the benchmarks need of `tritonclient.grpc`."""

from __future__ import annotations

import json
import queue
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any

from inflight_tools.clients.answer import Response
from inflight_tools.clients.connection import Value, lacks_model, no_model
from inflight_tools.common.report import Failure, missing_package

try:
    import numpy as np
    import tritonclient.grpc as triton
    from tritonclient.utils import InferenceServerException
except ModuleNotFoundError as missing:
    raise SystemExit(f"error: this needs {missing_package(missing) or missing.name}") from None

# The contract's tables are plain Python without dependencies, so a client can read them from the source tree.
from inflight.request.contract import INPUTS

_CALL_TIMEOUT_S = 10.0
_REQUEST_ID = re.compile(r"^\[request id: [^\]]*\] ")  # what Triton's core puts before its own refusals
_NO_CONNECTION = ("connect", "resolv", "lookup", "Socket closed", "DNS")
_TYPES: dict[str, tuple[str, Any]] = {  # contract type → Triton's wire name, numpy type
    "STRING": ("BYTES", np.object_),
    "INT32": ("INT32", np.int32),
    "UINT64": ("UINT64", np.uint64),
    "FP32": ("FP32", np.float32),
    "BOOL": ("BOOL", np.bool_),
}
_TYPE_OF = {name: item.type for item in INPUTS for name in (item.name, *item.aliases)}
_LISTS = frozenset(item.name for item in INPUTS if item.dims == -1)


def parse_value(name: str, text: str) -> Value:
    """What `text` means for the contract's input `name`. Raises `Failure` for an unknown name or a wrong type."""
    if name not in _TYPE_OF:
        raise Failure(f"{name!r} is not a request parameter: docs/requests.md lists them.")
    kind = _TYPE_OF[name]
    try:
        if kind == "BOOL":
            return {"true": True, "1": True, "false": False, "0": False}[text.lower()]
        if kind == "STRING":
            return [text] if name in _LISTS else text
        return float(text) if kind == "FP32" else int(text)
    except (KeyError, ValueError):
        raise Failure(f"{name} cannot be {text!r}: its type is {kind}.") from None


class Connection:
    """One gRPC channel. As a context manager it closes itself, cancelling what is under way."""

    def __init__(self, url: str) -> None:
        """`url` is host:port. Nothing is sent yet."""
        self.url = url
        self._client = triton.InferenceServerClient(url)
        self._streaming = False

    def check_model(self, model: str) -> dict[str, Any]:
        """The model's configuration. Raises `Failure` when server or model cannot be used."""
        try:
            answer = self._client.get_model_config(model, as_json=True, client_timeout=_CALL_TIMEOUT_S)
        except InferenceServerException as error:
            raise self._failure(error, model) from None
        config: dict[str, Any] = answer["config"]
        return config

    def is_batched(self, model: str, shape: str) -> bool:
        """Whether tensors have a batch dimension of 1 in front: what `shape` says, or for "auto" the model."""
        config = self.check_model(model)
        return int(config.get("max_batch_size", 0)) > 0 if shape == "auto" else shape == "batched"

    def release(self) -> str:
        """Of the server itself; empty where it does not say."""
        try:
            answer = self._client.get_server_metadata(as_json=True, client_timeout=_CALL_TIMEOUT_S)
        except InferenceServerException:
            return ""
        return str(answer.get("version", ""))

    def model_info(self, model: str, batched: bool) -> dict[str, Any]:
        """What a model says of itself (docs/chat.md); empty for one that does not."""
        asked: dict[str, Value] = {"text_input": "a", "max_tokens": 0, "return_model_info": True}
        try:
            answers = list(self.stream(model, asked, batched, _CALL_TIMEOUT_S))
            found = json.loads(answers[-1].outputs["model_info"][0])
        except (Failure, KeyError, IndexError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def stream(
        self,
        model: str,
        inputs: Mapping[str, Value] | Sequence[triton.InferInput],
        batched: bool,
        idle_timeout_s: float = 120.0,
        request_id: str = "",
    ) -> Iterator[Response]:
        """Send one request and give its responses as they come. `inputs` are values, or what `tensors` made of them.

        Raises `Failure` with the server's sentence for an error, and when nothing comes for `idle_timeout_s` seconds.
        Leaving the iteration early cancels the request.
        """
        arrived: queue.SimpleQueue[tuple[float, Any, Any]] = queue.SimpleQueue()
        self._client.start_stream(lambda result, error: arrived.put((time.perf_counter(), result, error)))
        self._streaming = True
        try:
            self._client.async_stream_infer(
                model,
                tensors(inputs, batched) if isinstance(inputs, Mapping) else inputs,
                request_id=request_id,
                enable_empty_final_response=True,
            )
            while True:
                try:
                    at, result, error = arrived.get(timeout=idle_timeout_s)
                except queue.Empty:
                    raise Failure(
                        f"nothing came from {self.url} for {idle_timeout_s:g} s: look at the server's log, or wait "
                        "longer with --timeout."
                    ) from None
                if error is not None:
                    raise self._failure(error, model)
                response = _response(at, result)
                yield response
                if response.final:
                    self._close(cancel=False)
                    return
        finally:
            self.cancel()

    def cancel(self) -> None:
        """End the stream; a request that is under way in it is cancelled at the server."""
        self._close(cancel=True)

    def _close(self, *, cancel: bool) -> None:
        # A stream that is complete is closed, not cancelled: Triton 24.10 keeps a request that is cancelled after its
        # final response, and with it the model.
        if self._streaming:
            self._streaming = False
            self._client.stop_stream(cancel_requests=cancel)

    def _failure(self, error: InferenceServerException, model: str) -> Failure:
        """A sentence for what the client library reports."""
        text = _REQUEST_ID.sub("", " ".join(str(error.message() or "").split())).rstrip(".")
        status = str(error.status() or "")
        if "UNAVAILABLE" in status and any(word in text for word in _NO_CONNECTION):
            return Failure(
                f"no server answers at {self.url}: start one with inflight serve, or name another with --url."
            )
        if "DEADLINE_EXCEEDED" in status:
            return Failure(f"the server at {self.url} did not answer in {_CALL_TIMEOUT_S:g} s: look at its log.")
        if lacks_model(text):
            return no_model(self.url, model, text)
        if "unexpected shape" in text:
            return Failure(f"the model {model!r} takes tensors of another shape: leave --shape at auto ({text}).")
        return Failure(f"{text or status}.")

    def __enter__(self) -> Connection:
        """Use as a context manager."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Cancel and close."""
        self.cancel()
        self._client.close()


def tensors(inputs: Mapping[str, Value], batched: bool) -> list[triton.InferInput]:
    """Inputs as they travel: for who sends the same ones again and again."""
    return [_tensor(name, value, batched) for name, value in inputs.items()]


def _tensor(name: str, value: Value, batched: bool) -> triton.InferInput:
    datatype, kind = _TYPES[_TYPE_OF[name]]
    items = list(value) if isinstance(value, Sequence) and not isinstance(value, (str, bytes)) else [value]
    array = np.array([item.encode() if isinstance(item, str) else item for item in items], dtype=kind)
    if batched:
        array = array.reshape(1, -1)
    tensor = triton.InferInput(name, list(array.shape), datatype)
    tensor.set_data_from_numpy(array)
    return tensor


def _response(at: float, result: Any) -> Response:
    answer = result.get_response()
    outputs = {output.name: result.as_numpy(output.name).ravel().tolist() for output in answer.outputs}
    return Response(at, outputs, bool(answer.parameters["triton_final_response"].bool_param))
