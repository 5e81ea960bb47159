"""How a request ends: one row of docs/requests.md's table after the other, streaming and whole."""

from __future__ import annotations

import time
from typing import Any

import pytest

from inflight_tools.server.server import Server
from tests.contract.forms import PROMPT, ask, start
from tests.harness.grpc_client import GrpcClient, Pending, RequestFailed
from tests.harness.http_client import HttpClient

pytestmark = pytest.mark.server

DETAILS = {"return_finish_reason": True, "return_num_output_tokens": True}
BOTH = pytest.mark.parametrize("stream", [True, False], ids=["streaming", "unary"])


def failure(pending: Pending) -> str:
    with pytest.raises(RequestFailed) as caught:
        pending.result()
    assert pending.finals == 1
    return str(caught.value)


def busy(client: GrpcClient, **values: Any) -> Pending:
    """A request that holds the one place of `slow`."""
    pending = start(client, {"max_tokens": 4000, "stream": True, **DETAILS, **values}, model="slow")
    pending.first()
    return pending


@pytest.fixture
def holder(server: Server) -> Any:
    """`slow` with its only place taken, until the test ends."""
    client = GrpcClient(server.grpc_url)
    busy(client)
    yield client
    client.close(cancel=True)
    with GrpcClient(server.grpc_url) as after:
        assert ask(after, {"max_tokens": 1}, model="slow").text, "the place is free again"


@BOTH
def test_the_end_of_the_sequence(stream: bool, grpc: GrpcClient) -> None:
    got = ask(grpc, {"stream": stream, **DETAILS}, model="ends")
    assert (got.finish_reason, got.output_tokens, got.finals) == ("stop", 6, 1)


@BOTH
def test_a_stop_string(stream: bool, grpc: GrpcClient) -> None:
    whole = ask(grpc, {"max_tokens": 20}).text
    got = ask(grpc, {"max_tokens": 20, "stop_words": [whole[5:9]], "stream": stream, **DETAILS})
    assert (got.finish_reason, got.text, got.finals) == ("stop", whole[: whole.index(whole[5:9])], 1)


@BOTH
def test_max_tokens(stream: bool, grpc: GrpcClient) -> None:
    got = ask(grpc, {"max_tokens": 9, "stream": stream, **DETAILS})
    assert (got.finish_reason, got.output_tokens, got.finals) == ("length", 9, 1)


@BOTH
def test_the_context_is_full(stream: bool, grpc: GrpcClient) -> None:
    ids = [5] * 50
    got = ask(grpc, {"input_ids": ids, "max_tokens": 1000, "stream": stream, **DETAILS}, model="narrow")
    assert (got.finish_reason, got.output_tokens, got.finals) == ("length", 14, 1)
    assert "64" in failure(start(grpc, {"input_ids": [5] * 64, "stream": stream}, model="narrow"))


@BOTH
def test_a_deadline_while_it_runs(stream: bool, grpc: GrpcClient) -> None:
    began = time.monotonic()
    got = ask(grpc, {"max_tokens": 4000, "deadline_ms": 300, "stream": stream, **DETAILS}, model="slow")
    assert got.finish_reason == "deadline"
    assert 1 <= got.output_tokens <= 16
    assert got.text
    assert got.finals == 1
    assert 0.25 < time.monotonic() - began < 2.0


@BOTH
@pytest.mark.parametrize("how", ["deadline_ms", "timeout"])
def test_a_deadline_while_it_is_queued(stream: bool, how: str, holder: GrpcClient, grpc: GrpcClient) -> None:
    values: dict[str, Any] = {"max_tokens": 4, "stream": stream}
    if how == "timeout":
        request = grpc.build(model="slow", text_input=PROMPT, parameters={"timeout": 200_000}, **values)  # µs
        pending = grpc.send(request)
    else:
        pending = start(grpc, {"deadline_ms": 200, **values}, model="slow")
    began = time.monotonic()
    assert "deadline" in failure(pending)
    assert 0.1 < time.monotonic() - began < 2.0


