"""tests/reliability/test_fuzz.py on vLLM."""

from __future__ import annotations

from tests.reliability.test_fuzz import pytestmark, rig, test_no_input_does_harm  # noqa: F401
