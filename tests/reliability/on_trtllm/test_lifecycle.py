"""tests/reliability/test_lifecycle.py on the stand-in."""

from __future__ import annotations

import pytest

from tests.reliability.test_lifecycle import (  # noqa: F401
    rig,
    test_a_server_killed_hard_is_cleaned_up_by_the_next_start,
    test_a_warm_up_is_answered_and_not_counted,
    test_an_unload_lets_streams_finish,
    test_load_and_unload_again_and_again,
    test_two_models_side_by_side,
)

pytestmark = [pytest.mark.server, pytest.mark.full]
