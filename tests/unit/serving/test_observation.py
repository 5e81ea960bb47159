"""The metrics of one moment: what serves, what it may do at most, who waits longest, when an engine was lost."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from inflight import __version__
from inflight.engine_process.supervisor import Health, Loss
from inflight.serving.metrics import Metrics, exported
from inflight.serving.observation import DISTRIBUTIONS_S
from tests.unit.machines.delivery_fakes import CountingSink
from tests.unit.machines.delivery_model import MAX_QUEUE, World

pytestmark = pytest.mark.fast


@pytest.fixture
def world() -> Iterator[World]:
    made = World(max_running=3, price_per_hour=2.5)
    yield made
    made.close()


def page(world: World) -> dict[tuple[str, str], float]:
    world.backend._observation.flush()
    return world.sink.values


def test_every_family_is_there_as_soon_as_there_is_a_place_for_it(world: World) -> None:
    sink = CountingSink()
    world.backend.export_metrics(sink)
    missing = {name for name, _, _ in exported()} - {name for name, _ in sink.values}
    assert missing == {"inflight_prefix_cache_hit_tokens_total", "inflight_speculative_tokens_total"}


def test_what_is_set_and_what_it_may_do_at_most(world: World) -> None:
    values = page(world)
    assert values["inflight_price_per_hour", ""] == 2.5
    limits = {label: value for (name, label), value in values.items() if name == "inflight_limit"}
    assert limits == {"running": 3, "queue_requests": MAX_QUEUE, "queue_tokens": 0, "context_tokens": 128}
    assert values["inflight_build_info", __version__] == 1.0


def test_the_oldest_that_waits_is_the_one_with_the_first_arrival(world: World) -> None:
    """Also while its prompt is read; what the engine has does not wait."""
    for _ in range(3):
        world.request_arrives(max_tokens=4)
    world.clock.now += 5.0
    assert page(world)["inflight_oldest_waiting_seconds", ""] == pytest.approx(5.0, abs=0.01)
    while world.pool.work:
        world.parse_thread()
    while world.dispatcher_thread():
        pass
    values = page(world)
    assert values["nv_trt_llm_request_metrics", "scheduled"] == values["inflight_requests_running", ""] == 3
    assert values["inflight_oldest_waiting_seconds", ""] == 0.0
    world.request_arrives(max_tokens=4)
    world.clock.now += 2.0
    assert page(world)["inflight_oldest_waiting_seconds", ""] == pytest.approx(2.0, abs=0.01)
    world.settle()
    assert page(world)["inflight_oldest_waiting_seconds", ""] == 0.0


def test_a_drain_and_a_loss_are_seen(world: World) -> None:
    before = page(world)
    assert before["inflight_draining", ""] == before["inflight_last_restart", "stalled"] == 0.0
    world.drain(0)
    world.backend._supervisor.last_losses[Loss.STALLED] = 1234.5
    after = page(world)
    assert (after["inflight_draining", ""], after["inflight_last_restart", "stalled"]) == (1.0, 1234.5)


def test_a_model_that_was_unloaded_serves_nothing(world: World) -> None:
    """Triton shows the last values for as long as the server runs; a reload may bring another engine."""
    assert page(world)["inflight_build_info", __version__] == 1.0
    world.drain(0)
    world.backend._supervisor.health = Health.STOPPED
    after = page(world)
    assert after["inflight_build_info", __version__] == after["inflight_draining", ""] == 0.0
    assert after["inflight_engine_up", ""] == 0.0


def test_what_an_info_said_before_becomes_zero() -> None:
    metrics, seen = Metrics(), []

    class Sink:
        def add(self, *_: object) -> None: ...

        def set(self, name: str, labels: object, value: float) -> None:
            if name == "inflight_build_info":
                seen.append((labels, value))

    names = ("release", "engine", "engine_version", "source", "quantization")
    for version in ("1", "2"):
        metrics.describe("inflight_build_info", ("0.1.0", "vllm", version, "m", "int8"))
        metrics.flush(Sink())
    one, two = (dict(zip(names, ("0.1.0", "vllm", version, "m", "int8"), strict=True)) for version in ("1", "2"))
    assert seen == [(one, 1.0), (one, 0.0), (two, 1.0)]


def test_distributions_are_told_rarely_under_load_and_whole_at_rest(world: World) -> None:
    """Sixty round trips to the server twice a second were a tenth of what serving costs."""
    name = ("inflight_time_to_first_token_seconds_count", "")

    def answered(tokens: int) -> None:
        world.request_arrives(max_tokens=tokens, stream=True)
        while world.pool.work:
            world.parse_thread()
        while world.dispatcher_thread():
            pass

    answered(100)  # runs on
    told = page(world)[name]
    for ended in (1, 2, 3):
        answered(1)
        for _ in range(6):
            world.engine_steps(lambda *_: 1)
            world.sender_thread()
            world.dispatcher_thread()
        values = page(world)
        assert values["inflight_requests_total", "length"] == ended  # counters and gauges come with every flush
        assert values["inflight_requests_running", ""] == 1.0
        assert values[name] == told
    world.clock.now += DISTRIBUTIONS_S
    assert page(world)[name] == told + 3
    world.settle()
    assert page(world)[name] == told + 4
