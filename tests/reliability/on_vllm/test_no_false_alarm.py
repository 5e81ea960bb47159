"""tests/reliability/test_no_false_alarm.py on vLLM."""

from __future__ import annotations

import pytest

from tests.reliability.conftest import OpenRig
from tests.reliability.rig import Rig
from tests.reliability.test_no_false_alarm import (  # noqa: F401
    pytestmark,
    same_engine,
    test_everything_paused,
    test_four_times_more_work_than_cores,
    test_only_the_stub_paused,
)


@pytest.fixture(scope="module")
def rig(open_rig: OpenRig) -> Rig:
    """The default stall time: with 1.5 s, and four times more work than cores, vLLM was taken for stalled. Few layers:
    beside four busy programs a step of thirty took 0.7 s here, and 300 of them are more than a client waits.
    """
    return open_rig({"llm": {"engine_options": {"step_ms": 4}, "stall_timeout_ms": 10_000}})
