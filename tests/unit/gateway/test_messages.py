"""Responses are read as protobuf reads them, whichever order of forms they come in."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tritonclient.grpc import service_pb2 as pb

from inflight_gateway.core.events import Event
from inflight_gateway.triton.messages import Reader

TEXTS = ("text_output", "finish_reason", "stop_reason", "reasoning_output", "model_info")
NUMBERS = ("num_input_tokens", "num_cached_tokens", "num_output_tokens")


def serialized(values: dict[str, Any], final: bool | None, **more: Any) -> bytes:
    found = pb.ModelInferResponse(model_name="llm", model_version="1", id="abc")
    if final is not None:
        found.parameters["triton_final_response"].bool_param = final
    for name, value in values.items():
        if isinstance(value, str):
            raw, kind, shape = struct.pack("<I", len(value.encode())) + value.encode(), "BYTES", 1
        else:
            raw, kind, shape = b"".join(struct.pack("<I", one) for one in value), "UINT32", len(value)
        found.outputs.add(name=name, datatype=kind, shape=[shape])
        found.raw_output_contents.append(raw)
    for name, value in more.items():
        setattr(found, name, value)
    return bytes(pb.ModelStreamInferResponse(infer_response=found).SerializeToString())


def expected(values: dict[str, Any], final: bool | None) -> Event:
    event = Event(0, last=bool(final))
    names = {"text_output": "text", "finish_reason": "finish", "reasoning_output": "reasoning", "model_info": "info"}
    for name, value in values.items():
        if isinstance(value, str):
            setattr(event, names.get(name, name), value)
        elif name == "num_output_tokens":
            event.tokens = sum(value)
        elif name == "num_input_tokens":
            event.prompt_tokens = value[0]
        elif name == "num_cached_tokens":
            event.cached_tokens = value[0]
        else:
            event.token_ids = tuple(value)
    return event


NUMBER = st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=1)
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=200)
RESPONSES = st.tuples(
    st.dictionaries(st.sampled_from(TEXTS), TEXT).flatmap(
        lambda texts: st.dictionaries(st.sampled_from(NUMBERS), NUMBER).map(lambda numbers: texts | numbers)
    ),
    st.lists(st.integers(0, 2**31 - 1), max_size=40),
    st.sampled_from([None, False, True]),
)


@given(st.lists(RESPONSES, min_size=1, max_size=8))
def test_whatever_comes_in_whatever_order_is_read_as_it_was_written(
    responses: Sequence[tuple[dict[str, Any], list[int], bool | None]],
) -> None:
    reader = Reader()
    for values, ids, final in [*responses, *responses]:  # the second time in forms that are known
        said = values | ({"output_ids": ids} if ids else {})
        assert reader.read(serialized(said, final)) == expected(said, final)


def test_forms_are_learnt_and_few_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    reader = Reader()
    same = [serialized({"text_output": "x" * size, "num_output_tokens": [size]}, False) for size in (0, 1, 200, 70_000)]
    assert isinstance(reader.read(same[0]), Event)
    with monkeypatch.context() as patched:
        patched.setattr(pb.ModelStreamInferResponse, "FromString", None, raising=False)
        assert [reader.read(one).tokens for one in same] == [0, 1, 200, 70_000]  # type: ignore[union-attr]
    for count in range(50):
        reader.read(serialized({"output_ids": list(range(count))}, False))
    assert len(reader._forms) < 10


def test_errors_and_broken_messages_are_told_also_within_a_stream() -> None:
    reader = Reader()
    good = serialized({"text_output": "hello", "finish_reason": ""}, False)
    for _ in range(2):
        assert isinstance(reader.read(good), Event)
        assert reader.read(bytes(pb.ModelStreamInferResponse(error_message="no").SerializeToString())) == "no"
        for cut in range(1, len(good)):
            with pytest.raises(ValueError, match=r"."):
                reader.read(good[:cut])
        for broken in (serialized({"text_output": "a"}, False).replace(b"\x32\x05", b"\x32\x7f"), b"\x12\x80", b"\x12"):
            with pytest.raises(ValueError, match=r"."):
                reader.read(broken)
    response = pb.ModelInferResponse(model_name="llm")
    response.outputs.add(name="text_output", datatype="BYTES", shape=[1])
    with pytest.raises(ValueError, match="1 outputs have 0 values"):
        reader.read(bytes(pb.ModelStreamInferResponse(infer_response=response).SerializeToString()))


def test_a_message_that_holds_both_an_error_and_a_response_is_an_error() -> None:
    reader = Reader()
    good = serialized({"text_output": "hello"}, False)
    both = good + bytes(pb.ModelStreamInferResponse(error_message="no").SerializeToString())
    assert isinstance(reader.read(good), Event)
    assert reader.read(both) == "no"
