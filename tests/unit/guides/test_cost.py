"""What a guide may cost does not depend on how busy the machine is, and grows with the vocabulary."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inflight.guides.cost import DOUBT, VOCABULARY, Cost, Meter, Spent, judge, scaled
from tests.unit.machines.strategies import budget

pytestmark = pytest.mark.fast

SECONDS, SHARES, LIMITS = st.floats(0.0, 100.0), st.floats(0.0, 1.0), st.floats(0.01, 10.0)


@given(used=SECONDS, wait=SECONDS, others=SHARES, limit=LIMITS)
@budget(300)
def test_a_busy_machine_never_makes_a_guide_worse(used: float, wait: float, others: float, limit: float) -> None:
    alone, busy = judge(Spent(used, used, 0.0), limit), judge(Spent(used, used + wait, others), limit)
    assert alone in (Cost.FINE, Cost.TOO_HIGH)  # a quiet machine leaves no doubt
    assert busy is alone or (alone, busy) == (Cost.TOO_HIGH, Cost.UNKNOWN)


@given(quiet=SECONDS, slower=st.floats(1.0, DOUBT), limit=LIMITS)
@budget(300)
def test_work_that_takes_longer_beside_others_is_never_refused_for_it(
    quiet: float, slower: float, limit: float
) -> None:
    """What is fine on a quiet machine is never found too high on a busy one."""
    if judge(Spent(quiet, quiet, 0.0), limit) is Cost.FINE:
        assert judge(Spent(quiet * slower, quiet * slower, 0.9), limit) is not Cost.TOO_HIGH


@given(used=SECONDS, wall=SECONDS, others=SHARES, limit=LIMITS)
@budget(300)
def test_nobody_is_left_in_doubt_for_ever(used: float, wall: float, others: float, limit: float) -> None:
    found = judge(Spent(used, wall, others), limit)
    assert (found is Cost.FINE) == (used <= limit)
    if used > DOUBT * limit:
        assert found is Cost.TOO_HIGH


def test_a_meter_tells_own_work_from_that_of_others() -> None:
    meter = Meter(time.process_time)
    while meter.spent().used_s < 0.2:
        pass
    alone = meter.spent()
    assert 0.2 <= alone.used_s <= alone.wall_s + 0.05
    assert 0.0 <= alone.others <= 1.0
    cores = os.cpu_count() or 1
    burners = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(cores)]
    try:
        meter = Meter(time.process_time)
        time.sleep(0.5)
        spent = meter.spent()
    finally:
        for burner in burners:
            burner.kill()
            burner.wait()
    assert spent.others > 0.5
    assert spent.used_s < 0.1


@pytest.mark.parametrize(
    ("vocab_size", "limit_s"), [(0, 1.0), (32_000, 1.0), (VOCABULARY, 1.0), (100_000, 2.0), (262_144, 2.5)]
)
def test_a_limit_grows_with_the_vocabulary(vocab_size: int, limit_s: float) -> None:
    assert scaled(1.0, vocab_size, 2.5) == limit_s
    assert scaled(1.0, vocab_size, 0.1) == 1.0
