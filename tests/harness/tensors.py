"""Values of a request as the tensors of KServe's protocol, and back."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any

import numpy as np
from tritonclient.grpc import service_pb2 as pb

from inflight.request.contract import INPUTS

_NUMPY: dict[str, Any] = {
    "BOOL": np.bool_,
    "INT32": np.int32,
    "INT64": np.int64,
    "UINT32": np.uint32,
    "UINT64": np.uint64,
    "FP32": np.float32,
}
_TYPE_OF = {name: item.type for item in INPUTS for name in (item.name, *item.aliases)}


def encode(values: Sequence[Any], datatype: str) -> bytes:
    """The raw content of a tensor."""
    if datatype != "BYTES":
        return bytes(np.array(values, dtype=_NUMPY[datatype]).tobytes())
    items = [value.encode() if isinstance(value, str) else bytes(value) for value in values]
    return b"".join(struct.pack("<I", len(item)) + item for item in items)


def decode(raw: bytes, datatype: str) -> list[Any]:
    """The flat values of a tensor; bytes for strings."""
    if datatype != "BYTES":
        return list(np.frombuffer(raw, dtype=_NUMPY[datatype]).tolist())
    values, at = [], 0
    while at < len(raw):
        (length,) = struct.unpack_from("<I", raw, at)
        values.append(raw[at + 4 : at + 4 + length])
        at += 4 + length
    return values


def add_input(
    request: pb.ModelInferRequest,
    name: str,
    value: Any,
    *,
    batched: bool = False,
    datatype: str | None = None,
    shape: Sequence[int] | None = None,
) -> None:
    """Add an input tensor, of the type that the contract gives it and the shape that the value has.

    `datatype`, `shape` and a value of type bytearray (the raw content itself) make requests that are wrong on purpose.
    """
    kind = datatype or _TYPE_OF.get(name, "STRING")
    kind = "BYTES" if kind == "STRING" else kind
    if isinstance(value, bytearray):
        raw, count = bytes(value), 1
    else:
        values = list(value) if isinstance(value, (list, tuple, np.ndarray)) else [value]
        raw, count = encode(values, kind), len(values)
    tensor = request.inputs.add(name=name, datatype=kind)
    tensor.shape.extend(shape if shape is not None else ([1, count] if batched else [count]))
    request.raw_input_contents.append(raw)


def outputs(response: pb.ModelInferResponse) -> dict[str, list[Any]]:
    """The outputs of a response as flat lists."""
    return {
        tensor.name: decode(raw, tensor.datatype)
        for tensor, raw in zip(response.outputs, response.raw_output_contents, strict=True)
    }
