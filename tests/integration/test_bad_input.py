"""What a client may get wrong: one clear error that names the parameter, and a server that goes on."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from inflight_tools.server.server import Server
from tests.harness.grpc_client import GrpcClient, RequestFailed
from tests.harness.http_client import HttpClient
from tests.harness.tensors import add_input

pytestmark = pytest.mark.server

MESSAGES = json.dumps([{"role": "user", "content": "Hi"}])
TOO_LONG = "word " * 20_000

# what is wrong, the inputs, the parameter that the message must name
REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("no prompt", {"max_tokens": 4}, "text_input"),
    ("two prompts", {"text_input": "a", "messages": MESSAGES}, "messages"),
    ("text and ids", {"text_input": "a", "input_ids": [1, 2]}, "input_ids"),
    ("empty text", {"text_input": ""}, "text_input"),
    ("no ids", {"input_ids": []}, "input_ids"),
    ("text that is no UTF-8", {"text_input": b"caf\xe9"}, "text_input"),
    ("a NUL in the text", {"text_input": "a\0b"}, "text_input"),
    ("a prompt beyond the context", {"text_input": TOO_LONG}, "text_input"),
    ("ids beyond the context", {"input_ids": [5] * 20_000}, "input_ids"),
    ("a negative id", {"input_ids": [5, -1]}, "input_ids"),
    ("an id beyond the vocabulary", {"input_ids": [5, 10_000_000]}, "input_ids"),
    ("max_tokens -1", {"text_input": "a", "max_tokens": -1}, "max_tokens"),
    ("max_tokens -1", {"text_input": "a", "max_tokens": -1}, "max_tokens"),
    ("min_tokens above max_tokens", {"text_input": "a", "max_tokens": 2, "min_tokens": 3}, "min_tokens"),
    ("a temperature below 0", {"text_input": "a", "temperature": -0.5}, "temperature"),
    ("a temperature that is no number", {"text_input": "a", "temperature": float("nan")}, "temperature"),
    ("an infinite penalty", {"text_input": "a", "repetition_penalty": float("inf")}, "repetition_penalty"),
    ("top_p 0", {"text_input": "a", "top_p": 0.0}, "top_p"),
    ("top_k -2", {"text_input": "a", "top_k": -2}, "top_k"),
    ("a priority out of range", {"text_input": "a", "request_priority": 101}, "request_priority"),
    ("a deadline of 0", {"text_input": "a", "deadline_ms": 0}, "deadline_ms"),
    ("too many sequences", {"text_input": "a", "num_return_sequences": 1000}, "num_return_sequences"),
    ("stop strings that are no UTF-8", {"text_input": "a", "stop_words": [b"\xff"]}, "stop_words"),
    ("too many stop strings", {"text_input": "a", "stop_words": [f"s{n}" for n in range(65)]}, "stop_words"),
    (
        "an unknown kind of guide",
        {"text_input": "a", "guided_decoding_guide_type": "xml"},
        "guided_decoding_guide_type",
    ),
    ("a guide without its kind", {"text_input": "a", "guided_decoding_guide": "{}"}, "guided_decoding_guide_type"),
    ("a kind without its guide", {"text_input": "a", "guided_decoding_guide_type": "regex"}, "guided_decoding_guide"),
    ("broken JSON", {"text_input": "a", "sampling_parameters": '{"max_tokens": '}, "sampling_parameters"),
    ("JSON that is no object", {"text_input": "a", "sampling_parameters": "[]"}, "sampling_parameters"),
    ("JSON that is no UTF-8", {"text_input": "a", "sampling_parameters": b'{"stop": "\xff"}'}, "sampling_parameters"),
    ("very deep JSON", {"text_input": "a", "sampling_parameters": '{"a":' * 50_000}, "sampling_parameters"),
    ("an unknown name", {"text_input": "a", "sampling_parameters": '{"max_token": 4}'}, "max_tokens"),
    ("a number that is none", {"text_input": "a", "sampling_parameters": '{"top_k": "many"}'}, "top_k"),
    ("a name and its alias", {"text_input": "a", "stream": True, "streaming": True}, "streaming"),
    ("messages that are no JSON", {"messages": "hello"}, "messages"),
    ("messages without a role", {"messages": '[{"content": "x"}]'}, "messages"),
    ("messages with an image", {"messages": '[{"role":"user","content":[{"type":"image_url"}]}]'}, "messages"),
    ("no messages", {"messages": "[]"}, "messages"),
    ("more beams than there are", {"text_input": "a", "beam_width": 100}, "beam_width"),
    ("length_penalty without beams", {"text_input": "a", "length_penalty": 0.5}, "length_penalty"),
]
UNSUPPORTED: list[tuple[dict[str, Any], str]] = [
    ({"text_input": "a", "bad_words": ["x"]}, "bad_words"),
    ({"text_input": "a", "cache_salt": "x"}, "cache_salt"),
    ({"text_input": "a", "lora_name": "x"}, "lora_name"),
    ({"text_input": "a", "logprobs": 3}, "logprobs"),
]


@pytest.fixture(scope="module", autouse=True)
def same_processes(server: Server) -> Iterator[None]:
    """Whatever is thrown at it in this file, the backend's process and the engine's are the same at the end."""
    before = server.stub_pids(), server.engine_pids()
    assert all(len(pids) == 1 for pids in before)
    yield
    assert (server.stub_pids(), server.engine_pids()) == before


def refused(server: Server, **inputs: Any) -> str:
    """The error with its gRPC status in front; a new stream, because an error with a status ends it."""
    with GrpcClient(server.grpc_url, status_errors=True) as client:
        pending = client.start(inputs.pop("text_input", None), **inputs)
        with pytest.raises(RequestFailed) as caught:
            pending.result()
        return str(caught.value)


def is_alive(client: GrpcClient) -> bool:
    return bool(client.start("The capital of France is", stream=False, max_tokens=1).result().text == " Paris")


@pytest.mark.parametrize(("what", "inputs", "parameter"), REFUSED, ids=[row[0] for row in REFUSED])
def test_a_bad_request_is_refused_by_name(
    what: str, inputs: dict[str, Any], parameter: str, server: Server, grpc: GrpcClient
) -> None:
    message = refused(server, **inputs)
    assert message.startswith("INVALID_ARGUMENT: ")
    assert parameter in message
    assert len(message) < 600
    for secret in ("Traceback", "/work", "/tmp", ".py", "shm"):
        assert secret not in message
    assert is_alive(grpc)


def fits_json(inputs: dict[str, Any]) -> bool:
    """Whether a body of `generate` can say this: JSON has no bytes, no NaN and no infinity, and core no NUL in it."""
    values = [item for value in inputs.values() for item in (value if isinstance(value, list) else [value])]
    return not any(
        isinstance(item, bytes) or item == "a\0b" or (isinstance(item, float) and abs(item) > 1e300) or item != item
        for item in values
    )


IN_JSON = [row for row in REFUSED if fits_json(row[1])]


@pytest.mark.parametrize(("what", "inputs", "parameter"), IN_JSON, ids=[row[0] for row in IN_JSON])
def test_http_answers_a_bad_request_with_400(
    what: str, inputs: dict[str, Any], parameter: str, http: HttpClient
) -> None:
    status, body = http.generate(**inputs)
    assert status == 400, body
    assert parameter in body["error"]


@pytest.mark.parametrize(("inputs", "parameter"), UNSUPPORTED, ids=[row[1] for row in UNSUPPORTED])
def test_what_the_engine_cannot_do_is_unimplemented(
    inputs: dict[str, Any], parameter: str, server: Server, http: HttpClient
) -> None:
    message = refused(server, **inputs)
    assert message.startswith("UNIMPLEMENTED: ")
    assert parameter in message
    assert "openvino" in message
    status, body = http.generate(**inputs)
    assert status in (400, 501), "400 on Triton 24.10, 501 on later ones"
    assert parameter in body["error"]


def test_one_bad_request_leaves_the_others_of_its_stream_alone(grpc: GrpcClient) -> None:
    """Without the metadata that turns errors into a status, an error ends its own request only."""
    good = grpc.start("The capital of France is", max_tokens=40, ignore_eos=True, return_num_output_tokens=True)
    bad = [grpc.start("x", max_tokens=-1) for _ in range(20)]
    for one in bad:
        with pytest.raises(RequestFailed, match="max_tokens"):
            one.result()
    assert good.result().output_tokens == 40


# -- what Triton's core refuses before us keeps core's answer ------------------------------------------------------


def test_a_batch_of_two_does_not_pass(server: Server, grpc: GrpcClient) -> None:
    with GrpcClient(server.grpc_url) as client, pytest.raises(RequestFailed) as caught:
        client.start(text_input=["a", "b"]).result()
    assert "unexpected shape for input 'text_input'" in str(caught.value)
    assert is_alive(grpc)


@pytest.mark.parametrize(
    ("name", "value", "datatype", "shape"),
    [
        ("max_tokens", [4], "UINT32", [1]),
        ("max_tokens", [4], "INT32", [1, 1]),
        ("max_tokens", [], "INT32", [0]),
        ("top_p", [1], "INT32", [1]),
        ("no_such_input", [4], "INT32", [1]),
        ("text_input", [], "BYTES", [0]),
    ],
)
def test_a_wrong_type_or_shape_does_not_pass(
    name: str, value: list[Any], datatype: str, shape: list[int], server: Server, grpc: GrpcClient
) -> None:
    with GrpcClient(server.grpc_url) as client:  # core's own early errors with a status can crash Triton 24.10
        request = client.build(text_input=None if name == "text_input" else "a")
        add_input(request, name, value, datatype=datatype, shape=shape)
        with pytest.raises(RequestFailed) as caught:
            client.send(request).result()
    assert name in str(caught.value)
    assert is_alive(grpc)


@pytest.mark.parametrize("raw", [b"", b"\x05\x00\x00\x00ab", b"\xff\xff\xff\xffab", b"\x01"])
def test_a_tensor_of_broken_bytes_does_not_pass(raw: bytes, server: Server, grpc: GrpcClient) -> None:
    with GrpcClient(server.grpc_url) as client:  # core's own early errors with a status can crash Triton 24.10
        request = client.build()
        add_input(request, "text_input", bytearray(raw))
        with pytest.raises(RequestFailed) as caught:
            client.send(request).result()
    assert "text_input" in str(caught.value)
    assert is_alive(grpc)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b'{"text_input": {"a": 1}}',
        b'{"text_input": "a", "max_tokens": "4"}',
        b'{"text_input": "a", "max_tokens": 4.5}',
        b'{"text_input": "a", "stream": 1}',
        b'{"text_input": "a", "logit_bias": {"5": 1.0}}',
        b'{"text_input": "a", "parameters": []}',
        b'{"text_input": "\xff"}',
        b'{"text_input": "a", "text_input": "b"}',
    ],
)
def test_bodies_that_are_no_request_of_generate(body: bytes, http: HttpClient, grpc: GrpcClient) -> None:
    status, _ = http.call("POST", "/v2/models/llm/generate", body)
    assert status in (400, 500), "core answers some of these with 500 by itself"
    assert is_alive(grpc)


def test_a_parameter_that_is_a_number_of_another_kind_is_taken(http: HttpClient) -> None:
    """As request parameters (not declared inputs of a type) numbers may be written as strings."""
    status, body = http.generate(text_input="a", sampling_parameters='{"max_tokens": "2"}')
    assert status == 200, body


def test_unary_infer_is_refused_by_core(grpc: GrpcClient) -> None:
    with pytest.raises(RequestFailed, match="decoupled"):
        grpc.infer(grpc.build(text_input="a"))
    assert is_alive(grpc)
