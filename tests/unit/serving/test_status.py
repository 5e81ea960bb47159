"""What an operator is told about a model."""

from __future__ import annotations

from inflight.engine_process.supervisor import Loss
from inflight.engines.base import Capability
from tests.unit.machines.delivery_model import MAX_QUEUE, Core


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


def test_the_status_says_what_the_metrics_say() -> None:
    core = Core(price_per_hour=2.5, max_queue_tokens=900)
    try:
        core.backend._supervisor.last_losses[Loss.LOST] = 86_400.0
        status = core.backend.status()
    finally:
        core.close()
    assert status["limits"]["queue_requests"] == MAX_QUEUE
    assert status["limits"]["queue_tokens"] == 900
    assert status["last_restarts"] == {"lost": "1970-01-02T00:00:00+00:00"}
    assert (status["price_per_hour"], status["oldest_waiting_s"]) == (2.5, 0.0)
    assert (status["draining"], status["health"]) == (False, "ready")
