"""The control sockets: where they lie, who finds them, and that none is taken from a living model."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from inflight import control
from inflight.control import folder as control_folder
from inflight.errors import LoadError
from inflight_tools.server.drain import drain_models

NOBODY = 65534
PACKAGES = str(Path(control.__file__).resolve().parents[2])


class Model:
    """What `open_control` needs of a backend."""

    def __init__(self) -> None:
        self.drained = 0
        self.over = threading.Event()  # unset: a drain lasts
        self.over.set()

    def status(self) -> dict[str, Any]:
        return {"health": "ready"}

    def health(self) -> dict[str, Any]:
        return {"ready": not self.drained, "health": "drained" if self.drained else "ready"}

    def drain(self, timeout_ms: int | None, notice_ms: int | None) -> dict[str, Any]:
        self.drained += 1
        self.over.wait(20.0)
        return {"drained": True, "left": 0}

    def undrain(self) -> dict[str, Any]:
        self.drained = 0
        return {"undrained": True}

    def retire(self) -> None:
        pass


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """This test's own temporary folder, and no runtime folder."""
    for name in ("INFLIGHT_CONTROL_DIR", "XDG_RUNTIME_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(control_folder.tempfile, "gettempdir", lambda: str(tmp_path))
    monkeypatch.setattr(control_folder, "RUN_USERS", tmp_path / "run" / "user")


def private(folder: Path) -> Path:
    folder.mkdir(mode=0o700, parents=True)
    return folder


def ask_from_elsewhere(*arguments: str, **environment: str) -> list[dict[str, Any]]:
    """`python -m inflight.control` as an operator's shell runs it, with hardly anything in its environment."""
    return [json.loads(line) for line in command_from_elsewhere(*arguments, **environment).stdout.splitlines()]


def command_from_elsewhere(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "inflight.control", *arguments],
        env={"PYTHONPATH": PACKAGES, **environment},
        capture_output=True,
        encoding="utf-8",
        timeout=60,
    )


def listening(model: str = "llm", **environment: str) -> subprocess.Popen[str]:
    """A process that listens as a stub does, under a stub's name."""
    program = (
        "import sys, time; from inflight.control import ControlServer; "
        f"s = ControlServer({model!r}, {{'status': lambda _: {{'health': 'ready'}}}}); s.start(); "
        "print(s._path, flush=True); time.sleep(300)"
    )
    return subprocess.Popen(
        [control_folder.STUB, "-c", program],
        executable=sys.executable,
        env={"PYTHONPATH": PACKAGES, **environment},
        stdout=subprocess.PIPE,
        encoding="utf-8",
    )


@pytest.fixture
def stub(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    process = listening(TMPDIR=str(private(tmp_path / "of the server")), HOME=str(tmp_path))
    yield process
    process.kill()
    process.communicate()


def test_the_users_runtime_folder_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert control.control_dir() == tmp_path / f"inflight-control-{os.getuid()}"
    standard = private(tmp_path / "run" / "user" / str(os.getuid()))
    assert control.control_dir() == standard / "inflight-control"
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(private(tmp_path / "runtime")))
    assert control.control_dir() == tmp_path / "runtime" / "inflight-control"
    monkeypatch.setenv("INFLIGHT_CONTROL_DIR", str(tmp_path / "named"))
    assert control.control_dir() == tmp_path / "named"
    for folder in (tmp_path / "named", tmp_path / "runtime" / "inflight-control", standard / "inflight-control"):
        assert folder.stat().st_mode & 0o777 == 0o700
    assert control.candidate_folders() == [tmp_path / "named"]
    assert set(control.candidate_folders(everywhere=True)) >= {
        tmp_path / "named",
        tmp_path / "runtime" / "inflight-control",
        standard / "inflight-control",
        tmp_path / f"inflight-control-{os.getuid()}",
    }


def test_a_runtime_folder_that_is_not_there_or_open_to_others_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "none"))
    assert control.control_dir().parent == tmp_path
    open_folder = private(tmp_path / "open")
    open_folder.chmod(0o755)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(open_folder))
    assert control.control_dir().parent == tmp_path


def test_a_folder_that_others_can_enter_refuses_the_load(tmp_path: Path) -> None:
    taken = private(tmp_path / f"inflight-control-{os.getuid()}")
    taken.chmod(0o777)
    with pytest.raises(LoadError, match="INFLIGHT_CONTROL_DIR"):
        control.open_control("llm", Model())
    assert taken not in control.candidate_folders()


