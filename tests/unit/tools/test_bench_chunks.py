"""What the comparison of step sizes says: of each turn, over the last of the sizes."""

from __future__ import annotations

import pytest

from bench.chunks import summary

pytestmark = pytest.mark.fast


def test_ratios_are_of_the_same_turn() -> None:
    found = summary({128: [{"tokens/s": 100.0}, {"tokens/s": 60.0}], 512: [{"tokens/s": 80.0}, {"tokens/s": 40.0}]})
    assert found["tokens/s"]["128"]["value"]["median"] == 80.0
    assert found["tokens/s"]["128"]["ratio"]["median"] == pytest.approx((1.25 + 1.5) / 2)
    assert found["tokens/s"]["512"]["ratio"]["median"] == 1.0
