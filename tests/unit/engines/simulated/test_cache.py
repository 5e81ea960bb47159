"""A full pool makes room as fast as an empty one gives it: servers run for weeks."""

from __future__ import annotations

import time

import pytest

from inflight.engines.simulated.cache import BlockPool

pytestmark = pytest.mark.fast

KEPT = 100_000


def test_making_room_costs_the_same_however_much_was_kept() -> None:
    pool = BlockPool(KEPT)
    lease = pool.open(range(KEPT), KEPT)
    pool.publish(lease)
    pool.close(lease)
    assert pool.idle == KEPT
    began = time.process_time()
    lease = pool.open((), 0)
    for _ in range(KEPT - 1):
        pool.grow(lease, 1)
    took = time.process_time() - began
    assert (pool.used, pool.idle) == (KEPT - 1, 1)
    assert took < 1.0, "0.1 s, or 10 s where each costs what was kept"
