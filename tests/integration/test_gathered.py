"""Where a real server's processes run: front end and backend on one processor while it is enough, the engine on all."""

from __future__ import annotations

import os
import signal
import time

import pytest

from tests.conftest import MakeServer

pytestmark = pytest.mark.server

ALL = os.sched_getaffinity(0)


@pytest.mark.skipif(len(ALL) < 2, reason="one processor is all there is")
def test_threads_that_hand_responses_on_share_a_processor_and_the_engine_has_all(make_server: MakeServer) -> None:
    server = make_server(gather=True)
    (stub,), (engine,) = server.stub_pids(), server.engine_pids()
    one = {max(ALL)}
    threads = [int(entry.name) for pid in (server.pid, stub) for entry in os.scandir(f"/proc/{pid}/task")]
    give_up = time.monotonic() + 20.0  # after work they are let together again in some seconds
    while not all(os.sched_getaffinity(thread) == one for thread in threads):
        assert time.monotonic() < give_up, {thread: os.sched_getaffinity(thread) for thread in threads}
        time.sleep(0.1)
    assert os.sched_getaffinity(engine) == ALL
    os.kill(engine, signal.SIGKILL)  # the next one is started by a thread that may run on one processor only
    give_up = time.monotonic() + 20.0
    while [os.sched_getaffinity(pid) for pid in server.engine_pids() if pid != engine] != [ALL]:
        assert time.monotonic() < give_up, server.engine_pids()
        time.sleep(0.1)
