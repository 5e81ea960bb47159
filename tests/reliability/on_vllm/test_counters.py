"""tests/reliability/test_counters.py on vLLM."""

from __future__ import annotations

from tests.reliability.test_counters import (  # noqa: F401
    pytestmark,
    rig,
    test_an_engine_loss,
    test_deadlines_and_cancels,
    test_the_work_done,
    test_unary_answers_with_several_sequences,
)
