from __future__ import annotations

import struct
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from inflight.engine_process import frames
from inflight.engine_process.frames import decode_from_engine, decode_to_engine, encode
from inflight.engine_process.framing import FrameBuffer, FrameError
from inflight.engines.base import Capability, EngineOutput, EngineStats, FinishReason, Guide
from tests.unit.machines.strategies import budget, cuts, engine_request, info

pytestmark = pytest.mark.fast

IDS = st.integers(0, 2**31)
TEXTS = st.text(max_size=12)
OUTPUTS = st.builds(
    EngineOutput,
    IDS,
    st.integers(0, 64),
    st.lists(IDS, max_size=5),
    st.none() | st.sampled_from(FinishReason),
    st.none() | TEXTS,
    st.none() | st.lists(st.floats(allow_nan=False), max_size=3),
    st.none() | st.lists(st.dictionaries(IDS, st.floats(allow_nan=False), max_size=3), max_size=3),
)
FROM_ENGINE: st.SearchStrategy[Any] = st.one_of(
    st.builds(frames.Hello, TEXTS, IDS),
    st.builds(lambda names: frames.Ready(info(capabilities=names)), st.frozensets(st.sampled_from(Capability))),
    st.builds(frames.LoadFailed, TEXTS),
    st.builds(
        lambda outputs, used: frames.Outputs(outputs, EngineStats(blocks_used=used)), st.lists(OUTPUTS, max_size=5), IDS
    ),
    st.builds(frames.Refused, IDS, TEXTS, st.none() | TEXTS),
)
TO_ENGINE: st.SearchStrategy[Any] = st.one_of(
    st.builds(
        lambda ids, seed, guide: frames.Add(
            msgspec.structs.replace(engine_request(1, token_ids=ids, seed=seed, stop_token_ids=(1, 2)), guide=guide)
        ),
        st.lists(IDS, min_size=1, max_size=8),
        st.integers(0, 2**64 - 1),
        st.none() | st.builds(Guide, TEXTS, TEXTS),
    ),
    st.builds(frames.Cancel, IDS),
    st.just(frames.Shutdown()),
)


@given(data=st.data(), messages=st.lists(FROM_ENGINE, max_size=4))
@budget(150)
def test_what_the_engine_says_arrives_whole_however_the_socket_cuts_it(
    data: st.DataObject, messages: list[Any]
) -> None:
    buffer = FrameBuffer(frames.MAX_FRAME_BYTES)
    stream = b"".join(map(encode, messages))
    bodies = [body for piece in data.draw(cuts(stream)) for body in buffer.feed(bytes(piece))]
    assert [decode_from_engine(body) for body in bodies] == messages


@given(data=st.data(), messages=st.lists(TO_ENGINE, max_size=4))
@budget(150)
def test_what_the_engine_is_told_arrives_whole_however_the_socket_cuts_it(
    data: st.DataObject, messages: list[Any]
) -> None:
    buffer = FrameBuffer(frames.MAX_FRAME_BYTES)
    stream = b"".join(map(encode, messages))
    bodies = [body for piece in data.draw(cuts(stream)) for body in buffer.feed(bytes(piece))]
    assert [decode_to_engine(body) for body in bodies] == messages


def closed_set(body: bytes) -> None:
    """Each decoder gives one of its own messages or a `FrameError`; nothing else ever comes out."""
    for decode, known in (
        (decode_from_engine, (frames.Hello, frames.Ready, frames.LoadFailed, frames.Outputs, frames.Refused)),
        (decode_to_engine, (frames.Add, frames.Cancel, frames.Shutdown)),
    ):
        try:
            message = decode(body)  # type: ignore[operator]
        except FrameError:
            continue
        assert isinstance(message, known)


@given(st.binary(max_size=64))
@budget(300)
def test_garbage_is_a_frame_error(body: bytes) -> None:
    closed_set(body)


@given(data=st.data(), message=FROM_ENGINE | TO_ENGINE)
@budget(300)
def test_a_broken_message_is_a_frame_error(data: st.DataObject, message: Any) -> None:
    body = bytearray(encode(message)[4:])
    for _ in range(data.draw(st.integers(1, 3))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    closed_set(bytes(body))


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xc1",
        b"\x90",
        b"\x81\xa4type\xa7unknown",
        b"\x82\xa4type\xa6cancel\xaarequest_id\xa1x",
        b"\x91" * 100_000,
        b"\x82\xa4type\xa8shutdown\xa1x" + b"\x91" * 100_000 + b"\xc0",  # a field nobody knows, beyond any stack
        b"\x83\xa4type\xa5hello\xa5token\xa2\xff\xff\xa3pid\x01",
    ],
    ids=[
        "empty",
        "unused opcode",
        "array",
        "unknown tag",
        "wrong type",
        "deep",
        "deep in an unknown field",
        "no UTF-8",
    ],
)
def test_bodies_that_nobody_sends(body: bytes) -> None:
    with pytest.raises(FrameError):
        decode_from_engine(body)
    try:
        decode_to_engine(body)
    except FrameError:
        return
    assert body.startswith(b"\x82\xa4type\xa8shutdown")


def test_messages_of_one_direction_are_no_messages_of_the_other() -> None:
    with pytest.raises(FrameError):
        decode_from_engine(encode(frames.Shutdown())[4:])
    with pytest.raises(FrameError):
        decode_to_engine(encode(frames.Hello("t", 1))[4:])


def test_a_frame_beyond_the_cap_is_refused_by_its_length_alone() -> None:
    buffer = FrameBuffer(frames.MAX_FRAME_BYTES)
    with pytest.raises(FrameError, match="larger"):
        buffer.feed(struct.pack("<I", frames.MAX_FRAME_BYTES + 1))
    assert FrameBuffer(frames.MAX_FRAME_BYTES).feed(struct.pack("<I", frames.MAX_FRAME_BYTES)) == []


def test_a_message_that_no_reader_would_take_is_not_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frames, "MAX_FRAME_BYTES", 256)
    encode(frames.LoadFailed("x" * 200))
    with pytest.raises(FrameError, match="larger"):
        encode(frames.LoadFailed("x" * 300))


def test_bytes_that_were_read_are_not_kept() -> None:
    buffer = FrameBuffer(frames.MAX_FRAME_BYTES)
    frame = encode(frames.Cancel(1))
    for _ in range(1000):
        assert len(buffer.feed(frame * 3 + frame[:2])) == 3
        assert len(buffer.feed(frame[2:])) == 1
    assert len(buffer._buffer) == 0
