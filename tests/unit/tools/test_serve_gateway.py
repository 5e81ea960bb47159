"""The gateway that `inflight serve` keeps beside Triton: the real one, before an address where no Triton is."""

from __future__ import annotations

import argparse
import ast
import http.client
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from inflight_gateway import options as gateway_options
from inflight_tools.common.report import Failure
from inflight_tools.server import gateway as beside
from inflight_tools.server import serve
from inflight_tools.server.gateway import GatewayProcess
from inflight_tools.server.processes import is_alive
from inflight_tools.server.serve_options import parse
from inflight_tools.server.server import Ports, Server, ServerConfig
from tests.harness.certificate import certificate

Make = Callable[..., GatewayProcess]


def options(*words: str) -> argparse.Namespace:
    return parse(words, "inflight serve", "")[0]


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def make(tmp_path: Path, said: list[str]) -> Iterator[Make]:
    made: list[GatewayProcess] = []

    def one(*arguments: str, port: int | None = None) -> GatewayProcess:
        port = port or Ports.free().gateway
        words = ["--triton", "127.0.0.1:9", "--port", str(port), *arguments]
        made.append(GatewayProcess(f"http://127.0.0.1:{port}", words, tmp_path / "log", said.append, drain_s=1.0))
        made[-1].start()
        return made[-1]

    yield one
    for gateway in made:
        gateway.leave(at_once=True)
        gateway.finish()


def until(condition: Callable[[], object], seconds: float = 20.0) -> None:
    give_up = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < give_up
        time.sleep(0.02)


def answer(url: str) -> tuple[int, str]:
    """Status and reason of its readiness; 0 where nobody answers."""
    try:
        with urllib.request.urlopen(f"{url}/ready", timeout=5) as found:
            return found.status, json.load(found)["reason"]
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)["reason"]
    except (OSError, http.client.HTTPException):
        return 0, ""


def test_one_that_is_killed_is_started_again_and_it_is_said(make: Make, said: list[str], tmp_path: Path) -> None:
    gateway = make()
    until(lambda: answer(gateway.url)[0] == 503)
    first = gateway.pid
    assert first is not None
    os.kill(first, signal.SIGKILL)
    until(lambda: gateway.keep_alive() or gateway.pid not in (None, first))  # type: ignore[func-returns-value]
    until(lambda: answer(gateway.url)[0] == 503)
    assert said == [f"the gateway ended by itself with status -9: see {tmp_path / 'log'}; it is started again."]


