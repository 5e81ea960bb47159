"""What the processor of this machine can do. OpenVINO's engine and the builder ask the same question."""

from __future__ import annotations

from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")
VNNI, AVX2 = "vnni", "avx2"
"""Two kinds for engines: those that multiply 8-bit numbers as such, and those that make 32-bit numbers of them."""

PRODUCTS_CUT = "wide products cut"
"""What engine.json calls, among how it was built, that the builder cut wide products for `AVX2`."""

_INTEGERS = frozenset({"avx_vnni", "avx512_vnni", "amx_int8", "i8mm"})


def multiplies_integers(cpuinfo: Path = CPUINFO) -> bool:
    """Whether it multiplies 8-bit numbers as such; where nobody says, it does not."""
    try:
        text = cpuinfo.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    return not _INTEGERS.isdisjoint(text.partition("\n\n")[0].split())


def kind(cpuinfo: Path = CPUINFO) -> str:
    """`VNNI` or `AVX2`; the words are those of the builder's ``--processor`` and of engine.json."""
    return VNNI if multiplies_integers(cpuinfo) else AVX2
