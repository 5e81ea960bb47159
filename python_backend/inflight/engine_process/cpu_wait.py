"""How long the threads of a process have waited for a processor: what the kernel's scheduler says (schedstat)."""

from __future__ import annotations

from pathlib import Path


def cpu_waits(pid: int) -> dict[int, int]:
    """Thread id → nanoseconds that it was ready to run and had no processor, since it began. Empty where the kernel
    does not tell, and when the process is gone.
    """
    waits = {}
    try:
        for thread in Path(f"/proc/{pid}/task").iterdir():
            waits[int(thread.name)] = int((thread / "schedstat").read_text(encoding="ascii").split()[1])
    except (OSError, ValueError, IndexError):  # it ended while it was read, or there is no such file here
        pass
    return waits
