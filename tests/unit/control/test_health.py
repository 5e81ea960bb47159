"""Health, the edge: a real port, real control sockets, and a Triton that is a few lines of HTTP."""

from __future__ import annotations

import contextlib
import http.client
import http.server
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bench.recipes import haproxy_program
from inflight import control
from inflight.control import folder as control_folder
from inflight.control.health import MAX_CONNECTIONS, REQUEST_S, HealthServer, listen
from inflight.control.watch import Watch

PACKAGES = str(Path(control.__file__).resolve().parents[2])
SOON_S = 1.0


class Model:
    """What `open_control` needs of a backend."""

    def __init__(self) -> None:
        self.said: dict[str, Any] = {"ready": True, "health": "ready", "reason": "", "phase": "serving"}

    def status(self) -> dict[str, Any]:
        return self.said

    def health(self) -> dict[str, Any]:
        return self.said

    def drain(self, timeout_ms: int | None, notice_ms: int | None) -> dict[str, Any]:
        self.said = {"ready": False, "health": "draining", "reason": "it leaves", "phase": "notice"}
        return {"drained": True}

    def undrain(self) -> dict[str, Any]:
        self.said = {"ready": True, "health": "ready", "reason": "", "phase": "serving"}
        return {"undrained": True}

    def retire(self) -> None:
        pass


class Triton:
    """Answers as Triton does about health. `silent`: it says nothing; `one_in`: nothing to one in so many."""

    def __init__(self) -> None:
        triton = self
        self.ready = {"llm"}
        self.silent = threading.Event()
        self.go_on = threading.Event()
        self.connections = self.open = self.one_in = 0

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def setup(self) -> None:
                triton.connections += 1
                self.number = triton.connections
                triton.open += 1
                super().setup()

            def finish(self) -> None:
                super().finish()
                triton.open -= 1

            def do_GET(self) -> None:
                if triton.silent.is_set() or (triton.one_in and self.number % triton.one_in == 0):
                    triton.go_on.wait(30.0)
                name = self.path.split("/")[3] if self.path.startswith("/v2/models/") else None
                self.send_response(200 if name is None or name in triton.ready else 400)
                self.send_header("Content-Length", "2")
                self.end_headers()
                self.wfile.write(b"{}")

            def log_message(self, *_: Any) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self.go_on.set()
        self._server.shutdown()
        self._server.server_close()


class Rig:
    """A model, a Triton, and the port of their health."""

    def __init__(self, wanted: tuple[str, ...] = ()) -> None:
        self.triton, self.model = Triton(), Model()
        self.control = control.open_control("llm", self.model)
        listener = listen("127.0.0.1", 0)
        self.port = listener.getsockname()[1]
        watch = Watch("127.0.0.1", self.triton.port, control_folder.own_folders, wanted=wanted)
        self.health = HealthServer(listener, watch)
        self.health.start()

    def get(self, path: str = "/ready", method: str = "GET") -> tuple[int, Any]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=SOON_S)
        with contextlib.closing(connection):
            connection.request(method, path)
            answer = connection.getresponse()
            body = answer.read()
            return answer.status, json.loads(body) if body else None

    def becomes(self, status: int, path: str = "/ready", within_s: float = SOON_S) -> dict[str, Any]:
        """What it says when it answers so, at most a second after this was called."""
        give_up = time.monotonic() + within_s + 0.5  # of a busy machine
        while (answer := self.get(path))[0] != status:
            assert time.monotonic() < give_up, answer
            time.sleep(0.02)
        said: dict[str, Any] = answer[1]
        return said

    def agent(self) -> str:
        with socket.create_connection(("127.0.0.1", self.port), SOON_S) as connection:
            connection.sendall(b"agent\n")
            return connection.makefile(encoding="utf-8").read()

    def close(self) -> None:
        self.health.stop()
        self.control.stop(2.0)
        self.triton.close()


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("INFLIGHT_CONTROL_DIR", str(tmp_path / "control"))
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    monkeypatch.setattr(control_folder.tempfile, "gettempdir", lambda: str(tmp_path))
    monkeypatch.setattr(control_folder, "RUN_USERS", tmp_path / "run" / "user")
    monkeypatch.setattr(control_folder, "_choices", lambda *_: [tmp_path / "control"])


