"""Real sockets to the real gateway, without a Triton: slow, large, compressed, encrypted, and from pages."""

from __future__ import annotations

import gzip
import http.client
import json
import os
import select
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import openai
import psutil
import pytest

from inflight_gateway.cli import main
from inflight_tools.common.layout import REPOSITORY
from inflight_tools.server.server import Ports
from tests.harness.certificate import certificate
from tests.harness.gateway import Gateway, running

NOBODY = "127.0.0.1:9"
PATH = "/v1/chat/completions"
PAGE = "https://page.example"


@pytest.fixture(scope="module")
def gateway() -> Iterator[Gateway]:
    limits = ("--head-timeout", "0.5", "--body-timeout", "0.5", "--max-body-bytes", "300000")
    with running(NOBODY, *limits, "--cors-origin", PAGE, keys="secret") as found:
        until_live(found)
        yield found


def until_live(gateway: Gateway) -> None:
    give_up = time.monotonic() + 20
    while True:
        try:
            assert gateway.call("GET", "/live")[0] == 200
            return
        except OSError:
            assert time.monotonic() < give_up
            time.sleep(0.05)


def connect(gateway: Gateway) -> socket.socket:
    return socket.create_connection(("127.0.0.1", gateway.port), 15)


def read_answer(connection: socket.socket) -> bytes:
    """One answer, whose head and body may come apart."""
    read = b""
    while True:
        head, end, body = read.partition(b"\r\n\r\n")
        lengths = [int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
        if end and len(body) >= lengths[0]:
            return read
        part = connection.recv(65536)
        assert part, read
        read += part


def read_all(connection: socket.socket) -> bytes:
    read = b""
    try:
        while part := connection.recv(65536):
            read += part
    except ConnectionResetError:
        pass
    return read


# --- Slow and large. --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("first", [b"", b"GET /live HTTP/1.1\r\nhost: x\r\n", b"\r\n"])
def test_a_head_that_does_not_come_is_not_waited_for(gateway: Gateway, first: bytes) -> None:
    with connect(gateway) as client:
        began = time.monotonic()
        client.sendall(first)
        answer = read_all(client)
        assert time.monotonic() - began < 5
        assert answer.startswith(b"HTTP/1.1 408 " if b"GET" in first else b"")
        if answer:
            assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["code"] == "request_timeout"


def test_a_byte_now_and_then_does_not_prolong_it_on_a_connection_that_was_used_before_either(gateway: Gateway) -> None:
    with connect(gateway) as client:
        client.sendall(b"GET /live HTTP/1.1\r\nhost: x\r\n\r\n")
        assert read_answer(client).startswith(b"HTTP/1.1 200")
        began = time.monotonic()
        client.sendall(b"GET /live HTTP/1.1\r\nx: ")
        while not select.select([client], [], [], 0.05)[0]:
            assert time.monotonic() - began < 5
            client.sendall(b"a")
        assert read_answer(client).startswith(b"HTTP/1.1 408 ")
        assert time.monotonic() - began < 3


@pytest.mark.parametrize(
    "head", [b"x: " + b"a" * 200_000, b"\r\n".join(b"h%d: %s" % (n, b"a" * 900) for n in range(90))]
)
def test_a_head_without_end_is_cut_off(gateway: Gateway, head: bytes) -> None:
    with connect(gateway) as client:
        client.sendall(b"GET /live HTTP/1.1\r\n" + head + b"\r\n\r\n")
        assert read_all(client).startswith(b"HTTP/1.1 431 ")


def test_a_slow_body_ends_with_its_status(gateway: Gateway) -> None:
    with connect(gateway) as client:
        client.sendall(
            b"POST %s HTTP/1.1\r\nauthorization: Bearer secret\r\ncontent-length: 9\r\n\r\n{" % PATH.encode()
        )
        began = time.monotonic()
        answer = read_answer(client)
        assert answer.startswith(b"HTTP/1.1 408 ")
        assert 0.4 < time.monotonic() - began < 3
        assert b"the body did not arrive within 0.5 s" in answer
        assert read_all(client) == b"", "what is left of the body is of no use to anybody"
        assert time.monotonic() - began < 9


@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_of_64_mb_is_refused_and_never_held(gateway: Gateway, chunked: bool) -> None:
    memory = psutil.Process(gateway.process.pid).memory_info
    before = memory().rss
    piece = b"a" * (1 << 20)
    with connect(gateway) as client:
        length = b"transfer-encoding: chunked" if chunked else b"content-length: %d" % (64 << 20)
        client.sendall(b"POST %s HTTP/1.1\r\nauthorization: Bearer secret\r\n%s\r\n\r\n" % (PATH.encode(), length))
        try:
            for _ in range(64):
                client.sendall(b"%x\r\n%s\r\n" % (len(piece), piece) if chunked else piece)
        except ConnectionError:
            pytest.fail("the client has no chance to read why")
        assert read_answer(client).startswith(b"HTTP/1.1 413 ")
    assert memory().rss - before < 16 << 20


def test_who_has_no_key_is_refused_before_a_body_is_read(gateway: Gateway) -> None:
    with connect(gateway) as client:
        client.sendall(b"POST %s HTTP/1.1\r\ncontent-length: 900\r\n\r\n" % PATH.encode())
        assert read_answer(client).startswith(b"HTTP/1.1 401 ")


def test_compressed_and_deep_bodies_are_refused(gateway: Gateway) -> None:
    key = {"authorization": "Bearer secret"}
    for encoding in ("gzip", "GZIP", "br", "deflate, gzip"):
        status, _, body = gateway.call("POST", PATH, gzip.compress(b"{}"), content_encoding=encoding, **key)
        assert (status, json.loads(body)["error"]["code"]) == (415, "unsupported_encoding")
    for deep in (b"[" * 200_000, b'{"messages": ' + b"[" * 90_000 + b"]" * 90_000 + b"}", b'{"a":' * 40_000):
        status, _, body = gateway.call("POST", PATH, deep, **key)
        assert status == 400, body
        assert json.loads(body)["error"]["message"]


# --- Pages of other origins. ------------------------------------------------------------------------------------------


def asked(gateway: Gateway, origin: str, method: str = "OPTIONS", **headers: str) -> tuple[int, dict[str, str]]:
    wanted = {"access_control_request_method": "POST"} if method == "OPTIONS" else {}
    wanted |= {"access_control_request_headers": "authorization,content-type"} if method == "OPTIONS" else {}
    return gateway.call(method, PATH, origin=origin, **wanted, **headers)[:2]


def test_a_preflight_needs_no_key_and_an_answer_says_who_may_read_it(gateway: Gateway) -> None:
    status, said = asked(gateway, PAGE)
    assert status == 204
    assert said["access-control-allow-origin"] == PAGE
    assert said["access-control-allow-headers"] == "authorization,content-type"
    assert "POST" in said["access-control-allow-methods"]
    status, said = asked(gateway, PAGE, "POST")  # without a key: the page may read that, too
    assert (status, said["access-control-allow-origin"], said["vary"]) == (401, PAGE, "origin")
    assert "x-request-id" in said["access-control-expose-headers"]


@pytest.mark.parametrize("origin", ["https://page.example.evil", "http://page.example", "null", "https://other"])
def test_other_origins_are_told_nothing(gateway: Gateway, origin: str) -> None:
    for method in ("OPTIONS", "POST"):
        status, said = asked(gateway, origin, method)
        assert status == 401
        assert not [name for name in said if name.startswith("access-control")]


# --- TLS, and mistakes on the command line. ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return certificate(tmp_path_factory.mktemp("certificate"))


def test_a_real_client_over_tls(shown: tuple[Path, Path]) -> None:
    cert, key = shown
    with running(NOBODY, "--tls-cert", str(cert), "--tls-key", str(key)) as gateway:
        trusting = ssl.create_default_context(cafile=str(cert))
        give_up = time.monotonic() + 20
        while True:
            connection = http.client.HTTPSConnection("localhost", gateway.port, context=trusting, timeout=10)
            try:
                connection.request("GET", "/live")
                assert connection.getresponse().status == 200
                break
            except ConnectionRefusedError:
                assert time.monotonic() < give_up
                time.sleep(0.05)
            finally:
                connection.close()
        url = f"https://localhost:{gateway.port}/v1"
        web = openai.DefaultHttpxClient(verify=trusting)
        with openai.OpenAI(base_url=url, api_key="none", max_retries=0, http_client=web) as client:
            assert list(client.models.list()) == []  # there is no Triton
            with pytest.raises(openai.InternalServerError, match="cannot be reached"):
                client.completions.create(model="llm", prompt="a")
        doubting = openai.OpenAI(base_url=url, api_key="none", max_retries=0)  # of the certificate
        with doubting, pytest.raises(openai.APIConnectionError):
            doubting.models.list()
        with connect(gateway) as plain:
            plain.sendall(b"GET /live HTTP/1.1\r\n\r\n")
            assert b"200" not in read_all(plain)


def test_ctrl_c_while_it_starts_shows_no_traceback() -> None:
    """Most of the start is spent importing packages."""
    process = subprocess.Popen(
        [sys.executable, "-m", "inflight_gateway", "--triton", NOBODY, "--port", str(Ports.free().gateway)],
        env={"PYTHONPATH": str(REPOSITORY / "gateway"), "PATH": os.defpath},
        stderr=subprocess.PIPE,
        encoding="utf-8",
    )
    give_up = time.monotonic() + 20
    while "_ssl" not in Path(f"/proc/{process.pid}/maps").read_text(encoding="utf-8"):  # it imports uvicorn
        assert time.monotonic() < give_up
        time.sleep(0.001)
    process.send_signal(signal.SIGINT)
    told = process.communicate(timeout=20)[1]
    assert "Traceback" not in told
    assert "KeyboardInterrupt" not in told


def test_every_mistake_is_one_sentence(
    shown: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cert, key = shown
    (tmp_path / "nonsense").write_bytes(b"\xff\xfe nonsense")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", Ports.free().gateway))
        taken.listen()
        port = str(taken.getsockname()[1])
        cases: list[tuple[list[str], str]] = [
            (["--port", "many"], "argument --port: 'many' is not a port"),
            (["--port", "99999"], "argument --port: '99999' is not a port"),
            (["--port", port], f"port {port} on 127.0.0.1 cannot be used (Address already in use): stop what"),
            (["--max-requests", "0"], "argument --max-requests: '0' has to be a whole number of at least 1"),
            (["--body-timeout", "-1"], "argument --body-timeout: "),
            (["--body-timeout=nan"], "argument --body-timeout: 'nan' has to be a number of seconds, 0 or more"),
            (["--api-keys", str(tmp_path / "no")], f"--api-keys: {tmp_path}/no cannot be read (No such file or"),
            (["--api-keys", str(tmp_path / "nonsense")], f"--api-keys: {tmp_path}/nonsense cannot be read (it is no"),
            (["--tls-key", str(key)], "--tls-key needs --tls-cert: give both"),
            (["--tls-cert", str(tmp_path / "no")], f"--tls-cert: {tmp_path}/no cannot be read (No such file or"),
            (["--tls-cert", str(cert)], f"--tls-cert {cert} and --tls-key (none) are no certificate and its own key"),
            (["--tls-cert", str(key), "--tls-key", str(cert)], "--tls-cert "),
            (["--tls-cert", str(tmp_path / "nonsense")], "--tls-cert "),
            (["--cors-origin", "page.example"], "argument --cors-origin: 'page.example' is no origin: give scheme://"),
            (["--cors-origin", "https://page.example/"], "argument --cors-origin: "),
            (["--health", "8003"], "--health '8003' is not HOST:PORT: give the port that `inflight serve` names"),
            (["--triton", "localhost"], "argument --triton: 'localhost' is not HOST:PORT, as localhost:8001 is, of"),
            (["--no-such"], "unrecognized arguments: --no-such"),
        ]
        for words, sentence in cases:
            with pytest.raises(SystemExit) as ended:
                main(words, "inflight gateway")
            told = capsys.readouterr().err
            assert ended.value.code == 2
            assert told.startswith(f"error: {sentence}"), told
            assert told.endswith(" (see inflight gateway --help)\n")
            assert told.count("\n") == 1, told
