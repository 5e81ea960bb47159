"""`inflight chat` over HTTP with the standard library: against a small server that speaks as Triton does."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from inflight_tools import cli
from inflight_tools.clients import http_sse
from inflight_tools.clients.connection import GRPC_URL, HTTP_URL, choose
from inflight_tools.clients.stream import _NO_TEMPLATE
from inflight_tools.common.report import Failure

pytestmark = pytest.mark.fast

EVENTS = [
    {"model_name": "llm", "model_version": "1", "text_output": "Hel", "num_output_tokens": 1, "finish_reason": ""},
    {"text_output": "lo ☂", "num_output_tokens": 2, "finish_reason": "stop", "num_input_tokens": 5},
]


class Fake:
    """Answers every POST with the same status and chunks, or the first one otherwise; keeps what was asked."""

    def __init__(
        self, status: int, chunks: list[bytes], *, whole: bool = True, first: tuple[int, list[bytes]] | None = None
    ) -> None:
        self.asked: list[tuple[str, Any]] = []
        self.gone = threading.Event()
        fake = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                fake.asked.append((self.path, json.loads(body)))
                code, parts = first if first is not None and len(fake.asked) == 1 else (status, chunks)
                self.send_response(code)
                self.send_header("Content-Type", "text/event-stream")
                self.send_header("Transfer-Encoding", "chunked")
                self.end_headers()
                with contextlib.suppress(OSError):
                    for chunk in parts:
                        self.wfile.write(b"%x\r\n%s\r\n" % (len(chunk), chunk))
                    if whole:
                        self.wfile.write(b"0\r\n\r\n")
                self.close_connection = True

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"127.0.0.1:{self.server.server_address[1]}"
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True)
        self.thread.start()


Make = Callable[..., Fake]


@pytest.fixture
def fake() -> Iterator[Make]:
    made: list[Fake] = []

    def make(*arguments: Any, **options: Any) -> Fake:
        made.append(Fake(*arguments, **options))
        return made[-1]

    yield make
    for each in made:
        each.server.shutdown()
        each.server.server_close()
        each.thread.join(5)


def sse(*events: dict[str, Any]) -> list[bytes]:
    return [f"data: {json.dumps(event)}\n\n".encode() for event in events]


def chat(url: str, *options: str) -> int:
    return cli.main(["chat", "--protocol", "http", "--url", url, *options])


def test_the_answer_is_printed_as_it_comes(fake: Make, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    server = fake(200, sse(*EVENTS))
    assert chat(server.url, "hi", "--model", "a model", "--max-tokens", "7", "--request-id", "r1") == 0
    output = capfdbinary.readouterr()
    assert output.out.decode() == "Hello ☂\n"
    assert b"3 tokens | finish reason: stop" in output.err
    ((path, body),) = server.asked
    assert path == "/v2/models/a%20model/generate_stream"
    assert body["id"] == "r1"
    assert (body["max_tokens"], body["stream"]) == (7, True)
    assert json.loads(body["messages"]) == [{"role": "user", "content": "hi"}]  # the command is called chat


def test_without_a_template_the_prompt_goes_as_it_is(fake: Make) -> None:
    server = fake(200, sse(*EVENTS))
    assert chat(f"http://{server.url}/behind/a/proxy/", "--no-chat", "hi") == 0
    ((path, body),) = server.asked
    assert path == "/behind/a/proxy/v2/models/llm/generate_stream"
    assert body["text_input"] == "hi"
    assert "messages" not in body


NO_TEMPLATE = {"error": "messages need a chat template, and this model has none; send the whole prompt as text_input"}


def test_a_model_without_a_template_is_asked_with_the_prompt_itself(
    fake: Make, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    server = fake(200, sse(*EVENTS), first=(400, sse(NO_TEMPLATE)))
    assert chat(server.url, "hi ☂", "--max-tokens", "7") == 0
    output = capfdbinary.readouterr()
    assert output.out.decode() == "Hello ☂\n"
    assert b"this model has no chat template: the prompt is sent as it is" in output.err
    (_, first), (_, second) = server.asked
    assert "messages" in first
    assert "messages" not in second
    assert (second["text_input"], second["max_tokens"]) == ("hi ☂", 7)


@pytest.mark.parametrize("words", [("--chat", "hi"), ("--system", "be kind", "hi"), ("--messages", "[]")])
def test_who_insists_on_a_chat_is_told_that_there_is_no_template(words: tuple[str, ...], fake: Make) -> None:
    server = fake(400, sse(NO_TEMPLATE))
    with pytest.raises(Failure, match="need a chat template"):
        chat(server.url, *words)
    assert len(server.asked) == 1


def test_the_server_still_says_what_a_client_listens_for() -> None:
    prompt = Path(__file__).resolve().parents[3] / "python_backend" / "inflight" / "request" / "prompt.py"
    assert _NO_TEMPLATE in prompt.read_text(encoding="utf-8")


def test_lists_and_texts_become_what_tensors_are() -> None:
    response = http_sse.decode(
        {"text_output": ["a", "☂"], "output_ids": [1, 2], "num_output_tokens": 1, "id": "x"}, 0.5
    )
    assert response.outputs == {
        "text_output": [b"a", "☂".encode()],
        "output_ids": [1, 2],
        "num_output_tokens": [1],
    }


@pytest.mark.parametrize(
    ("status", "body", "sentence"),
    [
        (400, sse({"error": "top_p must be at most 1, but is 7"}), "top_p must be at most 1, but is 7."),
        (200, [*sse(EVENTS[0]), *sse({"error": "the engine was lost\n"})], "the engine was lost."),
        (400, [b'{"error":"unknown model: \'llm\' is not found"}'], "has no model 'llm' that is ready: choose another"),
        (405, [b'{"error":"Method Not Allowed"}'], "is not the HTTP port of a Triton"),
        (404, [b"<html>not here</html>\n"], "is not the HTTP port of a Triton"),
        (200, [b"hello\n"], "is not the HTTP port of a Triton"),
        (200, [b"data: [1]\n"], "is not the HTTP port of a Triton"),
    ],
)
def test_errors_are_the_servers_own_sentence(fake: Make, status: int, body: list[bytes], sentence: str) -> None:
    with pytest.raises(Failure) as failure:
        chat(fake(status, body).url, "hi")
    assert sentence in str(failure.value)
    assert "\n" not in str(failure.value)


def test_a_server_that_dies_in_the_middle(fake: Make) -> None:
    with pytest.raises(Failure, match="was cut before the answer was complete"):
        chat(fake(200, sse(EVENTS[0]), whole=False).url, "hi")


def test_a_port_that_speaks_no_http() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(b"\0\0\x18\x04\0\0\0\0\0\n")

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        with pytest.raises(Failure) as failure:
            chat(f"127.0.0.1:{listener.getsockname()[1]}", "hi")
        thread.join(5)
    assert "is not the HTTP port of a Triton" in str(failure.value)
    assert str(failure.value).isprintable()


def test_a_server_that_says_nothing() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        pytest.raises(Failure, match=r"nothing came from .* for 0\.2 s"),
    ):
        chat(f"127.0.0.1:{listener.getsockname()[1]}", "hi", "--timeout", "0.2")


@pytest.mark.parametrize("url", ["ftp://x", "http://", "host:port", "127.0.0.1:99999"])
def test_what_is_no_address(url: str) -> None:
    with pytest.raises(Failure, match="--url is"):
        chat(url, "hi")


def test_a_shape_of_ones_own_is_for_grpc(fake: Make) -> None:
    with pytest.raises(Failure, match="--shape batched concerns gRPC"):
        chat(fake(200, []).url, "hi", "--shape", "batched")


def test_a_prompt_that_json_cannot_carry(fake: Make) -> None:
    with pytest.raises(Failure, match=r"text_input is not UTF-8 text \(byte 0 is wrong\)"):
        chat(fake(200, []).url, "--no-chat", "\udcff")


def test_leaving_early_closes_the_connection(fake: Make) -> None:
    server = fake(200, sse(*EVENTS))
    with http_sse.Connection(server.url) as connection:
        for _ in connection.stream("llm", {"text_input": "hi"}, False):
            break
        assert connection._open is None


@pytest.mark.parametrize(
    ("url", "protocol", "installed", "chosen"),
    [
        (None, "auto", True, ("grpc", GRPC_URL)),
        (None, "auto", False, ("http", HTTP_URL)),
        (None, "http", True, ("http", HTTP_URL)),
        ("h:1", "auto", True, ("grpc", "h:1")),
        ("http://h:1", "auto", True, ("http", "http://h:1")),
        ("h:1", "grpc", False, ("grpc", "h:1")),
    ],
)
def test_the_protocol_that_is_at_hand(url: str | None, protocol: str, installed: bool, chosen: tuple[str, str]) -> None:
    assert choose(url, protocol, installed) == chosen
