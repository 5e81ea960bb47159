"""Starting and stopping servers: ports, stragglers, shared memory, foreign ones. The servers here are shell scripts."""

from __future__ import annotations

import contextlib
import mmap
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from inflight.triton.region import InUse, is_in_use, mark_of
from inflight_tools.common.layout import BACKEND_SOURCE, SCRIPTS
from inflight_tools.common.report import Failure
from inflight_tools.server import drain as control
from inflight_tools.server import find as triton
from inflight_tools.server import shm
from inflight_tools.server.find import Triton
from inflight_tools.server.processes import command_line, is_alive, kill_all, marked_pids, owes_nothing
from inflight_tools.server.server import Ports, Server, ServerConfig
from tests.harness.namespaces import APART, needs_pid_namespace

pytestmark = pytest.mark.fast


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A model repository with one model."""
    (tmp_path / "repository" / "llm").mkdir(parents=True)
    return tmp_path / "repository"


Fake = Callable[..., Server]


@pytest.fixture
def fake(tmp_path: Path, repository: Path) -> Iterator[Fake]:
    """Servers whose tritonserver is a shell script."""
    made: list[Server] = []

    def make(script: str, **config: object) -> Server:
        program = tmp_path / "tritonserver"
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)
        settings = {"repository": repository, "log": tmp_path / "log", "stop_timeout_s": 1.0, **config}
        server = Server(ServerConfig(**settings), Triton(program, tmp_path / "backends"))  # type: ignore[arg-type]
        made.append(server)
        return server

    yield make
    for server in made:
        server.stop()


def wait_until(condition: Callable[[], object], seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)


# --- Ports ------------------------------------------------------------------------------------------------------------


def test_free_ports_are_five_different_ones_that_can_be_used() -> None:
    ports = Ports.free()
    ports.check("127.0.0.1")
    assert len({ports.http, ports.grpc, ports.metrics, ports.health, ports.gateway}) == 5


def test_a_taken_port_is_named_with_the_way_to_choose_another() -> None:
    ports = Ports.free()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", ports.grpc))
        taken.listen()
        with pytest.raises(Failure, match=rf"port {ports.grpc} .*--grpc-port or INFLIGHT_GRPC_PORT"):
            ports.check("127.0.0.1")


def test_one_port_for_two_purposes_is_refused() -> None:
    with pytest.raises(Failure, match="have to differ"):
        Ports(http=9000, grpc=9000).check("127.0.0.1")
    with pytest.raises(Failure, match="--health-port"):
        Ports(http=9000, health=9000).check("127.0.0.1")


# --- Start ------------------------------------------------------------------------------------------------------------


def test_the_command_line_has_what_was_asked_for(fake: Fake, repository: Path) -> None:
    command = fake("", ports=Ports(1, 2, 3), host="0.0.0.0", arguments=("--log-verbose=1",)).command()
    assert {
        f"--model-repository={repository}",
        "--http-port=1",
        "--grpc-port=2",
        "--metrics-port=3",
        "--grpc-address=0.0.0.0",
        "--model-control-mode=explicit",
        "--load-model=llm",
    } <= set(command)
    assert command[-1] == "--log-verbose=1"
    assert not [argument for argument in fake("", models=()).command() if "load-model" in argument]


def test_an_unknown_model_is_refused_with_those_there_are(fake: Fake) -> None:
    with pytest.raises(Failure, match=r"has no model 'other': it has llm;"):
        fake("", models=("other",))


def test_a_server_that_ends_says_why_and_only_of_this_run(fake: Fake, tmp_path: Path) -> None:
    (tmp_path / "log").write_text("error: creating server: Internal - an old failure\n")
    server = fake("echo; echo 'error: creating server: Internal - the disk is made of cheese'; exit 1")
    server.start()
    with pytest.raises(Failure, match="did not start: the disk is made of cheese"):
        server.wait_ready(10)


def test_a_server_that_never_gets_ready(fake: Fake) -> None:
    server = fake("exec sleep 60")
    server.start()
    with pytest.raises(Failure, match=r"not ready after 0 s: look at the end of .*log"):
        server.wait_ready(0.3)


# --- Stop -------------------------------------------------------------------------------------------------------------


def test_an_orderly_stop(fake: Fake) -> None:
    server = fake("trap 'exit 0' TERM; echo up; while :; do sleep 0.05; done")
    with server:
        wait_until(server.log_text)
    assert server.exit_status() == 0
    assert not server.killed
    assert server.processes() == []


def test_a_server_that_does_not_stop_is_killed_in_time(fake: Fake) -> None:
    server = fake("trap '' TERM; echo up; while :; do sleep 0.05; done")
    server.start()
    wait_until(server.log_text)
    begin = time.monotonic()
    assert server.stop() == -signal.SIGKILL
    assert server.killed
    assert time.monotonic() - begin < 8
    assert server.processes() == []


def test_hurry_cuts_the_wait_short(fake: Fake) -> None:
    server = fake("trap '' TERM; echo up; while :; do sleep 0.05; done", stop_timeout_s=60.0)
    server.start()
    wait_until(server.log_text)
    begin = time.monotonic()
    server.stop(hurry=lambda: True)
    assert time.monotonic() - begin < 10
    assert server.killed


def test_what_left_the_process_group_is_found_and_killed(fake: Fake, tmp_path: Path) -> None:
    """An engine process may have a session of its own, and a server that was killed does not end it."""
    server = fake(f"setsid sleep 300 & echo $! > {tmp_path}/pid; exec sleep 300")
    server.start()
    wait_until(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text().strip())
    straggler = int((tmp_path / "pid").read_text())
    os.kill(server.pid, signal.SIGKILL)
    wait_until(lambda: not is_alive(server.pid))
    assert is_alive(straggler)
    server.stop()
    assert not is_alive(straggler)


def test_a_server_ends_with_the_process_that_started_it(tmp_path: Path, repository: Path) -> None:
    program = tmp_path / "tritonserver"
    program.write_text("#!/bin/sh\nexec sleep 300\n")
    program.chmod(0o755)
    starter = f"""
