"""tests/reliability/test_drain.py on the stand-in."""

from __future__ import annotations

from tests.reliability.test_drain import pytestmark, rig, test_a_drain_over_the_control_socket  # noqa: F401
