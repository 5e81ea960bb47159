"""What the backend and the process that checks guides say to each other: four msgpack messages over a socket pair,
length-prefixed and capped.
"""

from __future__ import annotations

import socket
import struct
import time

import msgspec

MAX_FRAME_BYTES = 4 << 20
_LENGTH = struct.Struct("<I")


class Start(msgspec.Struct, tag="start", frozen=True):
    """The first word to the process: which engine's compiler to use. `spare_bytes` is the address space that a check
    may add to what the process has when it is ready.
    """

    engine: str
    engine_dir: str
    spare_bytes: int


class Check(msgspec.Struct, tag="check", frozen=True):
    """Check one guide."""

    kind: str
    text: str


class Ready(msgspec.Struct, tag="ready", frozen=True):
    """The process can check. `refusal` tells why it cannot, and never will be able to, for this model."""

    refusal: str = ""


class Verdict(msgspec.Struct, tag="verdict", frozen=True):
    """What became of a guide: `grammar` for the engine, or `problem` (it completes "guided_decoding_guide …").

    `compile_s` is what the engine's compiler took: the smaller one of its wall-clock and processor time, in seconds.
    `last` says that the process leaves now; a new one is needed for the next check.
    """

    grammar: str = ""
    problem: str = ""
    compile_s: float = 0.0
    last: bool = False


_encoder = msgspec.msgpack.Encoder()
_to_worker = msgspec.msgpack.Decoder(Start | Check)
_from_worker = msgspec.msgpack.Decoder(Ready | Verdict)


class LinkError(Exception):
    """The other side is gone, or does not speak this protocol."""


def send(connection: socket.socket, message: Start | Check | Ready | Verdict) -> None:
    """Raises `LinkError`, also for a message that is too large."""
    body = _encoder.encode(message)
    if len(body) > MAX_FRAME_BYTES:
        raise LinkError(f"a message of {len(body)} bytes is too large")
    try:
        connection.sendall(_LENGTH.pack(len(body)) + body)
    except OSError as error:
        raise LinkError(str(error)) from None


def receive_in_worker(connection: socket.socket) -> Start | Check:
    """The next message, however long it takes. Raises `LinkError`."""
    return _decode_to_worker(_receive(connection, None))


def receive_from_worker(connection: socket.socket, deadline: float) -> Ready | Verdict:
    """The next message. Raises `LinkError`, and `TimeoutError` when it is not complete at `deadline` (monotonic)."""
    return _decode_from_worker(_receive(connection, deadline))


def _decode_to_worker(body: bytes) -> Start | Check:
    try:
        message: Start | Check = _to_worker.decode(body)
    except msgspec.MsgspecError as error:
        raise LinkError(str(error)) from None
    return message


def _decode_from_worker(body: bytes) -> Ready | Verdict:
    try:
        message: Ready | Verdict = _from_worker.decode(body)
    except msgspec.MsgspecError as error:
        raise LinkError(str(error)) from None
    return message


def _receive(connection: socket.socket, deadline: float | None) -> bytes:
    (length,) = _LENGTH.unpack(_exactly(connection, _LENGTH.size, deadline))
    if length > MAX_FRAME_BYTES:
        raise LinkError(f"a message of {length} bytes is too large")
    return _exactly(connection, length, deadline)


def _exactly(connection: socket.socket, count: int, deadline: float | None) -> bytes:
    data = b""
    while len(data) < count:
        left = None if deadline is None else max(deadline - time.monotonic(), 0.001)
        try:
            connection.settimeout(left)
            more = connection.recv(count - len(data))
        except TimeoutError:
            raise
        except OSError as error:
            raise LinkError(str(error)) from None
        if not more:
            raise LinkError("the connection is closed")
        data += more
    return data
