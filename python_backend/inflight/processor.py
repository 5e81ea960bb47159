"""What the processor of this machine can do. OpenVINO's engine and the builder ask the same question."""

from __future__ import annotations

from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")
_INTEGERS = frozenset({"avx_vnni", "avx512_vnni", "amx_int8", "i8mm"})


def multiplies_integers(cpuinfo: Path = CPUINFO) -> bool:
    """Whether it multiplies 8-bit numbers as such; where nobody says, it does not."""
    try:
        text = cpuinfo.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    return not _INTEGERS.isdisjoint(text.partition("\n\n")[0].split())
