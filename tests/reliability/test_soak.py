"""Everything at once for a minute; a file of its own, so that other tests run beside it."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from maintain import soak
from tests.reliability.conftest import OpenRig, Report

pytestmark = pytest.mark.server


@pytest.mark.full
@pytest.mark.timeout(400)
def test_soak_of_a_minute(open_rig: OpenRig, report: Report, tmp_path: Path) -> None:
    """scripts/maintain/soak.py; an hour of it by hand (docs/reliability.md)."""
    parameters: dict[str, Any] = {"engine_options": soak.SIMULATED, "max_tokens_limit": 200}
    rig = open_rig({"llm": parameters})
    result = asyncio.run(soak.soak(rig.server, 60.0, seed=1, count=6))
    soak.write(result, tmp_path)
    assert (tmp_path / "soak.svg").stat().st_size > 1000
    for line in result.lines:
        report(line)
    assert not result.problems
    assert result.ends.total() > 500
