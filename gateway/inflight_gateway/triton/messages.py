"""Internal requests as Triton's protobuf, and its responses as events. Pure."""

from __future__ import annotations

import dataclasses
import struct
from array import array
from collections.abc import Sequence
from typing import Any

import msgspec
from google.protobuf.message import DecodeError
from tritonclient.grpc import service_pb2 as pb

from inflight_gateway.core.events import CallDelta, Event, ModelRequest

_json = msgspec.json.Encoder()


class _Function(msgspec.Struct):
    name: str = ""
    arguments: str = ""


class _Call(msgspec.Struct):
    index: int = 0
    id: str = ""
    function: _Function = msgspec.field(default_factory=_Function)


_calls = msgspec.json.Decoder(list[_Call])
_logprobs = msgspec.json.Decoder(list[dict[str, Any]])


def encode(request: ModelRequest, request_id: str, batched: bool) -> Any:
    """A ModelInferRequest; `batched`: the model has max_batch_size 1."""
    message = pb.ModelInferRequest(model_name=request.model, id=request_id)
    lead = [1] if batched else []

    def add(name: str, kind: str, count: int, raw: bytes) -> None:
        message.inputs.append(pb.ModelInferRequest.InferInputTensor(name=name, datatype=kind, shape=[*lead, count]))
        message.raw_input_contents.append(raw)

    def text(name: str, value: bytes) -> None:
        add(name, "BYTES", 1, struct.pack("<I", len(value)) + value)

    if request.messages is not None:
        text("messages", request.messages)
    elif request.text is not None:
        text("text_input", request.text.encode())
    elif request.token_ids is not None:
        add("input_ids", "INT32", len(request.token_ids), array("i", request.token_ids).tobytes())
    if request.tools is not None:
        text("tools", request.tools)
    options = {"stream": True, "return_finish_reason": True, "return_num_input_tokens": True}
    options |= {"return_num_output_tokens": True}
    text("sampling_parameters", _json.encode(options | dict(request.options)))
    return message


class Reader:
    """Reads the responses of one stream.

    What stands before the values of a response (the model's name, the request's id, the outputs' names and shapes) is
    nearly always what it was before. So it is parsed once for each of its forms, and then compared: half of
    what protobuf's objects cost.
    """

    __slots__ = ("_forms",)

    def __init__(self) -> None:
        self._forms: list[_Form] = []

    def read(self, message: bytes) -> Event | str:
        """The event in a serialized ModelStreamInferResponse, or the text of the error in it.

        Raises `ValueError` for what is no such message.
        """
        for form in self._forms:
            values = form.values(message)
            if values is not None:
                return _event(form.names, values, form.final)
        try:
            parsed = pb.ModelStreamInferResponse.FromString(message)
        except DecodeError as error:
            raise ValueError(f"no ModelStreamInferResponse: {error}") from None
        if parsed.error_message:
            return str(parsed.error_message)
        response = parsed.infer_response
        names = tuple(output.name for output in response.outputs)
        final = False
        if "triton_final_response" in response.parameters:
            final = bool(response.parameters["triton_final_response"].bool_param)
        values = list(response.raw_output_contents)
        if len(values) != len(names):
            raise ValueError(f"{len(names)} outputs have {len(values)} values")
        form = _Form(_head(message, values), names, final)
        if form.values(message) == values:
            self._forms.insert(0, form)
            del self._forms[_MOST_FORMS:]
        return _event(names, values, final)


_MOST_FORMS = 4  # of one stream: with log-probabilities and ids the shapes differ from response to response


@dataclasses.dataclass(frozen=True, slots=True)
class _Form:
    """What stands before the values of a response, as bytes; the outputs' names in their order; whether it is final."""

    head: bytes
    names: tuple[str, ...]
    final: bool

    def values(self, message: bytes) -> list[bytes] | None:
        """The outputs' values in a message of this form; None where it has another one."""
        if message[:1] != b"\x12":  # infer_response
            return None
        length, at = _varint(message, 1)
        end = at + length
        if end != len(message) or not message.startswith(self.head, at):
            return None
        at += len(self.head)
        values: list[bytes] = []
        while at < end:
            if message[at] != 0x32:  # raw_output_contents
                return None
            length = message[at + 1] if at + 1 < end else 0x80
            at += 2
            if length >= 0x80:  # more than a byte
                length, at = _varint(message, at - 1)
            values.append(message[at : at + length])
            at += length
        return values if at == end and len(values) == len(self.names) else None


def _head(message: bytes, values: Sequence[bytes]) -> bytes:
    """What stands in an infer_response before its values, if they are its end (`_Form.values` tells whether so)."""
    size = sum(1 + (max(len(value).bit_length(), 1) + 6) // 7 + len(value) for value in values)
    _, at = _varint(message, 1)
    return message[at : len(message) - size]


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """The number that begins there, and where it ends. Past the end of `data` it is 0 of one byte."""
    value = shift = 0
    while at < len(data):
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
    return 0, at


def _event(names: Sequence[str], values: Sequence[bytes], last: bool) -> Event:
    event = Event(0, last=last)
    for name, raw in zip(names, values, strict=True):
        if name == "text_output":
            event.text = _text(raw)
        elif name == "finish_reason":
            event.finish = _text(raw)
        elif name == "num_output_tokens":
            event.tokens = _number(raw) if len(raw) == 4 else sum(array("I", raw))
        elif name == "num_input_tokens":
            event.prompt_tokens = _number(raw)
        elif name == "sequence_index":
            event.choice = array("i", raw)[0] if raw else 0
        elif name == "stop_reason":
            event.stop_reason = _text(raw)
        elif name == "reasoning_output":
            event.reasoning = _text(raw)
        elif name == "tool_calls":
            said = _text(raw)
            if said:
                event.calls = tuple(
                    CallDelta(call.index, call.id, call.function.name, call.function.arguments)
                    for call in _calls.decode(said)
                )
        elif name == "output_ids":
            event.token_ids = tuple(array("i", raw))
        elif name == "logprobs":
            said = _text(raw)
            event.logprobs = tuple(_logprobs.decode(said)) if said else ()
        elif name == "num_cached_tokens":
            event.cached_tokens = _number(raw) if raw else None
        elif name == "model_info":
            event.info = _text(raw)
    return event


def _number(raw: bytes) -> int:
    """The first element of a UINT32 tensor; 0 where there is none."""
    return int.from_bytes(raw[:4], "little")


def _text(raw: bytes) -> str:
    """The first element of a BYTES tensor."""
    if len(raw) <= 4:
        return ""
    return raw[4 : 4 + int.from_bytes(raw[:4], "little")].decode()
