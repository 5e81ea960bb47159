"""tests/reliability/test_lifecycle.py on vLLM."""

from __future__ import annotations

from typing import Any

import pytest

from tests.reliability.conftest import OpenRig
from tests.reliability.rig import Rig
from tests.reliability.test_lifecycle import (  # noqa: F401
    pytestmark,
    test_an_unload_lets_streams_finish,
    test_load_and_unload_again_and_again,
    test_two_models_side_by_side,
)


@pytest.fixture(scope="module")
def rig(open_rig: OpenRig) -> Rig:
    """As there, with fewer layers: two engines share the machine."""
    parameters: dict[str, Any] = {"engine_options": {"step_ms": 4}, "metrics_interval_ms": 100}
    return open_rig({"llm": parameters, "other": parameters})
