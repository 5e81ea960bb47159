"""Orders the models of one server to drain, over the control sockets of the backend (inflight/control.py)."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable

from inflight import control


def drain_models(
    stub_pids: Iterable[int], timeout_s: float, hurry: Callable[[], bool] = lambda: False
) -> dict[str, dict[str, object]]:
    """Drain the models that run in the processes `stub_pids`, all at the same time.

    Streams get `timeout_s` seconds to finish, then the engines end. Returns each socket's answer, or {"error":
    reason}; a model without a socket has none. Comes back early when `hurry()` is true.
    """
    wanted = set(stub_pids)
    answers: dict[str, dict[str, object]] = {}

    def ask(name: str) -> None:
        try:
            request = {"command": "drain", "timeout_ms": int(timeout_s * 1000), "stop": True}
            answers[name] = control.ask(folder / f"{name}.sock", request, timeout_s + control.ANSWER_WAIT_S)
        except (OSError, ValueError) as error:
            answers[name] = {"error": str(error) or "no answer"}

    try:
        folder = control.control_dir()
    except OSError:
        return {}
    # A socket is called <model>-<process id>.sock.
    names = [
        path.stem for path in folder.glob("*.sock") if path.stem.rpartition("-")[2] in {str(pid) for pid in wanted}
    ]
    threads = [threading.Thread(target=ask, args=(name,), name=f"drain-{name}", daemon=True) for name in names]
    for thread in threads:
        thread.start()
    give_up = time.monotonic() + timeout_s + control.ANSWER_WAIT_S
    while any(thread.is_alive() for thread in threads) and time.monotonic() < give_up and not hurry():
        time.sleep(0.02)
    return dict(answers)