import sys, time
from pathlib import Path
sys.path[:0] = {[path for path in sys.path if path]!r}
from inflight_tools.server.server import Server, ServerConfig
from inflight_tools.server.find import Triton
server = Server(ServerConfig(repository=Path({str(repository)!r}), log=Path({str(tmp_path / "log")!r})),
                Triton(Path({str(program)!r}), Path("/")))
server.start()
print(server.pid, flush=True)
time.sleep(300)
"""
    with subprocess.Popen([sys.executable, "-c", starter], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        pid = int(process.stdout.readline())
        assert is_alive(pid)
        process.kill()
    wait_until(lambda: not is_alive(pid))


def test_idle_connections_do_not_hold_the_stop_of_a_drained_server(
    fake: Fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Triton waits for the connections that proxies keep open, until its exit time-out."""
    owed = [False]
    server = fake("trap '' TERM; sleep 300", drain_timeout_s=5.0, stop_timeout_s=60.0)
    monkeypatch.setattr("inflight_tools.server.server.drain_models", lambda *_: {"llm-1": {"left": 0}})
    monkeypatch.setattr("inflight_tools.server.server.owes_nothing", lambda *_: not owed[0])
    server.start()
    wait_until(lambda: command_line(server.pid)[:1] == ["/bin/sh"])
    time.sleep(0.2)
    began = time.monotonic()
    server.stop()
    assert 3.0 <= time.monotonic() - began < 5.5
    assert server.drained


def test_a_connection_is_idle_when_nothing_is_on_its_way() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)) as client:
            server, _ = listener.accept()
            with server:
                assert owes_nothing(os.getpid(), [port])
                server.setblocking(False)
                with contextlib.suppress(BlockingIOError):
                    while True:
                        server.send(b"x" * 65536)
                assert not owes_nothing(os.getpid(), [port])
                assert owes_nothing(os.getpid(), [1])
                while client.recv(1 << 20):
                    if owes_nothing(os.getpid(), [port]):
                        break
                client.sendall(b"a request")
                wait_until(lambda: not owes_nothing(os.getpid(), [port]))