@pytest.fixture
def rig() -> Iterator[Rig]:
    made = Rig()
    yield made
    made.close()


def test_the_same_is_said_to_everybody_who_asks(rig: Rig) -> None:
    said = rig.becomes(200, within_s=3.0)
    assert said["models"]["llm"]["health"] == "ready"
    for path in ("/ready", "/health/ready", "/live", "/health/live", "/ready/llm", "/ready?x=1"):
        assert rig.get(path)[0] == 200, path
    assert rig.get("/ready", "HEAD") == (200, None)
    assert rig.get("/ready", "POST")[0] == 405
    assert rig.get("/nothing")[0] == rig.get("/ready/another")[0] == 404
    assert rig.agent() == "up ready\n"


def test_a_drain_is_seen_and_its_end_too(rig: Rig) -> None:
    rig.becomes(200, within_s=3.0)
    control.ask_all({"command": "drain"}, 5.0)
    assert rig.becomes(503)["reason"] == "model llm: it leaves"
    assert (rig.agent(), rig.get("/live")[0], rig.get("/ready/llm")[0]) == ("drain\n", 200, 503)
    control.ask_all({"command": "undrain"}, 5.0)
    rig.becomes(200)
    assert rig.agent() == "up ready\n"


@pytest.mark.parametrize("what", ["unloaded", "lost", "silent Triton"])
def test_what_goes_is_noticed_within_a_second(rig: Rig, what: str) -> None:
    rig.becomes(200, within_s=3.0)
    if what == "unloaded":
        rig.triton.ready.clear()
        assert rig.becomes(503)["reason"] == "no model is loaded"
        rig.control.stop(2.0)
        assert rig.becomes(503)["models"].keys() <= {"llm"}
        assert rig.get("/live")[0] == 200
    elif what == "lost":
        rig.control.stop(2.0)
        assert "its process is gone" in rig.becomes(503)["reason"]
    else:
        rig.triton.silent.set()
        assert "Triton has not answered" in rig.becomes(503)["reason"]
        assert rig.get("/live")[0] == 503
        rig.triton.silent.clear()
        rig.triton.go_on.set()
        rig.becomes(200)


def test_a_model_that_does_not_answer_keeps_nobody_waiting(rig: Rig) -> None:
    """One that was stopped (SIGSTOP), beside one that is well, and a file that is no socket."""
    rig.becomes(200, within_s=3.0)
    rig.triton.ready.add("deaf")
    (control.control_dir() / "file-1.sock").write_text("")
    with socket.socket(socket.AF_UNIX) as deaf:
        deaf.bind(str(control.control_dir() / "deaf-1.sock"))
        deaf.listen(64)
        time.sleep(0.5)
        for _ in range(100):
            began = time.monotonic()
            assert rig.get("/ready/llm")[0] == 200
            assert time.monotonic() - began < 0.5
    assert rig.get()[0] == 200  # nobody has ever heard of that model


def test_a_thread_of_triton_that_loads_a_model_does_not_make_it_silent(rig: Rig) -> None:
    """Its connections are not answered for as long as that takes; those of the other threads are."""
    rig.becomes(200)
    rig.triton.one_in = 2
    until = time.monotonic() + 3.0
    while time.monotonic() < until:
        for path in ("/live", "/ready"):
            status, said = rig.get(path)
            assert status == 200, said
        time.sleep(0.02)


def test_a_connection_to_triton_does_not_outlive_its_question(rig: Rig) -> None:
    """Triton's stop waits for open ones."""
    rig.becomes(200, within_s=3.0)
    open_at = []
    while rig.triton.connections < 8:
        open_at.append(rig.triton.open)
        time.sleep(0.02)
    assert max(open_at) <= 1
    assert sum(open_at) < len(open_at) / 2