def test_one_that_cannot_live_is_given_up_in_one_sentence(
    make: Make, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(beside, "FIRST_PAUSE_S", 0.0)
    monkeypatch.setattr(beside, "RESTARTS", 2)
    gateway = make("--no-such-option")
    until(lambda: gateway.keep_alive() or gateway.given_up)  # type: ignore[func-returns-value]
    assert len(said) == 3
    assert "is not started once more: Triton serves on, and `inflight gateway` starts one by hand." in said[-1]
    gateway.keep_alive()
    assert len(said) == 3
    assert gateway.pid is None


def test_it_is_not_ready_from_the_first_moment_of_its_leaving(make: Make) -> None:
    gateway = make("--drain-notice", "0.6")
    until(lambda: answer(gateway.url)[0] == 503)
    gateway.leave(at_once=False)
    until(lambda: answer(gateway.url) == (503, "the gateway is draining"), 0.5)
    began = time.monotonic()
    gateway.finish()
    assert gateway.pid is None
    assert time.monotonic() - began < 3
    gateway.keep_alive()
    assert gateway.pid is None, "one that was told to leave is not started again"


def test_a_second_signal_hurries_it(make: Make) -> None:
    gateway = make("--drain-notice", "30")
    until(lambda: answer(gateway.url)[0] == 503)
    began = time.monotonic()
    gateway.leave(at_once=False)
    gateway.finish(hurry=lambda: True)
    assert gateway.pid is None
    assert time.monotonic() - began < 3


def test_it_ends_with_who_started_it(tmp_path: Path) -> None:
    port = Ports.free().gateway
    child = os.fork()
    if child == 0:  # as serve.py that is killed
        words = ["--triton", "127.0.0.1:9", "--port", str(port), "--drain-notice", "0"]
        gateway = GatewayProcess(f"http://127.0.0.1:{port}", words, tmp_path / "log", print, drain_s=1.0)
        gateway.start()
        (tmp_path / "pid").write_text(str(gateway.pid), encoding="utf-8")
        time.sleep(60)
        os._exit(0)
    until(lambda: answer(f"http://127.0.0.1:{port}")[0] == 503)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    pid = int((tmp_path / "pid").read_text(encoding="utf-8"))
    until(lambda: not is_alive(pid), 5.0)


# --- What is asked of `inflight serve`. -------------------------------------------------------------------------------


def server(tmp_path: Path, port: int = 8080) -> Server:
    (tmp_path / "llm").mkdir()
    config = ServerConfig(repository=tmp_path, ports=Ports(gateway=port), log=tmp_path / "log")
    return Server(config, triton=object())  # type: ignore[arg-type]


def test_a_package_that_lacks_names_the_extra_and_triton_is_served_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(beside, "PACKAGES", ("no_such_package",))
    monkeypatch.delenv("INFLIGHT_GATEWAY_PORT")
    made = server(tmp_path)
    assert serve.gateway_of(made, options()) is None
    told = capsys.readouterr().err
    assert told.startswith("no gateway on port 8080: the gateway needs the package no_such_package, which ")
    assert told.endswith(' lacks: pip install "inflight[gateway]"; --no-gateway does without it.\n')
    with pytest.raises(Failure, match=r'^the gateway needs the package no_such_package, .*"inflight\[gateway\]"\.$'):
        serve.gateway_of(made, options("--gateway-port", "8080"))


def test_keys_that_cannot_be_read_are_one_sentence_before_anything_starts(tmp_path: Path) -> None:
    with pytest.raises(Failure, match=r"^--api-keys: .*nothing cannot be read \(No such file or directory\)\.$"):
        serve.gateway_of(server(tmp_path), options("--gateway-port", "8080", "--api-keys", str(tmp_path / "nothing")))


def test_the_port_is_8080_unless_said_otherwise_and_0_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("INFLIGHT_GATEWAY_PORT")
    assert options().gateway_port == Ports().gateway == 8080
    assert options("--no-gateway").gateway_port == 0
    assert options("--gateway-port", "0").gateway_port == 0
    assert options("--gateway-port", "9000").gateway_port == 9000
    monkeypatch.setenv("INFLIGHT_GATEWAY_PORT", "9001")
    assert options().gateway_port == 9001


def test_a_wrong_port_in_the_environment_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("INFLIGHT_GATEWAY_PORT", "many")
    with pytest.raises(SystemExit):
        options()
    assert capsys.readouterr().err.startswith("error: INFLIGHT_GATEWAY_PORT: 'many' is not a port")


def test_a_port_that_is_taken_is_said_before_triton_starts() -> None:
    ports = Ports.free()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", ports.gateway))
        taken.listen()
        sentence = rf"port {ports.gateway} .*--gateway-port or INFLIGHT_GATEWAY_PORT; --no-gateway starts none\.$"
        with pytest.raises(Failure, match=sentence):
            ports.check("127.0.0.1")


# --- What it hands on to the gateway. ---------------------------------------------------------------------------------


def of_gateway(*words: str) -> argparse.Namespace:
    return gateway_options.parser("inflight gateway", "").parse_args(words)


def test_every_option_of_the_gateway_can_be_said_here_and_arrives(tmp_path: Path) -> None:
    """But those that say where it is, and how it drains: these are the server's."""
    own = {"triton", "health", "host", "port", "drain_notice", "drain_timeout"}
    given = [
        *("--api-keys", "keys", "--workers", "2", "--max-requests", "3", "--max-requests-per-key", "2"),
        *("--max-body-bytes", "1000", "--unknown-fields", "refuse", "--head-timeout", "1", "--body-timeout", "2.5"),
        *("--write-timeout", "3", "--keep-alive", "4", "--tls-cert", "cert.pem", "--tls-key", "key.pem"),
        *("--cors-origin", "https://a.example", "--cors-origin", "https://b.example", "--no-playground"),
        *("--log-format", "json"),
    ]
    direct, by_default = of_gateway(*given), of_gateway()
    unsaid = {name for name, value in vars(direct).items() if value == vars(by_default)[name]}
    assert unsaid == own, "an option of the gateway that this test does not know"
    found = of_gateway(*gateway_options.words(options("--gateway-port", "8080", *given)))
    for name, value in vars(direct).items():
        assert vars(found)[name] == (value.absolute() if isinstance(value, Path) else value), name
    assert gateway_options.words(options()) == []


def test_an_option_of_a_gateway_that_is_not_started_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    for none, leave in (("--no-gateway", "--no-gateway"), ("--gateway-port=0", "--gateway-port 0")):
        for given in (["--tls-cert", "a.pem"], ["--api-keys", "keys"], ["--no-playground"]):
            with pytest.raises(SystemExit):
                options(none, *given)
            assert capsys.readouterr().err == (
                f"error: {given[0]} is for the gateway, and none is started here: leave out {leave}, or start "
                "`inflight gateway` with it (see inflight serve --help)\n"
            )


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--tls-key", "key.pem"], r"^--tls-key needs --tls-cert: give both\.$"),
        (["--tls-cert", "nothing.pem"], r"^--tls-cert: nothing\.pem cannot be read \(No such file or directory\)\.$"),
    ],
)
def test_certificates_are_looked_at_before_anything_starts(tmp_path: Path, words: list[str], sentence: str) -> None:
    with pytest.raises(Failure, match=sentence):
        serve.gateway_of(server(tmp_path), options("--gateway-port", "8080", *words))


def test_what_the_gateway_is_told_needs_none_of_its_packages() -> None:
    """`inflight serve` reads it where they lie in a folder that it does not look into, or lack."""
    code = "import sys, inflight_gateway.options; print(sorted({name.partition('.')[0] for name in sys.modules}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, encoding="utf-8", check=True, timeout=60)
    assert not set(ast.literal_eval(done.stdout)) & (set(beside.PACKAGES) - {"inflight_gateway"})


def test_one_that_speaks_tls_to_pages_of_other_origins_is_asked_so_and_is_kept(tmp_path: Path) -> None:
    cert, key = certificate(tmp_path)
    port = Ports.free().gateway
    given = ["--tls-cert", str(cert), "--tls-key", str(key), "--cors-origin", "https://page.example"]
    gateway = serve.gateway_of(server(tmp_path, port), options("--gateway-port", str(port), *given))
    assert gateway is not None
    assert gateway.url == f"https://127.0.0.1:{port}"
    gateway.start()
    try:
        until(lambda: gateway.why_not() not in ("it does not answer", ""))  # there is no Triton
        context = ssl.create_default_context(cafile=cert)
        context.check_hostname = False
        connection = http.client.HTTPSConnection("127.0.0.1", port, context=context, timeout=10)
        connection.request("GET", "/live", headers={"origin": "https://page.example"})
        answer = connection.getresponse()
        assert answer.status == 200
        assert answer.getheader("access-control-allow-origin") == "https://page.example"
        connection.close()
    finally:
        gateway.leave(at_once=True)
        gateway.finish()
