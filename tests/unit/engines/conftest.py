"""Tests read what is logged, whatever was logged of the same kind just before."""

from __future__ import annotations

import pytest

from inflight.engines import refusals
from inflight.engines.faults import Sparingly


@pytest.fixture(autouse=True)
def eager_log(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every refusal is logged."""
    monkeypatch.setattr(refusals, "sparingly", Sparingly(every_s=0.0))
