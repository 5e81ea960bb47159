"""tests/reliability/test_memory.py on vLLM."""

from __future__ import annotations

from tests.reliability.test_memory import pytestmark, rig, test_short_requests_leave_nothing_in_memory  # noqa: F401
