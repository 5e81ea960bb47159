"""What an operator is told about a model."""

from __future__ import annotations

from inflight.engines.base import Capability
from tests.unit.machines.delivery_model import Core


def test_the_status_names_the_engine_and_what_it_can_do() -> None:
    core = Core()
    try:
        core.engine_comes_up(capabilities=frozenset({Capability.STREAMING, Capability.MIN_P}))
        status = core.backend.status()
    finally:
        core.close()
    assert status["engine"] == f"{core.engine.info.name} {core.engine.info.version}"
    assert status["capabilities"] == ["min_p", "streaming"]
    assert status["health"] == "ready"