def test_a_drain_without_models_is_no_drain(fake: Fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INFLIGHT_CONTROL_DIR", str(tmp_path / "control"))
    server = fake("exec sleep 300", drain_timeout_s=5.0)
    server.start()
    assert server.drain() == {}
    assert control.drain_models([os.getpid()], 0.1) == {}
    assert not server.drained


# --- Paths that Triton cannot start a backend from -------------------------------------------------------------------


@pytest.mark.parametrize("name", ["my models", "a\tb", "$HOME", "a;b", "it's", "a&b", "(x)", "a*"])
def test_a_repository_that_bash_would_read_otherwise_is_refused_before_the_start(tmp_path: Path, name: str) -> None:
    (tmp_path / name / "llm").mkdir(parents=True)
    with pytest.raises(Failure, match="--repository"):
        Server(ServerConfig(repository=tmp_path / name), Triton(tmp_path / "x", tmp_path / "backends"))
    (tmp_path / "models").symlink_to(tmp_path / name)
    Server(ServerConfig(repository=tmp_path / "models"), Triton(tmp_path / "x", tmp_path / "backends"))


@pytest.mark.parametrize("models", [(), ("my model",)])
def test_a_model_of_such_a_name_is_refused_before_the_start(tmp_path: Path, models: tuple[str, ...]) -> None:
    (tmp_path / "my model").mkdir()
    (tmp_path / "my model" / "config.pbtxt").touch()
    with pytest.raises(Failure, match="rename"):
        Server(ServerConfig(repository=tmp_path, models=models), Triton(tmp_path / "x", tmp_path / "backends"))


@pytest.mark.parametrize("name", ["my checkout", "größe"])
def test_a_checkout_that_triton_cannot_start_a_backend_from_is_refused(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrapper = tmp_path / name / "bin" / "tritonserver"
    wrapper.parent.mkdir(parents=True)
    wrapper.touch()
    monkeypatch.setattr(triton, "WRAPPER", wrapper)
    monkeypatch.setattr(triton, "BACKENDS", tmp_path / name / "backends")
    with pytest.raises(Failure, match="move the checkout"):
        triton.find_triton()


@pytest.mark.parametrize("name", ["my server", "größe"])
def test_an_installed_server_that_triton_cannot_start_a_backend_from_is_refused(
    container: Path, tmp_path: Path, name: str
) -> None:
    (container.parent.parent / "backends" / "inflight").mkdir()
    (container.parent.parent / "backends" / "inflight" / "model.py").touch()
    container.parent.parent.rename(tmp_path / name)
    with pytest.raises(Failure, match="or the server"):
        triton.find_triton(tmp_path / name / "bin" / "tritonserver")


def test_serve_says_so_in_one_line(container: Path, tmp_path: Path) -> None:
    (container.parent.parent / "backends" / "inflight").mkdir()
    (container.parent.parent / "backends" / "inflight" / "model.py").touch()
    (tmp_path / "my models" / "llm").mkdir(parents=True)
    command = [sys.executable, str(SCRIPTS / "serve.py"), "--repository", str(tmp_path / "my models")]
    command += ["--tritonserver", str(container)]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", timeout=60)
    assert done.returncode == 1
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert "a blank in the path of the model repository" in line


# --- Processes and shared memory --------------------------------------------------------------------------------------


def test_processes_are_found_by_their_mark() -> None:
    environment = {**os.environ, "INFLIGHT_TEST_MARK": "abc"}
    with subprocess.Popen(["sleep", "300"], env=environment) as process:
        wait_until(lambda: command_line(process.pid)[:1] == ["sleep"])
        assert marked_pids("INFLIGHT_TEST_MARK", "abc") == [process.pid]
        assert marked_pids("INFLIGHT_TEST_MARK", "ab") == []
        assert kill_all(lambda: marked_pids("INFLIGHT_TEST_MARK", "abc")) == [process.pid]
    assert command_line(process.pid) == []


DIES_SLOWLY = """
import fcntl, sys, threading, time
held = bytearray(b"x") * (400 << 20)
lock = open(sys.argv[1], "w")
fcntl.flock(lock, fcntl.LOCK_EX)
threading.Thread(target=time.sleep, args=(300,), daemon=True).start()
print("held", flush=True)
time.sleep(300)
"""


def test_who_was_killed_holds_nothing_any_more(tmp_path: Path) -> None:
    """While a process gives back its memory it has no environment any more, but its files and locks."""
    lock = tmp_path / "lock"
    environment = {**os.environ, "INFLIGHT_TEST_MARK": "slow"}
    command = [sys.executable, "-c", DIES_SLOWLY, str(lock)]
    for _ in range(3):
        with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"held\n"
            assert kill_all(lambda: marked_pids("INFLIGHT_TEST_MARK", "slow")) == [process.pid]
            assert is_in_use(lock) is False


@pytest.fixture
def region() -> Iterator[Path]:
    path = Path(f"/dev/shm/triton_inflight_backend_shm_region_test-{os.getpid()}-{time.monotonic_ns()}")
    path.write_bytes(b"\0" * mmap.PAGESIZE)
    yield path
    path.unlink(missing_ok=True)


def test_a_region_that_nobody_has_is_removed(region: Path) -> None:
    os.utime(region, (time.time() - 120, time.time() - 120))
    assert region in shm.sweep()
    assert not region.exists()


def test_a_young_region_that_no_stub_has_marked_yet_stays(region: Path) -> None:
    assert region not in shm.sweep()


def test_a_region_goes_with_the_stub_that_marked_it(region: Path) -> None:
    os.utime(region, (time.time() - 120, time.time() - 120))
    mark = mark_of(region)
    program = f"""
import pathlib, sys
from inflight.triton.region import InUse
in_use = InUse([pathlib.Path({str(region)!r})])
print("marked", flush=True)
sys.stdin.read()
"""
    command, environment = [sys.executable, "-c", program], {**os.environ, "PYTHONPATH": str(BACKEND_SOURCE)}
    pipes: dict[str, int] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, encoding="utf-8", env=environment, **pipes) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "marked\n"
        assert region not in shm.sweep()
        assert mark.exists()
        process.kill()
    os.utime(region)  # however young
    assert region in shm.sweep()
    assert not mark.exists()


def test_a_stub_finds_and_marks_its_own_region_by_itself(region: Path) -> None:
    with region.open("r+b") as file, mmap.mmap(file.fileno(), 0):
        file.close()
        in_use = InUse()
        try:
            assert is_in_use(mark_of(region)) is True
        finally:
            in_use.close()
    assert is_in_use(mark_of(region)) is None


@needs_pid_namespace
def test_a_region_of_a_living_stub_in_another_pid_namespace_stays(tmp_path: Path) -> None:
    region = tmp_path / "triton_inflight_backend_shm_region_x"
    region.write_bytes(bytes(mmap.PAGESIZE))
    os.utime(region, (time.time() - 120, time.time() - 120))
    program = f"""
import pathlib
from inflight_tools.server import shm
shm.FOLDER = pathlib.Path({str(tmp_path)!r})  # not the machine's: servers of an earlier version mark nothing
print(*shm.sweep())
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(BACKEND_SOURCE), str(SCRIPTS)])}
    command = [*APART, sys.executable, "-c", program]

    def removed_from_there() -> str:
        done = subprocess.run(command, env=environment, capture_output=True, check=True, timeout=60, encoding="utf-8")
        return done.stdout.strip()

    with region.open("rb") as held:
        in_use = InUse([region])
        assert removed_from_there() == ""
        in_use.close()
        assert held.read(1) == b"\0"
    assert removed_from_there() == str(region)
    assert list(tmp_path.iterdir()) == []


def test_a_region_that_is_open_or_mapped_stays(region: Path) -> None:
    with region.open("r+b") as file:
        assert region not in shm.sweep()
        mapped = mmap.mmap(file.fileno(), 0)
    # mmap keeps a descriptor of its own; what a stub keeps is the mapping alone
    assert region not in shm.sweep()
    mapped.close()
    os.utime(region, (time.time() - 120, time.time() - 120))
    assert region in shm.sweep()


def test_a_region_that_is_only_mapped_stays(region: Path) -> None:
    program = f"""
import ctypes, os, time
descriptor = os.open({str(region)!r}, os.O_RDWR)
libc = ctypes.CDLL(None)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
assert libc.mmap(None, 4096, 3, 1, descriptor, 0) not in (None, 2 ** 64 - 1)
os.close(descriptor)
print("mapped", flush=True)
time.sleep(300)
"""
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "mapped\n"
        assert region not in shm.sweep()
        process.kill()
    wait_until(lambda: not is_alive(process.pid))
    os.utime(region, (time.time() - 120, time.time() - 120))
    assert region in shm.sweep()


# --- Other people's Triton --------------------------------------------------------------------------------------------


@pytest.fixture
def container(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A Triton as its containers have it, in a folder; returns its tritonserver."""
    root = tmp_path / "opt" / "tritonserver"
    for backend in ("python", "onnxruntime"):
        (root / "backends" / backend).mkdir(parents=True)
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    (root / "backends" / "python" / "triton_python_backend_stub").write_bytes(f"…libpython{version}.so.1.0…".encode())
    program = root / "bin" / "tritonserver"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    monkeypatch.setattr(triton, "CACHE", tmp_path / "cache")
    return program


def test_a_foreign_server_gets_its_own_backends_and_ours(container: Path) -> None:
    for _ in range(2):  # the second time the links are there
        found = triton.find_triton(container)
        assert {path.name for path in found.backend_directory.iterdir()} == {"python", "onnxruntime", "inflight"}
        assert (found.backend_directory / "inflight" / "model.py").exists()
    assert found.environment["PATH"].startswith(str(Path(sys.executable).parent))


def test_a_foreign_server_with_this_backend_installed_is_used_as_it_is(container: Path) -> None:
    installed = container.parent.parent / "backends" / "inflight"
    installed.mkdir()
    (installed / "model.py").touch()
    assert triton.find_triton(container).backend_directory == installed.parent


def test_a_foreign_server_of_another_python_is_refused(container: Path) -> None:
    stub = container.parent.parent / "backends" / "python" / "triton_python_backend_stub"
    stub.write_bytes(b"libpython3.8.so.1.0")
    with pytest.raises(Failure, match=r"runs Python 3\.8 and this script runs .*: start it with python3\.8"):
        triton.find_triton(container)


def test_a_foreign_server_without_python_backend_is_refused(container: Path) -> None:
    (container.parent.parent / "backends" / "python" / "triton_python_backend_stub").unlink()
    with pytest.raises(Failure, match="has no Python backend"):
        triton.find_triton(container)


def test_no_server_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton, "WRAPPER", tmp_path / "none")
    monkeypatch.setattr(triton, "CONTAINER", tmp_path / "none")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(Failure, match=r"there is no tritonserver here: run scripts/quickstart\.sh"):
        triton.find_triton()