@pytest.mark.skipif(os.getuid() != 0, reason="only root can make a folder that is another user's")
def test_a_folder_of_another_user_refuses_the_load(tmp_path: Path) -> None:
    taken = private(tmp_path / f"inflight-control-{os.getuid()}")
    os.chown(taken, NOBODY, NOBODY)
    with pytest.raises(LoadError, match="not a folder of this user"):
        control.open_control("llm", Model())
    assert taken not in control.candidate_folders()


@pytest.mark.parametrize("name", ["m" * 255, "modèle"])
def test_long_names_in_a_deep_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv("INFLIGHT_CONTROL_DIR", str(tmp_path / ("d" * 120)))
    servers = [control.open_control(model, Model()) for model in (name, name + "x"[len(name) == 255 :])]
    try:
        answers = control.ask_all({"command": "status"}, 10.0)
        assert [answer["health"] for answer in answers.values()] == ["ready"] * 2
    finally:
        for server in servers:
            server.stop(5.0)
    assert not list((tmp_path / ("d" * 120)).iterdir())


def test_an_operator_with_another_environment_finds_the_model(stub: subprocess.Popen[str]) -> None:
    assert stub.stdout is not None
    path = Path(stub.stdout.readline().strip())
    (answer,) = (answer for answer in ask_from_elsewhere("status") if answer["model"] == path.stem)
    assert answer["health"] == "ready"


@pytest.mark.skipif(os.getuid() != 0, reason="only root speaks to the models of other users")
@pytest.mark.skipif(shutil.which("python3", path=os.defpath) is None, reason="no Python here that every user may run")
def test_root_finds_the_models_of_every_user(tmp_path: Path) -> None:
    def as_nobody() -> None:
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)

    program = (
        "import time; from inflight.control import ControlServer; "
        "s = ControlServer('of-nobody', {'status': lambda _: {'health': 'ready'}}); s.start(); "
        "print(s._path, flush=True); time.sleep(300)"
    )
    shared = tmp_path / "packages"
    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(Path(control.__file__).parents[1], shared / "inflight", ignore=ignore)
    for folder in (tmp_path, *tmp_path.parents):  # a user who may do nothing has to get there, under xdist too
        if folder != tmp_path and not folder.name.startswith(("pytest-", "popen-")):
            break
        folder.chmod(folder.stat().st_mode | 0o055)
    with subprocess.Popen(
        ["/usr/bin/env", "python3", "-c", program],
        env={"PYTHONPATH": str(shared), "PATH": os.defpath},
        cwd="/",
        preexec_fn=as_nobody,
        stdout=subprocess.PIPE,
        encoding="utf-8",
    ) as process:
        assert process.stdout is not None
        path = Path(process.stdout.readline().strip())
        try:
            assert path.parent == Path(f"/tmp/inflight-control-{NOBODY}")
            assert path.stem in {answer["model"] for answer in ask_from_elsewhere("status")}
        finally:
            process.kill()
            process.wait(10)
            path.unlink(missing_ok=True)
            path.parent.rmdir()


def test_a_socket_of_a_living_model_is_never_taken(stub: subprocess.Popen[str], tmp_path: Path) -> None:
    """In another PID namespace a model may run in a process with our id."""
    assert stub.stdout is not None
    theirs = Path(stub.stdout.readline().strip())
    path = control.control_dir() / f"llm-{os.getpid()}.sock"
    theirs.rename(path)
    model = Model()
    server = control.open_control("llm", model)
    try:
        assert server._path != path
        assert control.ask(path, {"command": "status"}, 5.0) == {"health": "ready"}
        assert list(drain_models([os.getpid()], 1.0)) == [server._path.stem]
        assert model.drained == 1
    finally:
        server.stop(5.0)
    assert path.exists()


@pytest.mark.parametrize("command", ["drain", "undrain", "status"])
def test_a_command_that_no_model_heard_fails(tmp_path: Path, command: str) -> None:
    """A preStop hook in a container whose user, or INFLIGHT_CONTROL_DIR, is not the server's would drain nothing, and
    nobody would learn of it.
    """
    done = command_from_elsewhere(command, INFLIGHT_CONTROL_DIR=str(private(tmp_path / "empty")))
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "no model that this user may speak to is running\n"


