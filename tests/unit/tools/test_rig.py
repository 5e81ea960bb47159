"""What the attacks ask of their server afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.reliability import rig as module
from tests.reliability.rig import AT_REST, Rig, Samples


class Scraped(Rig):
    """No server, only what is said of it."""

    def __init__(self, scrapes: Iterator[Samples]) -> None:
        self._scrapes = scrapes

    def status(self, model: str = "llm") -> dict[str, Any]:
        return {"under_way": 0, "running": 0, "waiting": 0, "blocks_reserved": 0}

    def metrics(self, model: str = "llm") -> Samples:
        return next(self._scrapes)

    def flushed(self, model: str = "llm", interval_s: float = 0.5) -> Samples:
        return self.metrics(model)


def scrapes(*waiting: float) -> Iterator[Samples]:
    for number in waiting:
        yield {**dict.fromkeys(AT_REST, 0.0), ("inflight_requests_waiting", ""): number}


def test_somebody_who_asks_at_the_moment_of_a_scrape_is_nothing_left_over() -> None:
    """A gateway asks what the model is, every ten seconds: it failed a test that had left nothing."""
    assert "0 waiting" in Scraped(scrapes(1.0, 0.0)).assert_nothing_left()


def test_what_stays_is_left_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SETTLE_S", 0.3)
    with pytest.raises(AssertionError, match="inflight_requests_waiting"):
        Scraped(scrapes(*[1.0] * 100)).assert_nothing_left()
