"""tests/reliability/test_cancel_storm.py on vLLM."""

from __future__ import annotations

from tests.reliability.test_cancel_storm import (  # noqa: F401
    pytestmark,
    rig,
    test_all_at_once,
    test_http_clients_disconnect_while_streaming,
    test_hundreds_leave_at_random_moments,
)
