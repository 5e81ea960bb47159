"""The real gateway before a Triton of ours that breaks in every way: what an HTTP client then reads."""

from __future__ import annotations

import contextlib
import json
import resource
import socket
import threading
import time
from collections.abc import Iterator

import psutil
import pytest

from tests.harness.fake_triton import FakeTriton, serving
from tests.harness.gateway import Gateway, running

HELLO = {"model": "llm", "messages": [{"role": "user", "content": "hi"}]}


@pytest.fixture
def fake() -> Iterator[tuple[FakeTriton, str]]:
    servicer = FakeTriton()
    with serving(servicer) as address:
        yield servicer, address


@pytest.fixture
def gateway(fake: tuple[FakeTriton, str]) -> Iterator[Gateway]:
    with running(fake[1], "--drain-notice", "1", "--drain-timeout", "1", "--max-body-bytes", "100000") as found:
        found.wait_ready()
        yield found


def ask(gateway: Gateway, act: str, stream: bool) -> tuple[int, dict[str, str], bytes]:
    body = HELLO | {"messages": [{"role": "user", "content": act}], "stream": stream}
    return gateway.call("POST", "/v1/chat/completions", body)


def test_every_way_in_which_an_answer_can_end(gateway: Gateway, fake: tuple[FakeTriton, str]) -> None:
    """One gateway for all of them: starting it costs more than asking."""
    for act, status, code in (
        ("error:top_p must be above 0, but is 0", 400, None),
        ("error:the queue is full (7 requests wait); try again in a moment", 503, "overloaded"),
        ("error:the deadline passed while the request was queued; raise deadline_ms", 504, "timeout"),
        ("error:Request for unknown model: 'llm' is not found", 503, "unavailable"),  # it is listed: it is being loaded
        ("error:internal error while handling request 7; see the server's log", 500, "internal_error"),
        ("error:what nobody foresaw", 500, "internal_error"),
        ("gone", 503, "unavailable"),
    ):
        for stream in (False, True):  # nothing was streamed yet, so there is a status
            found, headers, body = ask(gateway, act, stream)
            assert (found, json.loads(body)["error"]["code"]) == (status, code), act
            assert ("retry-after" in headers) == (status == 503)
            assert b"10.0.0.1" not in body
            assert headers["x-request-id"]
    for act in ("then:the engine died and is being restarted; try again", "break", "end", "silent", "cancelled",
                "nobody's", "no text"):  # fmt: skip
        status, _, body = ask(gateway, act, False)
        assert status >= 499, act
        status, _, body = ask(gateway, act, True)
        assert status == 200
        last = json.loads(body.decode().strip().split("\n\n")[-1].removeprefix("data: "))
        assert set(last["error"]) == {"message", "type", "param", "code"}, act
        assert b"[DONE]" not in body
    status, _, body = ask(gateway, "deadline", False)
    choice = json.loads(body)["choices"][0]
    assert (choice["finish_reason"], choice["stop_reason"]) == ("length", "deadline")
    fake[0].asked = 0
    status, _, body = ask(gateway, "restarting", False)
    assert (status, json.loads(body)["choices"][0]["message"]["content"]) == (200, "one two")


# How each further dialect asks, and where its error says why.
FURTHER = {
    "/v1/responses": (lambda act: {"input": act}, lambda said: said["error"]["message"]),
    "/v1/messages": (lambda act: {"messages": ask_of(act), "max_tokens": 5}, lambda said: said["error"]["message"]),
    "/": (lambda act: {"inputs": act}, lambda said: said["error"]),
}


