"""Children that end with the process that started them, and not with one of its threads."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from inflight_tools.common.layout import REPOSITORY
from inflight_tools.server.children import start_child
from inflight_tools.server.processes import is_alive

# Each starts, from a thread that ends, a child that notes how it was told to end.
STARTERS = {
    "start_child": "children.start_child(lambda bind: subprocess.Popen(command, preexec_fn=bind))",
    "end_with_parent": "subprocess.Popen(command)",
}
CHILD = """
import os, pathlib, signal, sys, time
from inflight_tools.server import children
def told(number, _frame):
    pathlib.Path(sys.argv[2]).write_text(signal.Signals(number).name)
    sys.exit()
signal.signal(signal.SIGTERM, told)
if sys.argv[1] == "end_with_parent":
    children.end_with_parent()
os.write(int(sys.argv[3]), b"bound")
time.sleep(60)
"""
PARENT = """
import os, subprocess, sys, threading, time
from inflight_tools.server import children
reading, writing = os.pipe()
os.set_inheritable(writing, True)
command = [sys.executable, "-c", CHILD, HOW, *sys.argv[1:], str(writing)]
found = []
def work():
    found.append(START)
    os.close(writing)
    os.read(reading, 5)  # the child's word, or its end
thread = threading.Thread(target=work)
thread.start()
thread.join()
print(found[0].pid, flush=True)
time.sleep(60)
"""


def gone(pid: int, within_s: float) -> bool:
    give_up = time.monotonic() + within_s
    while is_alive(pid) and time.monotonic() < give_up:
        time.sleep(0.02)
    return not is_alive(pid)


@pytest.mark.parametrize("how", STARTERS)
def test_a_child_outlives_the_thread_that_started_it_and_not_its_process(tmp_path: Path, how: str) -> None:
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY / "scripts")}
    program = PARENT.replace("CHILD", repr(CHILD)).replace("HOW", repr(how)).replace("START", STARTERS[how])
    program = program.replace("Popen(command", "Popen(command, close_fds=False")
    command = [sys.executable, "-c", program, str(tmp_path / "told")]
    parent = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    try:
        child = int(parent.stdout.readline())
        assert not gone(child, 1.0), "it has ended with the thread that started it"
        parent.kill()
        parent.wait(10)
        assert gone(child, 10.0), "it has outlived its parent"
    finally:
        parent.kill()
    assert (tmp_path / "told").read_text() == "SIGTERM", "a server stops in order"


def test_a_child_that_cannot_be_started_raises_where_it_was_asked_for(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        start_child(lambda bind: subprocess.Popen([tmp_path / "nothing"], preexec_fn=bind))
    assert start_child(lambda bind: subprocess.Popen(["true"], preexec_fn=bind)).wait(10) == 0


def test_a_forked_process_starts_children_too() -> None:
    start_child(lambda bind: subprocess.Popen(["true"], preexec_fn=bind)).wait(10)
    pid = os.fork()
    if not pid:
        signal.alarm(20)  # it hangs where the thread is taken for one that is there
        os._exit(start_child(lambda bind: subprocess.Popen(["true"], preexec_fn=bind)).wait(10))
    assert os.waitpid(pid, 0)[1] == 0


def test_what_was_bound_too_late_ends_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its parent may end between the fork and the order to the kernel."""
    monkeypatch.setattr(os, "getppid", lambda: 1)
    assert start_child(lambda bind: subprocess.Popen(["sleep", "60"], preexec_fn=bind)).wait(10) == 1