def test_clients_that_say_nothing_or_nonsense_cost_the_others_nothing(rig: Rig) -> None:
    rig.becomes(200, within_s=3.0)
    with contextlib.ExitStack() as stack:
        for number in range(40):
            mute = stack.enter_context(socket.create_connection(("127.0.0.1", rig.port), 5.0))
            mute.sendall((b"", b"GET /re", b"\0\xff\n\n", b"x" * 9000, b"GET\n\n")[number % 5])
        began = time.monotonic()
        assert rig.get()[0] == 200
        assert time.monotonic() - began < 0.5
        first = stack.enter_context(socket.create_connection(("127.0.0.1", rig.port), 5.0))
        assert first.recv(1) == b""  # hung up, after a time-out
        assert 0.8 * REQUEST_S < time.monotonic() - began < REQUEST_S + 2.0
    assert MAX_CONNECTIONS >= 2 * 40


def test_beside_any_triton_as_a_program(tmp_path: Path, rig: Rig) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "inflight.control", "health", "--port", str(port), "--model", "llm"]
    process = subprocess.Popen(
        [*command, "--triton", f"127.0.0.1:{rig.triton.port}"],
        env={"PYTHONPATH": PACKAGES, "INFLIGHT_CONTROL_DIR": os.environ["INFLIGHT_CONTROL_DIR"]},
        stderr=subprocess.PIPE,
    )
    own_port, rig.port = rig.port, port

    def answers() -> bool:
        with contextlib.suppress(OSError):
            return rig.get()[0] == 200
        return False

    try:
        wait_until(answers)
        rig.model.drain(None, None)
        assert rig.becomes(503)["reason"] == "model llm: it leaves"
        taken = subprocess.run(command, env={"PYTHONPATH": PACKAGES}, capture_output=True, text=True, timeout=30)
        assert (taken.returncode, taken.stderr.count("\n")) == (1, 1)
        assert "cannot be used" in taken.stderr
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0
    finally:
        process.kill()
        process.communicate()
        rig.port = own_port


def test_what_it_is_made_of_is_in_every_python() -> None:
    program = "import sys, inflight.control.__main__ as m; print(*sorted(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-S", "-c", program], env={"PYTHONPATH": PACKAGES}, capture_output=True, text=True, check=True
    )
    assert not {"torch", "numpy", "msgspec", "tokenizers"} & set(done.stdout.split())


def wait_until(condition: Callable[[], bool]) -> None:
    give_up = time.monotonic() + 15.0
    while not condition():
        assert time.monotonic() < give_up
        time.sleep(0.05)


@pytest.mark.skipif(not haproxy_program(), reason="haproxy is missing: apt-get install haproxy")
def test_a_real_haproxy_understands_the_agents_line(rig: Rig, tmp_path: Path) -> None:
    rig.becomes(200, within_s=3.0)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        front = probe.getsockname()[1]
    config = tmp_path / "haproxy.cfg"
    folder = tempfile.TemporaryDirectory(prefix="ha-", dir="/tmp")  # a socket's path has 97 bytes at most there
    admin = Path(folder.name) / "admin"
    agent = f'agent-check agent-port {rig.port} agent-inter 200 agent-send "agent\\n"'
    config.write_text(
        f"global\n stats socket {admin}\ndefaults\n mode http\n timeout connect 2s\n timeout client 9s\n"
        f" timeout server 9s\n timeout check 1s\nlisten all\n bind 127.0.0.1:{front}\n"
        f" option httpchk GET /live\n server s0 127.0.0.1:{rig.triton.port} weight 100 check port {rig.port} {agent}\n"
    )

    def state() -> str:
        with socket.socket(socket.AF_UNIX) as connection:
            try:
                connection.connect(str(admin))
                connection.sendall(b"show stat\n")
                lines = connection.makefile(encoding="utf-8").read().splitlines()
            except OSError:
                return ""
        fields = next(line.split(",") for line in lines if line.startswith("all,s0,"))
        return f"{fields[17].split()[0]} {fields[18]}"

    with subprocess.Popen([haproxy_program(), "-db", "-f", config], stderr=subprocess.DEVNULL) as process:
        try:
            wait_until(lambda: state() == "UP 100")
            rig.model.drain(None, None)
            wait_until(lambda: state() == "DRAIN 100")
            rig.model.said = {"ready": False, "health": "restarting", "reason": "lost", "phase": "serving"}
            wait_until(lambda: state() == "DOWN 100")
            rig.model.undrain()
            wait_until(lambda: state() == "UP 100")
        finally:
            process.terminate()
            folder.cleanup()
