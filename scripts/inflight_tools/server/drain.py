"""Orders the models of one server to drain, over the control sockets of the backend (inflight/control)."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from inflight import control


def drain_models(
    stub_pids: Iterable[int],
    timeout_s: float,
    notice_s: float | None = 0.0,
    hurry: Callable[[], bool] = lambda: False,
) -> dict[str, dict[str, object]]:
    """Drain the models that run in the processes `stub_pids`, all at the same time.

    Everything is served for `notice_s` more seconds (None: each model's own notice), then streams get `timeout_s`
    seconds to finish, then the engines end. Returns each socket's answer, or {"error":
    reason}; a model without a socket has none. Comes back early when `hurry()` is true.
    """
    wanted = set(stub_pids)
    answers: dict[str, dict[str, object]] = {}

    notice_ms = None if notice_s is None else int(notice_s * 1000)
    request, wait_s = control.drain_request(notice_ms, int(timeout_s * 1000), stop=True)

    def ask(path: Path) -> None:
        try:
            answers[path.stem] = control.ask(path, request, wait_s, only=wanted)
        except (ProcessLookupError, ConnectionRefusedError):  # another server's, or left by one that is gone
            return
        except (OSError, ValueError) as error:
            answers[path.stem] = {"error": str(error) or "no answer"}

    folders = control.candidate_folders(everywhere=True) if wanted else []
    # <model>-<process id>.sock; the kernel says besides whether it is that process, and not one of another namespace.
    paths = [path for pid in wanted for folder in folders for path in folder.glob(f"*-{pid}.sock")]
    threads = [threading.Thread(target=ask, args=(path,), name=f"drain-{path.stem}", daemon=True) for path in paths]
    for thread in threads:
        thread.start()
    give_up = time.monotonic() + wait_s
    while any(thread.is_alive() for thread in threads) and time.monotonic() < give_up and not hurry():
        time.sleep(0.02)
    return dict(answers)
