"""Frames on a stream socket: 4 bytes little-endian length, then the body. What is in it is for others to say."""

from __future__ import annotations

import struct

_LENGTH = struct.Struct("<I")


class FrameError(Exception):
    """The other side does not speak our protocol."""


def pack(body: bytes, most_bytes: int) -> bytes:
    """One whole frame. Raises `FrameError` when its body is larger than `most_bytes`, which no reader accepts."""
    if len(body) > most_bytes:
        raise FrameError(_too_large(len(body), most_bytes))
    return _LENGTH.pack(len(body)) + body


class FrameBuffer:
    """Collects bytes as they arrive and gives whole frame bodies of at most `most_bytes` each."""

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self._buffer = bytearray()

    def __len__(self) -> int:
        """Bytes of a frame that is not complete yet."""
        return len(self._buffer)

    def feed(self, data: bytes) -> list[bytes]:
        """Add `data`; give each body that is now complete. Raises `FrameError` for a length beyond the cap."""
        self._buffer += data
        bodies = []
        start = 0
        while len(self._buffer) - start >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(self._buffer, start)
            if length > self._most_bytes:
                raise FrameError(_too_large(length, self._most_bytes))
            end = start + _LENGTH.size + length
            if len(self._buffer) < end:
                break
            bodies.append(bytes(self._buffer[start + _LENGTH.size : end]))
            start = end
        del self._buffer[:start]
        return bodies


def _too_large(size: int, most_bytes: int) -> str:
    return f"a frame of {size} bytes is larger than the {most_bytes} allowed"
