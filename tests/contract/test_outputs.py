"""One row of the contract's outputs after the other: its type, its shape, when it is there and what it holds."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from typing import Any

import grpc as grpc_library
import pytest
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc

from inflight.request.contract import OUTPUTS
from tests.contract.forms import PROMPT, SHAPES
from tests.harness.grpc_client import GrpcClient
from tests.harness.tensors import decode

pytestmark = pytest.mark.server

TYPES = {item.name: {"STRING": "BYTES"}.get(item.type, item.type) for item in OUTPUTS}


@dataclasses.dataclass(frozen=True)
class Row:
    """An output, the request that makes it appear, and how many elements it has in a whole answer of one sequence."""

    name: str
    asked_by: dict[str, Any]
    count: int
    holds: Callable[[list[Any]], bool]


TOKENS = 7
CHAT = {"text_input": None, "messages": json.dumps([{"role": "user", "content": "Hi"}])}
TOOLS = json.dumps([{"type": "function", "function": {"name": "f"}}])
ROWS = [
    Row("text_output", {}, 1, lambda values: len(values[0]) > 0),
    Row("finish_reason", {"return_finish_reason": True}, 1, lambda values: values == [b"length"]),
    Row("stop_reason", {"return_finish_reason": True}, 1, lambda values: values == [b""]),
    Row("reasoning_output", {"reasoning": True}, 1, lambda values: values == [b""]),
    Row("tool_calls", {**CHAT, "tools": TOOLS}, 1, lambda values: values == [b"[]"]),
    Row("model_info", {"return_model_info": True}, 1, lambda values: json.loads(values[0])["engine"] == "simulated"),
    Row("num_cached_tokens", {"return_num_input_tokens": True}, 1, lambda values: values[0] >= 0),
    Row("output_ids", {"return_token_ids": True}, TOKENS, lambda values: min(values) >= 0),
    Row("output_ids", {"return_log_probs": True}, TOKENS, lambda values: min(values) >= 0),
    Row("cumulative_logprob", {"return_cumulative_logprob": True}, 1, lambda values: values[0] < 0),
    Row("cum_log_probs", {"return_cumulative_logprob": True}, 1, lambda values: values[0] < 0),
    Row("cum_log_probs", {"return_log_probs": True}, 1, lambda values: values[0] < 0),
    Row("output_log_probs", {"return_log_probs": True}, TOKENS, lambda values: max(values) < 0),
    Row("logprobs", {"return_log_probs": True}, 1, lambda values: len(json.loads(values[0])) == TOKENS),
    Row("logprobs", {"logprobs": 0}, 1, lambda values: len(json.loads(values[0])) == TOKENS),
    Row("num_input_tokens", {"return_num_input_tokens": True}, 1, lambda values: values[0] > 1),
    Row("num_output_tokens", {"return_num_output_tokens": True}, 1, lambda values: values == [TOKENS]),
    *(
        Row(name, {"return_perf_metrics": True}, 1, lambda values: values[0] > 0)
        for name in ("arrival_time_ns", "first_scheduled_time_ns", "first_token_time_ns", "last_token_time_ns")
    ),
    Row("kv_cache_reused_block", {"return_perf_metrics": True}, 1, lambda values: values[0] >= 0),
]
WITH_SEVERAL = {"sequence_index"}


def answers(client: GrpcClient, model: str, **values: Any) -> list[pb.ModelInferResponse]:
    """The raw responses of one request."""
    inputs = {"text_input": PROMPT, "max_tokens": TOKENS, **values}
    request = client.build(model=model, batched=SHAPES[model], **inputs)
    del request.parameters["triton_enable_empty_final_response"]
    call = service_pb2_grpc.GRPCInferenceServiceStub(client._channel).ModelStreamInfer(iter([request]), timeout=30)
    found = []
    for message in call:
        assert not message.error_message
        found.append(message.infer_response)
    return found


def tensor(response: pb.ModelInferResponse, name: str) -> tuple[str, list[int], list[Any]] | None:
    """(type, shape, values) of an output; None when it is not there."""
    for place, output in enumerate(response.outputs):
        if output.name == name:
            values = decode(response.raw_output_contents[place], output.datatype)
            return output.datatype, list(output.shape), values
    return None


def shape_of(name: str, model: str, count: int) -> list[int]:
    """The shape on the wire: in the second form a leading 1, which `text_output` alone goes without."""
    return [1, count] if SHAPES[model] and name != "text_output" else [count]


@pytest.mark.parametrize("model", SHAPES)
@pytest.mark.parametrize("row", ROWS, ids=[f"{row.name}-{next(iter(row.asked_by), 'always')}" for row in ROWS])
def test_an_output_is_there_when_asked_for_with_its_type_and_shape(row: Row, model: str, grpc: GrpcClient) -> None:
    (response,) = answers(grpc, model, stream=False, **row.asked_by)
    found = tensor(response, row.name)
    assert found is not None
    datatype, shape, values = found
    assert datatype == TYPES[row.name]
    assert shape == shape_of(row.name, model, row.count)
    assert len(values) == row.count
    assert row.holds(values)


@pytest.mark.parametrize("stream", [False, True])
def test_nothing_else_is_there(stream: bool, grpc: GrpcClient) -> None:
    for response in answers(grpc, "llm", stream=stream):
        assert [output.name for output in response.outputs] == ["text_output"]


@pytest.mark.parametrize("model", SHAPES)
def test_streamed_outputs_add_up_to_those_of_the_whole_answer(model: str, grpc: GrpcClient) -> None:
    asked = {
        "return_finish_reason": True,
        "return_num_input_tokens": True,
        "return_num_output_tokens": True,
        "return_token_ids": True,
        "return_log_probs": True,
        "return_cumulative_logprob": True,
        "return_perf_metrics": True,
    }
    (whole,) = answers(grpc, model, stream=False, **asked)
    parts = answers(grpc, model, stream=True, **asked)

    def values(response: pb.ModelInferResponse, name: str) -> list[Any]:
        found = tensor(response, name)
        assert found is not None, name
        return found[2]

    def joined(name: str) -> list[Any]:
        return [value for part in parts for value in values(part, name)]

    assert b"".join(joined("text_output")) == values(whole, "text_output")[0]
    for name in ("output_ids", "output_log_probs"):
        assert joined(name) == values(whole, name)
    assert sum(joined("num_output_tokens")) == values(whole, "num_output_tokens")[0] == TOKENS
    assert [entry for text in joined("logprobs") for entry in json.loads(text)] == json.loads(
        values(whole, "logprobs")[0]
    )
    for name in ("cumulative_logprob", "cum_log_probs"):
        assert values(parts[-1], name) == pytest.approx(values(whole, name))
    assert set(joined("num_input_tokens")) == set(values(whole, "num_input_tokens"))
    assert joined("finish_reason") == [b""] * (len(parts) - 1) + [b"length"]
    assert [tensor(part, "last_token_time_ns") is not None for part in parts] == [False] * (len(parts) - 1) + [True]


@pytest.mark.parametrize("model", SHAPES)
def test_several_sequences_are_several_elements(model: str, grpc: GrpcClient) -> None:
    asked = {"return_finish_reason": True, "return_num_output_tokens": True, "return_cumulative_logprob": True}
    (response,) = answers(grpc, model, stream=False, num_return_sequences=3, temperature=1.0, seed=1, **asked)
    for name in ("text_output", "finish_reason", "sequence_index", "num_output_tokens", "cumulative_logprob"):
        found = tensor(response, name)
        assert found is not None
        assert found[0] == TYPES[name]
        assert found[1] == shape_of(name, model, 3)
    assert tensor(response, "sequence_index")[2] == [0, 1, 2]  # type: ignore[index]


@pytest.mark.parametrize("model", SHAPES)
@pytest.mark.parametrize("asked", [{"return_token_ids": True}, {"return_log_probs": True}], ids=str)
def test_tokens_of_several_sequences_have_borders(model: str, asked: dict[str, Any], grpc: GrpcClient) -> None:
    values = {"temperature": 1.0, "seed": 1, "stop_words": ["e"], **asked}
    (response,) = answers(grpc, model, stream=False, num_return_sequences=3, **values)
    counts, ids = tensor(response, "num_output_tokens"), tensor(response, "output_ids")
    assert counts is not None
    assert ids is not None
    assert len(counts[2]) == 3
    assert sum(counts[2]) == len(ids[2])
    (alone,) = answers(grpc, model, stream=False, **values)
    assert tensor(alone, "num_output_tokens") is None
    assert tensor(alone, "output_ids")[2] == ids[2][: counts[2][0]]  # type: ignore[index]


def test_blocks_and_tokens_of_a_prompt_that_was_there_before(grpc: GrpcClient) -> None:
    def reused() -> tuple[int, int]:
        values = {"text_input": None, "input_ids": list(range(20, 300)), "return_perf_metrics": True}
        (response,) = answers(grpc, "llm", stream=False, return_num_input_tokens=True, **values)
        blocks, tokens = tensor(response, "kv_cache_reused_block"), tensor(response, "num_cached_tokens")
        assert blocks is not None
        assert tokens is not None
        return int(blocks[2][0]), int(tokens[2][0])

    reused()
    blocks, tokens = reused()
    assert 0 < blocks < tokens < 280


def test_ranks_are_numbers_where_the_choice_is_greedy(grpc: GrpcClient) -> None:
    (response,) = answers(grpc, "llm", stream=False, return_log_probs=True)
    entries = json.loads(tensor(response, "logprobs")[2][0])  # type: ignore[index]
    assert [next(iter(entry.values()))["rank"] for entry in entries] == [1] * TOKENS


def test_a_client_that_names_its_outputs_gets_those_and_no_error(grpc: GrpcClient) -> None:
    (response,) = answers(grpc, "llm", stream=False, wanted=["text_output"], return_num_output_tokens=True)
    assert [output.name for output in response.outputs] == ["text_output"]
    (response,) = answers(grpc, "llm", stream=False, wanted=["text_output", "finish_reason"])
    assert "text_output" in [output.name for output in response.outputs]


def test_an_output_that_does_not_exist_is_refused_by_core(grpc: GrpcClient) -> None:
    with pytest.raises((grpc_library.RpcError, AssertionError)):
        answers(grpc, "llm", wanted=["no_such_output"])


def test_every_row_of_the_contract_is_tried() -> None:
    assert {row.name for row in ROWS} | WITH_SEVERAL == {item.name for item in OUTPUTS}