@BOTH
def test_a_deadline_also_by_grpcs_timeout(stream: bool, grpc: GrpcClient) -> None:
    parameters = {"timeout": 300_000}
    request = grpc.build(
        model="slow", text_input=PROMPT, max_tokens=4000, stream=stream, parameters=parameters, **DETAILS
    )
    got = grpc.send(request).result()
    assert got.finish_reason == "deadline"
    assert got.output_tokens <= 16


@BOTH
def test_the_client_cancels_while_it_runs(stream: bool, server: Server) -> None:
    client = GrpcClient(server.grpc_url)
    pending = start(client, {"max_tokens": 4000, "stream": stream}, model="slow")
    time.sleep(0.2)
    client.close(cancel=True)
    assert "CANCELLED" in failure(pending)
    with GrpcClient(server.grpc_url) as after:
        began = time.monotonic()
        ask(after, {"max_tokens": 1}, model="slow")
        assert time.monotonic() - began < 2.0, "its place was given back"


@BOTH
def test_the_client_cancels_while_it_is_queued(stream: bool, holder: GrpcClient, server: Server) -> None:
    client = GrpcClient(server.grpc_url)
    pending = start(client, {"max_tokens": 4, "stream": stream}, model="slow")
    time.sleep(0.2)
    client.close(cancel=True)
    assert "CANCELLED" in failure(pending)


@BOTH
def test_a_bad_value(stream: bool, grpc: GrpcClient) -> None:
    assert failure(start(grpc, {"max_tokens": -1, "stream": stream})).startswith("max_tokens ")


@BOTH
def test_a_missing_capability(stream: bool, grpc: GrpcClient) -> None:
    message = failure(start(grpc, {"lora_name": "x", "stream": stream}))
    assert message.startswith("lora_name is not supported: the simulated engine of this model lacks lora")


@BOTH
def test_a_full_queue(stream: bool, holder: GrpcClient, server: Server, grpc: GrpcClient) -> None:
    waiting = [start(grpc, {"max_tokens": 1, "deadline_ms": 1000}, model="slow") for _ in range(2)]
    time.sleep(0.2)
    message = failure(start(grpc, {"max_tokens": 1, "stream": stream}, model="slow"))
    assert "queue is full" in message
    assert "try again" in message
    status, body = HttpClient(server.http_url, "slow").generate(text_input="a", max_tokens=1)
    assert status in (400, 503), "Triton 24.10 answers every error of a model with 400 here"
    assert "queue is full" in body["error"]
    for pending in waiting:
        assert "deadline" in failure(pending)


@pytest.mark.parametrize(
    ("status", "values"),
    [(400, {"max_tokens": -1}), (400, {"top_p": 7.0}), (200, {"max_tokens": 1})],
)
def test_the_status_of_http(status: int, values: dict[str, Any], http: HttpClient) -> None:
    assert http.generate(text_input="a", **values)[0] == status


@pytest.mark.parametrize(
    ("code", "values"),
    [("INVALID_ARGUMENT", {"max_tokens": -1}), ("UNIMPLEMENTED", {"lora_name": "x"})],
)
def test_the_status_of_grpc(code: str, values: dict[str, Any], server: Server) -> None:
    with GrpcClient(server.grpc_url, status_errors=True) as client:
        assert failure(start(client, values)).startswith(f"{code}: ")


def test_higher_priority_starts_first_and_equals_in_order(holder: GrpcClient, server: Server) -> None:
    """`slow` has one place and a queue of two: of what waits the more urgent goes first."""
    with GrpcClient(server.grpc_url) as client:
        low = start(client, {"max_tokens": 1, "request_priority": -5}, model="slow")
        time.sleep(0.05)
        high = start(client, {"max_tokens": 1, "request_priority": 5}, model="slow")
        time.sleep(0.1)
        holder.close(cancel=True)
        assert high.result().responses[-1].at < low.result().responses[-1].at


def test_two_responses_never_come_of_a_whole_answer(http: HttpClient) -> None:
    """Over HTTP two would be an error with status 200."""
    for values in ({}, {"num_return_sequences": 3, "temperature": 1.0}, {"deadline_ms": 1, "max_tokens": 500}):
        status, body = http.generate(text_input="a", **{"max_tokens": 4, **values})
        assert status == 200 or "deadline" in body["error"]
