"""tests/reliability/test_counters.py on the stand-in; a real Prometheus reads the same page whatever the engine."""

from __future__ import annotations

import pytest

from tests.reliability.test_counters import (  # noqa: F401
    rig,
    test_an_engine_loss,
    test_deadlines_and_cancels,
    test_refusals_are_counted_once_and_are_no_streams,
    test_the_work_done,
    test_unary_answers_with_several_sequences,
)

pytestmark = [pytest.mark.server, pytest.mark.full]
