"""Large pages for weights and KV cache: what an engine process is started with so that malloc asks for them. Pure.

Where the kernel gives large pages only to who asks (`madvise`, Ubuntu's default), OpenVINO's copy of the weights lies
in pages of 4 KiB, and a virtual machine looks up each of them twice.
"""

from __future__ import annotations

from collections.abc import Mapping

VARIABLE = "GLIBC_TUNABLES"
TUNABLE = "glibc.malloc.hugetlb"  # glibc 2.35 and later; before, it is ignored


def large_pages(environment: Mapping[str, str]) -> dict[str, str]:
    """What to add to the environment of an engine process; nothing where the operator decided."""
    others = environment.get(VARIABLE, "")
    if TUNABLE in others:
        return {}
    return {VARIABLE: ":".join(filter(None, (others, f"{TUNABLE}=1")))}
