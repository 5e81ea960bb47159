"""A fleet behind Envoy while something of it is killed every few seconds: every request ends, nothing is left over."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from inflight_tools.common.layout import ENGINE
from maintain import fleet_soak
from tests.conftest import require_installation
from tests.reliability.conftest import Report

pytestmark = pytest.mark.server

SEED = 209  # of each kind one within three kills, and never the same server twice in turn


@pytest.mark.parametrize("seconds", [60, pytest.param(600, marks=pytest.mark.full)])
def test_every_request_ends_whatever_is_killed(
    seconds: int, tmp_path: Path, report: Report, monkeypatch: pytest.MonkeyPatch
) -> None:
    require_installation()
    monkeypatch.setattr(fleet_soak, "EVERY_S", 2 * fleet_soak.EVERY_S)  # other tests run beside it
    every = 10 if seconds < 200 else 20
    options = argparse.Namespace(seconds=seconds, every=every, seed=SEED, engine=ENGINE, openvino=False)
    seen = fleet_soak.soak(tmp_path, options)
    memory = fleet_soak.judge_growth(seen)
    assert not seen.problems, seen.problems
    assert set(seen.kills) == {"engine", "server", "gateway"}
    assert seen.canaries > seconds / 6
    assert seen.ends["whole"] > 10 * seconds
    report(f"{dict(seen.ends)}; killed {dict(seen.kills)}; {seen.canaries} canaries alike; {memory}")
