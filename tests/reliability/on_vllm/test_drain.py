"""tests/reliability/test_drain.py on vLLM."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.reliability.conftest import OpenRig
from tests.reliability.load import drive, make_request
from tests.reliability.rig import Rig
from tests.reliability.test_drain import LONG, OPTIONS, SHORT, pytestmark, test_a_drain_over_the_control_socket  # noqa: F401


@pytest.fixture
def rig(open_rig: OpenRig) -> Iterator[Rig]:
    """As there, with fewer layers, and once the CPU build has met that many sequences: its first steps of a size take
    longer than what is measured then.
    """
    rig = open_rig({"llm": {"engine_options": {**OPTIONS, "step_ms": 2}}})
    many = [make_request(text_input=f"w{number}", max_tokens=8) for number in range(SHORT + LONG)]
    drive(rig.grpc, lambda load: load.all(many))
    yield rig
    rig.server.stop()
