"""tests/reliability/test_lifecycle.py on vLLM."""

from __future__ import annotations

from tests.reliability.test_lifecycle import (  # noqa: F401
    pytestmark,
    rig,
    test_an_unload_lets_streams_finish,
    test_load_and_unload_again_and_again,
    test_two_models_side_by_side,
)
