"""Between Triton's requests and responses and ours: the only module of the package that knows
`triton_python_backend_utils`.
"""

from __future__ import annotations

import json
import secrets
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from inflight.answer.stream import Reply, Stream
from inflight.errors import ErrorCode, RequestError, invalid, sendable
from inflight.identity import Identity, Trace, parse_traceparent, plain_id
from inflight.request.parse import RawRequest

_FINAL = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL
_CODES = {
    ErrorCode.INVALID_ARG: pb_utils.TritonError.INVALID_ARG,
    ErrorCode.UNSUPPORTED: pb_utils.TritonError.UNSUPPORTED,
    ErrorCode.UNAVAILABLE: pb_utils.TritonError.UNAVAILABLE,
    ErrorCode.CANCELLED: pb_utils.TritonError.CANCELLED,
    ErrorCode.INTERNAL: pb_utils.TritonError.INTERNAL,
}


_KEPT_TEXTS = ("", "[]")  # no end yet, no thought, no call: what most responses say
_KEPT_COUNTS = range(1, 64)


class _Kept(threading.local):
    """Tensors that thousands of responses have alike, by name, rank and value. Triton's stub serialises each and writes
    it into shared memory once, and counts who reads it there. It does so without a lock: each thread has its own.
    """

    def __init__(self) -> None:
        self.tensors: dict[tuple[str, int, str | int], Any] = {}


_kept = _Kept()


def parameters_of(request: Any) -> dict[str, Any]:
    """The request parameters, among them the headers that Triton forwards."""
    text = request.parameters()
    return json.loads(text) if text else {}


def identity_of(request: Any, parameters: Mapping[str, Any]) -> Identity:
    """Who a request is: Triton's id of it, else the header x-request-id, else one of ours; and its trace, which is
    Triton's own where the server traces, else that of the header traceparent.
    """
    found = plain_id(request.request_id()) or plain_id(parameters.get("x-request-id")) or new_request_id()
    return Identity(found, _traced_by_triton(request) or parse_traceparent(parameters.get("traceparent")))


def _traced_by_triton(request: Any) -> Trace | None:
    """The trace that Triton records this request in, with its span of the model as the parent."""
    trace = request.trace()
    context = trace.get_context() if trace is not None else None
    return parse_traceparent(json.loads(context).get("traceparent")) if context else None


def read_request(
    request: Any, parameters: Mapping[str, Any], identity: Identity, batched: bool, most_items: int
) -> RawRequest:
    """Copy everything out of a Triton request, so that its shared memory can be given back at once.

    Raises INVALID_ARG for a tensor of more than `most_items` values: as Python's objects they would take eight times
    the memory.
    """
    tensors: dict[str, Sequence[Any]] = {}
    for tensor in request.inputs():
        values = tensor.as_numpy().ravel()
        if values.size > most_items:
            raise invalid(tensor.name(), f"has {values.size} values; this model takes at most {most_items}")
        tensors[tensor.name()] = values.tolist()
    return RawRequest(tensors, parameters, request.timeout(), identity, batched)


def new_request_id() -> str:
    """An id for a request whose client gave none: 64 random bits."""
    return secrets.token_hex(8)


