"""What the processor says of itself, on x86 and on ARM."""

from __future__ import annotations

from pathlib import Path

import pytest

from inflight.processor import AVX2, VNNI, kind, multiplies_integers

pytestmark = pytest.mark.fast


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("processor : 0\nflags : fpu avx2 fma\n\nprocessor : 1\nflags : avx_vnni\n", False),
        ("processor : 0\nflags : fpu avx2 avx512_vnni\n", True),
        ("processor : 0\nFeatures : fp asimd i8mm\n", True),
        ("", False),
    ],
)
def test_the_processor_says_what_it_multiplies(tmp_path: Path, text: str, found: bool) -> None:
    (tmp_path / "cpuinfo").write_text(text, encoding="utf-8")
    assert multiplies_integers(tmp_path / "cpuinfo") is found
    assert kind(tmp_path / "cpuinfo") == (VNNI if found else AVX2)


def test_where_nobody_says_it_does_not(tmp_path: Path) -> None:
    assert not multiplies_integers(tmp_path / "none")