def ask_of(act: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": act}]


def test_every_end_is_told_in_the_dialect_of_its_path(gateway: Gateway) -> None:
    for path, (body, why) in FURTHER.items():
        for act, says in (
            ("error:the queue is full (7 requests wait); try again in a moment", "the queue is full"),
            ("then:the engine died and is being restarted; try again", "the engine died"),
            ("break", "cannot be reached"),
            ("end", "ended before the answer was whole"),
            ("silent", "without saying why"),
            ("cancelled", "was cancelled"),
        ):
            for stream in (False, True):
                status, headers, data = gateway.call("POST", path, {"model": "llm", "stream": stream, **body(act)})
                assert headers["x-request-id"]
                if status == 200:
                    assert stream, (path, act)
                    assert not act.startswith("error:")
                    data = data.strip().split(b"data:")[-1]
                assert says in why(json.loads(data)), (path, act, stream)
        status, headers, data = gateway.call("POST", path, {"model": "nope", **body("hi")})
        assert (status, "nope" in why(json.loads(data))) == (404, True), path
    assert gateway.call("POST", "/v1/messages", {"model": "nope"}, x_request_id="abc")[1]["request-id"] == "abc"


def test_what_was_ignored_and_what_a_guide_leaves_out_stand_in_headers(gateway: Gateway) -> None:
    function = {"name": "f", "parameters": {"type": "object"}}
    body = HELLO | {"messages": [{"role": "user", "content": "relaxed"}], "foo": 1, "reasoning_effort": "low"}
    status, headers, _ = gateway.call("POST", "/v1/chat/completions", body)
    assert (status, headers["x-inflight-ignored"]) == (200, "foo,reasoning_effort")
    assert "x-inflight-relaxed" not in headers
    forced = body | {"tools": [{"type": "function", "function": function}], "tool_choice": "required"}
    status, headers, _ = gateway.call("POST", "/v1/chat/completions", forced)
    assert (status, headers["x-inflight-relaxed"]) == (200, "f/properties/a: format; g: uniqueItems")


def test_what_was_ignored_is_counted_and_refused_where_that_is_wished(
    gateway: Gateway, fake: tuple[FakeTriton, str]
) -> None:
    body = HELLO | {"foo": 1, "max_completion_tokn": 3}
    assert gateway.call("POST", "/v1/chat/completions", body)[0] == 200
    assert b"inflight_gateway_ignored_fields_total 2.0" in gateway.call("GET", "/metrics")[2]
    with running(fake[1], "--unknown-fields", "refuse") as strict:
        strict.wait_ready()
        assert strict.call("POST", "/v1/chat/completions", HELLO | {"user": "u"})[0] == 200
        for field, meant in (
            ("max_completion_tokn", "did you mean max_completion_tokens?"),
            ("foo", "docs/gateway.md"),
        ):
            status, _, answer = strict.call("POST", "/v1/chat/completions", HELLO | {field: 1})
            error = json.loads(answer)["error"]
            assert (status, error["param"]) == (400, field)
            assert meant in error["message"]


def test_several_prompts_are_answered_streamed_and_whole(gateway: Gateway) -> None:
    body = {"model": "llm", "prompt": ["a", "b"], "echo": True}
    status, _, answer = gateway.call("POST", "/v1/completions", body)
    assert (status, [choice["text"] for choice in json.loads(answer)["choices"]]) == (200, ["aone two", "bone two"])
    status, _, answer = gateway.call("POST", "/v1/completions", body | {"stream": True})
    assert answer.endswith(b"data: [DONE]\n\n")


def test_of_several_prompts_one_error_ends_the_others(gateway: Gateway, fake: tuple[FakeTriton, str]) -> None:
    for other in ("hang", "queued"):
        for stream in (False, True):
            for act, refused in (("error:top_p must be above 0, but is 0", True), ("break", False)):
                fake[0].left.clear()
                body = {"model": "llm", "prompt": [other, act], "stream": stream}
                status, _, answer = gateway.call("POST", "/v1/completions", body)
                end = time.monotonic() + 5
                while fake[0].running and time.monotonic() < end:
                    time.sleep(0.01)
                assert not fake[0].running, body
                last = json.loads(answer.decode().strip().split("\n\n")[-1].removeprefix("data: "))
                assert set(last["error"]) == {"message", "type", "param", "code"}, body
                assert b"[DONE]" not in answer
                if not stream or (refused and other == "queued"):
                    assert status == (400 if refused else 503), body


def test_a_client_that_leaves_cancels_its_request(gateway: Gateway, fake: tuple[FakeTriton, str]) -> None:
    for act, stream in (("hang", True), ("hang", False), ("queued", True), ("queued", False)):
        fake[0].left.clear()
        body = json.dumps(HELLO | {"messages": [{"role": "user", "content": act}], "stream": stream}).encode()
        with socket.create_connection(("127.0.0.1", gateway.port), 10) as client:
            head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n"
            client.sendall(head.encode() + body)
            time.sleep(0.3)
            assert not fake[0].left.is_set()
        assert fake[0].left.wait(1.0), (act, stream)


def test_what_never_reaches_the_model(gateway: Gateway) -> None:
    for method, path, body, headers, status in (
        ("GET", "/v1/chat/completions", None, {}, 405),
        ("GET", "/nowhere", None, {}, 404),
        ("POST", "/v1/chat/completions", b"{", {}, 400),
        ("POST", "/v1/chat/completions", b" " * 200_000, {}, 413),
        ("POST", "/v1/chat/completions", b"{}", {"content_encoding": "gzip"}, 415),
        ("POST", "/v1/chat/completions", HELLO | {"model": "nope"}, {}, 404),
        ("GET", "/v1/models/nope", None, {}, 404),
        ("GET", "/v1/models/llm", None, {}, 200),
        ("GET", "/models", None, {}, 200),
        ("GET", "/live", None, {}, 200),
        ("POST", "/chat/completions", HELLO | {"model": "dummy"}, {}, 200),
        ("POST", "/chat/completions", {"messages": HELLO["messages"]}, {}, 400),
        ("POST", "/invocations", {"messages": HELLO["messages"]}, {}, 200),  # SageMaker has no names of models
        ("POST", "/invocations", {"prompt": "hi"}, {}, 200),
        ("POST", "/invocations", HELLO | {"model": "nope"}, {}, 404),
    ):
        found, said, answer = gateway.call(method, path, body, x_request_id="abc", **headers)
        assert found == status, (path, answer)
        assert said["x-request-id"] == "abc"
        if status >= 400:
            assert json.loads(answer)["error"]["message"]
    metrics = gateway.call("GET", "/metrics")[2].decode()
    assert 'inflight_gateway_requests_total{route="/v1/chat/completions",status="404"} 1.0' in metrics
    assert "inflight_gateway_requests_in_flight 0.0" in metrics


def test_a_drain_is_seen_before_anything_is_refused(gateway: Gateway) -> None:
    gateway.terminate()
    time.sleep(0.3)
    assert gateway.call("GET", "/ready")[0] == 503
    assert ask(gateway, "hi", False)[0] == 200
    assert gateway.process.wait(10) == 0


def test_what_runs_at_the_end_of_a_drain_hears_of_it(gateway: Gateway) -> None:
    said: list[bytes] = []
    asking = threading.Thread(target=lambda: said.append(ask(gateway, "hang", True)[2]))
    asking.start()
    time.sleep(0.3)
    gateway.terminate()
    asking.join(15)
    assert b'"code":"draining"' in said[0]
    assert gateway.process.wait(10) == 0


def test_keys_are_wanted_everywhere_but_for_probes(fake: tuple[FakeTriton, str]) -> None:
    with running(fake[1], keys="one,two") as gateway:
        gateway.wait_ready()
        assert gateway.call("GET", "/v1/models")[0] == 401
        assert gateway.call("GET", "/metrics")[0] == 401
        assert gateway.call("GET", "/v1/models", authorization="Bearer no")[0] == 401
        for headers in ({"authorization": "Bearer two"}, {"authorization": "bearer one"}, {"x_api_key": "two"}):
            assert gateway.call("GET", "/v1/models", None, **headers)[0] == 200


def test_without_a_triton_it_says_so_and_comes_back_by_itself() -> None:
    with running("127.0.0.1:1") as gateway:
        end = time.monotonic() + 20
        while time.monotonic() < end:
            try:
                status, headers, body = ask(gateway, "hi", True)
                break
            except OSError:
                time.sleep(0.1)
        assert (status, json.loads(body)["error"]["code"]) == (503, "unavailable")
        assert headers["retry-after"]
        assert b"127.0.0.1" not in body
        assert gateway.call("GET", "/ready")[0] == 503
        assert gateway.call("GET", "/live")[0] == 200


def test_an_idle_stream_is_kept_open_and_who_does_not_read_is_let_go(fake: tuple[FakeTriton, str]) -> None:
    with running(fake[1], "--keep-alive", "0.5", "--write-timeout", "1") as gateway:
        gateway.wait_ready()
        for act in ("hang", "flood"):
            fake[0].left.clear()
            body = json.dumps(HELLO | {"messages": [{"role": "user", "content": act}], "stream": True}).encode()
            with socket.create_connection(("127.0.0.1", gateway.port), 10) as client:
                head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n"
                client.sendall(head.encode() + body)
                if act == "flood":
                    assert fake[0].left.wait(15), "nobody reads, and the model goes on"
                    continue
                read = b""
                while b": keep-alive\n\n" not in read:
                    part = client.recv(65536)
                    assert part
                    read += part


def test_who_does_not_read_loses_the_connection_as_well(fake: tuple[FakeTriton, str]) -> None:
    """What is buffered for a client that never reads can never be flushed: its connection must not wait for that."""
    with running(fake[1], "--write-timeout", "1") as gateway, contextlib.ExitStack() as stack:
        gateway.wait_ready()
        ask(gateway, "hi", False)
        fake[0].left.clear()
        files = psutil.Process(gateway.process.pid).num_fds()
        for act in ("flood", "much, then an error"):  # while its answer is written, and while it is told of an error
            body = json.dumps(HELLO | {"messages": [{"role": "user", "content": act}], "stream": True}).encode()
            head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n"
            for _ in range(3):
                client = stack.enter_context(socket.create_connection(("127.0.0.1", gateway.port), 10))
                client.sendall(head.encode() + body)
        assert fake[0].left.wait(15)
        end = time.monotonic() + 6
        while psutil.Process(gateway.process.pid).num_fds() > files:
            assert time.monotonic() < end, "connections to clients that do not read stay open"
            time.sleep(0.1)
        assert "inflight_gateway_requests_in_flight 0.0" in gateway.call("GET", "/metrics")[2].decode()


def test_as_many_files_as_the_system_allows_are_taken(fake: tuple[FakeTriton, str]) -> None:
    """A shell's usual 1,024 are fewer than the requests that may be under way."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, before[1]))
    try:
        with running(fake[1]) as gateway:
            gateway.wait_ready()
            found = resource.prlimit(gateway.process.pid, resource.RLIMIT_NOFILE)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert found == (before[1], before[1])


def test_a_body_that_does_not_come_costs_its_client_the_connection(fake: tuple[FakeTriton, str]) -> None:
    """Else what still trickles in would hold it open."""
    with running(fake[1], "--body-timeout", "0.5") as gateway:
        gateway.wait_ready()
        with socket.create_connection(("127.0.0.1", gateway.port), 10) as client:
            client.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 1000\r\n\r\n{")
            read = b""
            while part := client.recv(65536):
                read += part
    assert read.startswith(b"HTTP/1.1 408 ")
    assert b'"code":"request_timeout"' in read
