"""tests/reliability/test_cancel_storm.py on vLLM."""

from __future__ import annotations

import pytest

from tests.reliability.conftest import OpenRig
from tests.reliability.rig import Rig
from tests.reliability.test_cancel_storm import (  # noqa: F401
    PLACES,
    pytestmark,
    test_all_at_once,
    test_http_clients_disconnect_while_streaming,
    test_hundreds_leave_at_random_moments,
)


@pytest.fixture(scope="module")
def rig(open_rig: OpenRig) -> Rig:
    """As there, with fewer layers: what leaves matters, not how long a step takes."""
    options = {"step_ms": 4, "max_running": PLACES}
    return open_rig({"llm": {"engine_options": options, "metrics_interval_ms": 100}})
