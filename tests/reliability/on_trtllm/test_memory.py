"""tests/reliability/test_memory.py on the stand-in; idle connections never come as far as an engine."""

from __future__ import annotations

import pytest

from tests.reliability.test_memory import (  # noqa: F401
    engine_flat_bytes,
    rig,
    test_prompts_of_the_greatest_length,
    test_short_requests_leave_nothing_in_memory,
    test_slow_and_dead_readers_do_not_hold_up_the_others,
)

pytestmark = [pytest.mark.server, pytest.mark.full]
