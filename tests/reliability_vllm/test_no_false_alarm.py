"""tests/reliability/test_no_false_alarm.py on vLLM."""

from __future__ import annotations

from tests.reliability.test_no_false_alarm import (  # noqa: F401
    pytestmark,
    rig,
    same_engine,
    test_everything_paused,
    test_four_times_more_work_than_cores,
    test_only_the_stub_paused,
)
