"""tests/reliability/test_engine_loss.py on vLLM."""

from __future__ import annotations

from tests.reliability.test_engine_loss import (  # noqa: F401
    healthy,
    pytestmark,
    rig,
    test_a_lost_engine_ends_its_streams_and_is_replaced,
    test_one_loss_after_another,
)
