"""Internal requests as Triton's protobuf, and its responses as events. Pure."""

from __future__ import annotations

import struct
from array import array
from typing import Any

import msgspec
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


def decode(response: Any) -> tuple[Event, bool]:
    """The event in a ModelInferResponse of a stream, and whether it is the last one. Raises `ValueError`."""
    event = Event(0)
    for place, output in enumerate(response.outputs):
        raw = response.raw_output_contents[place]
        name = output.name
        if name == "text_output":
            event.text = _text(raw)
        elif name == "finish_reason":
            event.finish = _text(raw)
        elif name == "num_output_tokens":
            event.tokens = sum(array("I", raw))
        elif name == "num_input_tokens":
            event.prompt_tokens = array("I", raw)[0] if raw else 0
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
            event.cached_tokens = array("I", raw)[0] if raw else None
        elif name == "model_info":
            event.info = _text(raw)
    final = response.parameters.get("triton_final_response") if "triton_final_response" in response.parameters else None
    return event, bool(final is not None and final.bool_param)


def _text(raw: bytes) -> str:
    """The first element of a BYTES tensor."""
    if len(raw) < 4:
        return ""
    return raw[4 : 4 + int.from_bytes(raw[:4], "little")].decode()