class TritonResponder:
    """Builds responses and sends them. The live stream's lock serialises all calls.

    With `batched` (max_batch_size 1) every output is [1, n], but for `text_output`: TensorRT-LLM's models send that one
    as [n], and NVIDIA's clients and those made after them index it so. Triton's core takes either. With `empty_final`
    the end comes in a response of its own, which has no outputs.
    """

    __slots__ = ("_empty_final", "_last", "_rank", "_sender")

    def __init__(self, sender: Any, batched: bool, empty_final: bool) -> None:
        self._sender = sender
        self._rank = 2 if batched else 1
        self._empty_final = empty_final
        self._last: dict[str, tuple[int, Any]] = {}  # what stays from one response to the next: value and tensor

    def send(self, stream: Stream, reply: Reply, final: bool) -> None:
        """One response; with `final`, the last."""
        response = pb_utils.InferenceResponse(self._tensors(stream, reply))
        if not (final and self._empty_final):
            self._sender.send(response, _FINAL if final else 0)
            return
        try:
            self._sender.send(response, 0)
        finally:
            self._sender.send(flags=_FINAL)  # whatever became of the last outputs, the request has its end

    def fail(self, error: RequestError) -> None:
        """An error as the one terminal response."""
        triton_error = pb_utils.TritonError(sendable(error.message), _CODES[error.code])
        self._sender.send(pb_utils.InferenceResponse([], triton_error), _FINAL)

    def is_cancelled(self) -> bool:
        """Whether the client has left."""
        return bool(self._sender.is_cancelled())

    def _tensors(self, stream: Stream, reply: Reply) -> list[Any]:
        request = stream.request
        texts = np.array([text.encode() for text in reply.texts], dtype=np.object_)
        tensors = [pb_utils.Tensor("text_output", texts)]
        if request.return_finish_reason:
            tensors.append(self._strings("finish_reason", reply.finishes))
            tensors.append(self._strings("stop_reason", reply.stops))
        if request.reasoning:
            tensors.append(self._strings("reasoning_output", reply.thoughts))
        if request.chat.tools:
            tensors.append(self._strings("tool_calls", reply.calls))
        if request.num_sequences > 1 or request.beam_width > 1:
            tensors.append(self._array("sequence_index", reply.indices, np.int32))
        if request.return_token_ids or request.return_log_probs:
            tensors.append(self._array("output_ids", reply.token_ids, np.int32))
        if request.return_cumulative_logprob:
            tensors.append(self._array("cumulative_logprob", reply.cumulative_logprobs, np.float32))
        if request.return_cumulative_logprob or request.return_log_probs:
            tensors.append(self._array("cum_log_probs", reply.cumulative_logprobs, np.float32))
        if request.return_log_probs:
            tensors.append(self._array("output_log_probs", reply.logprobs, np.float32))
        if request.return_logprobs_json:
            tensors.append(self._strings("logprobs", reply.top_logprobs))
        if request.return_num_input_tokens:
            tensors.append(self._same("num_input_tokens", stream.num_input_tokens))
            if reply.timing is not None and reply.timing.reused_blocks is not None and stream.block_size:
                cached = min(reply.timing.reused_blocks * stream.block_size, stream.num_input_tokens)
                tensors.append(self._array("num_cached_tokens", [cached], np.uint32))
        has_borders = len(reply.texts) > 1 and (request.return_token_ids or request.return_log_probs)
        if request.return_num_output_tokens or has_borders:
            tensors.append(self._counts("num_output_tokens", reply.num_output_tokens))
        if request.return_model_info and reply.timing is not None:
            tensors.append(self._strings("model_info", [stream.model_info]))
        if request.return_perf_metrics and reply.timing is not None:
            timing = reply.timing
            for name, value in (
                ("arrival_time_ns", timing.arrival_ns),
                ("first_scheduled_time_ns", timing.scheduled_ns),
                ("first_token_time_ns", timing.first_token_ns),
                ("last_token_time_ns", timing.last_token_ns),
            ):
                tensors.append(self._array(name, [value], np.int64))
            if timing.reused_blocks is not None:
                tensors.append(self._array("kv_cache_reused_block", [timing.reused_blocks], np.int32))
        return tensors

    def _array(self, name: str, values: Sequence[Any], dtype: Any) -> Any:
        array = np.array(values, dtype=dtype)
        return pb_utils.Tensor(name, array.reshape(1, -1) if self._rank == 2 else array)

    def _strings(self, name: str, values: Sequence[str]) -> Any:
        if len(values) == 1 and values[0] in _KEPT_TEXTS:
            return self._common(name, values[0], values[0].encode(), np.object_)
        return self._array(name, [value.encode() for value in values], np.object_)

    def _counts(self, name: str, values: Sequence[int]) -> Any:
        if len(values) == 1 and values[0] in _KEPT_COUNTS:
            return self._common(name, values[0], values[0], np.uint32)
        return self._array(name, values, np.uint32)

    def _same(self, name: str, value: int) -> Any:
        last = self._last.get(name)
        if last is None or last[0] != value:
            last = self._last[name] = value, self._array(name, [value], np.uint32)
        return last[1]

    def _common(self, name: str, key: str | int, value: Any, dtype: Any) -> Any:
        tensors, place = _kept.tensors, (name, self._rank, key)
        found = tensors.get(place)
        if found is None:
            found = tensors[place] = self._array(name, [value], dtype)
        return found
