"""What the backend and its engine process say to each other: a closed set of msgpack messages, one in a frame.

A frame (`framing`) holds one msgpack array or map that msgspec decodes into exactly one of the structs below. Anything
else is an error, never an object of the sender's choice.
"""

from __future__ import annotations

import msgspec

from inflight.engine_process.framing import FrameError, pack
from inflight.engines.base import EngineInfo, EngineOutput, EngineRequest, EngineStats
from inflight.errors import ErrorCode

MAX_FRAME_BYTES = 64 << 20


class Hello(msgspec.Struct, tag="hello", frozen=True):
    """The engine process's first word: the one-time token proves that it is ours."""

    token: str
    pid: int


class Ready(msgspec.Struct, tag="ready", frozen=True):
    """The engine has loaded."""

    info: EngineInfo


class LoadFailed(msgspec.Struct, tag="load_failed", frozen=True):
    """The engine refused to load; `message` is the sentence for the operator."""

    message: str


class Outputs(msgspec.Struct, tag="outputs", frozen=True):
    """One iteration of the engine, as `pack_outputs` makes it.

    The common output, one more token of a request's first sequence and nothing else, travels as an entry of two
    parallel lists, which decode several times faster than a struct each. Readers take `ids`/`tokens` first, then
    `outputs`.
    """

    outputs: list[EngineOutput]
    stats: EngineStats
    ids: list[int] = []
    tokens: list[int] = []


class Refused(msgspec.Struct, tag="refused", frozen=True):
    """`Engine.add` raised, and the engine does not know the request. INTERNAL has no `message`."""

    request_id: int
    message: str
    parameter: str | None = None
    code: ErrorCode = ErrorCode.INVALID_ARG


class Add(msgspec.Struct, tag="add", frozen=True):
    """Start a request."""

    request: EngineRequest


class Cancel(msgspec.Struct, tag="cancel", frozen=True):
    """End a request early."""

    request_id: int


class Shutdown(msgspec.Struct, tag="shutdown", frozen=True):
    """Close the engine and leave."""


FromEngine = Hello | Ready | LoadFailed | Outputs | Refused
ToEngine = Add | Cancel | Shutdown


def pack_outputs(outputs: list[EngineOutput], stats: EngineStats) -> Outputs:
    """One iteration's frame. Keeps the order of the outputs of each sequence."""
    ids: list[int] = []
    tokens: list[int] = []
    others: list[EngineOutput] = []
    in_others: set[int] = set()
    for output in outputs:
        if (
            output.finish is None
            and len(output.token_ids) == 1
            and not output.sequence_index
            and output.logprobs is None
            and output.error is None
            and output.top_logprobs is None
            and output.reused_blocks is None
            and output.request_id not in in_others
        ):
            ids.append(output.request_id)
            tokens.append(output.token_ids[0])
        else:
            others.append(output)
            in_others.add(output.request_id)
    return Outputs(others, stats, ids, tokens)


_encoder = msgspec.msgpack.Encoder()
_from_engine = msgspec.msgpack.Decoder(Hello | Ready | LoadFailed | Refused | Outputs)
_to_engine = msgspec.msgpack.Decoder(Add | Cancel | Shutdown)


def encode(message: FromEngine | ToEngine) -> bytes:
    """One whole frame. Raises `FrameError` when it would be larger than any reader accepts."""
    return pack(_encoder.encode(message), MAX_FRAME_BYTES)


def decode_from_engine(body: bytes) -> FromEngine:
    """Raises `FrameError` for anything that is not one of the engine's messages."""
    try:
        message: FromEngine = _from_engine.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise FrameError(str(error)) from None
    return message


def decode_to_engine(body: bytes) -> ToEngine:
    """Raises `FrameError` for anything that is not one of the backend's messages."""
    try:
        message: ToEngine = _to_engine.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise FrameError(str(error)) from None
    return message
