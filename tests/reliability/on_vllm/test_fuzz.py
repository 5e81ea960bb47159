"""tests/reliability/test_fuzz.py on vLLM."""

from __future__ import annotations

import pytest

from tests.reliability.conftest import OpenRig
from tests.reliability.rig import Rig
from tests.reliability.test_fuzz import pytestmark, test_no_input_does_harm  # noqa: F401


@pytest.fixture(scope="module")
def rig(open_rig: OpenRig) -> Rig:
    """As there with a context of a quarter: steps take their time here."""
    return open_rig({"llm": {"engine_options": {"max_seq_len": 256}, "metrics_interval_ms": 100}})
