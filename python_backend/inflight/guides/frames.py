"""What the backend and the process that checks guides say to each other: four msgpack messages over a socket pair, in
turns, one in a frame.
"""

from __future__ import annotations

import socket
import time

import msgspec

from inflight.engine_process.framing import FrameBuffer, FrameError, pack
from inflight.grammar.thought import Thought

MAX_FRAME_BYTES = 4 << 20
RECEIVE_BYTES = 1 << 18


class Start(msgspec.Struct, tag="start", frozen=True):
    """The first word to the process: which engine's compiler to use. `spare_bytes` is the address space that a check
    may add to what the process has when it is ready.
    """

    engine: str
    engine_dir: str
    spare_bytes: int


class Check(msgspec.Struct, tag="check", frozen=True):
    """Check one guide, behind a thought."""

    kind: str
    text: str
    thought: Thought | None = None


class Ready(msgspec.Struct, tag="ready", frozen=True):
    """The process can check. `refusal` tells why it cannot, and never will be able to, for this model. `vocab_size` is
    the compiler's, in tokens: what a guide costs grows with it. 0: nothing is compiled.
    """

    refusal: str = ""
    vocab_size: int = 0


class Verdict(msgspec.Struct, tag="verdict", frozen=True):
    """What became of a guide: `grammar` for the engine, or `problem` (it completes "guided_decoding_guide …").

    What the engine's compiler took: `compile_s` of processor time and `wall_s` by the clock, in seconds, while others
    had the share `others` of all processors.
    `last` says that the process leaves now; a new one is needed for the next check.
    """

    grammar: str = ""
    problem: str = ""
    compile_s: float = 0.0
    wall_s: float = 0.0
    others: float = 0.0
    last: bool = False


_encoder = msgspec.msgpack.Encoder()
_to_worker = msgspec.msgpack.Decoder(Start | Check)
_from_worker = msgspec.msgpack.Decoder(Ready | Verdict)


class LinkError(Exception):
    """The other side is gone, or does not speak this protocol."""


def send(connection: socket.socket, message: Start | Check | Ready | Verdict) -> None:
    """Raises `LinkError`, also for a message that is too large."""
    try:
        connection.sendall(pack(_encoder.encode(message), MAX_FRAME_BYTES))
    except (OSError, FrameError) as error:
        raise LinkError(str(error)) from None


def receive_in_worker(connection: socket.socket) -> Start | Check:
    """The next message, however long it takes. Raises `LinkError`."""
    try:
        message: Start | Check = _to_worker.decode(_receive(connection, None))
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise LinkError(str(error)) from None
    return message


def receive_from_worker(connection: socket.socket, deadline: float) -> Ready | Verdict:
    """The next message. Raises `LinkError`, and `TimeoutError` when it is not complete at `deadline` (monotonic)."""
    try:
        message: Ready | Verdict = _from_worker.decode(_receive(connection, deadline))
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise LinkError(str(error)) from None
    return message


def _receive(connection: socket.socket, deadline: float | None) -> bytes:
    """The one frame that is due: the two sides speak in turns."""
    buffer = FrameBuffer(MAX_FRAME_BYTES)
    while True:
        left = None if deadline is None else max(deadline - time.monotonic(), 0.001)
        try:
            connection.settimeout(left)
            data = connection.recv(RECEIVE_BYTES)
            bodies = buffer.feed(data)
        except TimeoutError:
            raise
        except (OSError, FrameError) as error:
            raise LinkError(str(error)) from None
        if not data:
            raise LinkError("the connection is closed")
        if len(bodies) > 1 or (bodies and len(buffer)):
            raise LinkError("the other side spoke out of turn")
        if bodies:
            return bodies[0]