def test_a_command_that_every_model_heard_succeeds(tmp_path: Path) -> None:
    model = Model()
    server = control.open_control("llm", model)
    try:
        folder = str(control.control_dir())
        assert command_from_elsewhere("drain", "--timeout-ms", "0", INFLIGHT_CONTROL_DIR=folder).returncode == 0
        assert model.drained == 1
    finally:
        server.stop(5.0)


def test_a_model_that_hears_nobody_does_not_keep_another_from_draining(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that was stopped (SIGSTOP), say, with as many callers waiting as its socket takes."""
    folder = control.control_dir()
    server = control.open_control("llm", Model())
    with contextlib.ExitStack() as stack:
        deaf = stack.enter_context(socket.socket(socket.AF_UNIX))
        deaf.bind(str(folder / "deaf-1.sock"))
        deaf.listen(0)
        for _ in range(3):
            waiting = stack.enter_context(socket.socket(socket.AF_UNIX))
            waiting.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                waiting.connect(str(folder / "deaf-1.sock"))
        try:
            assert list(drain_models([os.getpid()], 1.0)) == [server._path.stem]
        finally:
            server.stop(5.0)


def test_a_socket_that_nobody_owns_any_more_is_removed(
    stub: subprocess.Popen[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("INFLIGHT_CONTROL_DIR", str(tmp_path / "control"))
    assert stub.stdout is not None
    theirs = Path(stub.stdout.readline().strip())
    stub.kill()
    stub.wait(10)
    left = control.control_dir() / f"llm-{os.getpid()}.sock"
    theirs.rename(left)
    assert control.ask_all({"command": "status"}, 5.0) == {}
    assert left.exists()  # it is young: somebody may be about to listen
    os.utime(left, (time.time() - 60, time.time() - 60))
    assert control.ask_all({"command": "status"}, 5.0) == {}
    assert not left.exists()


@pytest.mark.skipif(os.getuid() != 0, reason="only root looks into the folders of other users")
def test_what_another_user_put_into_his_folder_is_neither_asked_nor_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = control.open_control("llm", Model())
    left = tmp_path / "left.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(left))
    os.utime(left, (time.time() - 60, time.time() - 60))
    theirs = private(tmp_path / f"inflight-control-{NOBODY}")
    (theirs / "a-1.sock").symlink_to(server._path)
    (theirs / "b-1.sock").symlink_to(left)
    os.chown(theirs, NOBODY, NOBODY)
    monkeypatch.setattr(control.server, "candidate_folders", lambda: [theirs])
    try:
        answers = control.ask_all({"command": "status"}, 5.0)
    finally:
        server.stop(5.0)
    assert list(answers) == ["a-1"]
    assert "another process" in answers["a-1"]["error"]
    assert len(list(theirs.iterdir())) == 2
    assert left.exists()


def test_a_socket_whose_folder_was_removed_is_put_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INFLIGHT_CONTROL_DIR", str(tmp_path / "control"))
    server = control.open_control("llm", Model())
    try:
        shutil.rmtree(control.control_dir())
        give_up = time.monotonic() + 10.0
        while not list(control.control_dir().glob("*.sock")) and time.monotonic() < give_up:
            time.sleep(0.05)
        assert [answer["health"] for answer in control.ask_all({"command": "status"}, 10.0).values()] == ["ready"]
    finally:
        server.stop(5.0)


def test_health_is_answered_while_as_many_drains_as_anybody_likes_are_waited_for() -> None:
    model = Model()
    model.over.clear()
    server = control.open_control("llm", model)
    path = server._path
    callers = [
        threading.Thread(target=control.ask, args=(path, {"command": "drain"}, 30.0), daemon=True) for _ in range(9)
    ]
    try:
        for caller in callers:
            caller.start()
        give_up = time.monotonic() + 10.0
        while model.drained < 4 and time.monotonic() < give_up:
            time.sleep(0.01)
        began = time.monotonic()
        assert control.ask(path, {"command": "health"}, 5.0) == {"model": "llm", "ready": False, "health": "drained"}
        assert control.ask(path, {"command": "undrain"}, 5.0) == {"undrained": True}
        assert time.monotonic() - began < 1.0
    finally:
        model.over.set()
        for caller in callers:
            caller.join(10.0)
        server.stop(5.0)
    assert not any(caller.is_alive() for caller in callers)
