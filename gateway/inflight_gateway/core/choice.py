"""Which of several servers a request goes to. Pure.

The one with the fewest requests in flight. A request with an affinity (a session, a user, a shared prompt) goes to the
same server as the others of its kind, where their prefix is cached: the one with the highest hash of affinity and name
(rendezvous hashing: a server that comes or goes moves only its own share). A server that holds more than `CROWDED`
times its even share is passed over for the next in that order (consistent hashing with bounded loads, Mirrokni et al.),
so that one busy affinity cannot overload it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Sequence

CROWDED = 1.25


@dataclasses.dataclass(frozen=True, slots=True)
class Candidate:
    """A server that could take the request: its name, and how many it has from here."""

    name: str
    in_flight: int


def choose(candidates: Sequence[Candidate], affinity: str, turn: int) -> int:
    """The index of the server to take; there is at least one. `turn` decides among equals: 0, 1, 2, …"""
    if len(candidates) == 1:
        return 0
    if not affinity:
        count = len(candidates)
        return min(range(count), key=lambda one: (candidates[one].in_flight, (one - turn) % count))
    most = math.ceil(CROWDED * (sum(one.in_flight for one in candidates) + 1) / len(candidates))
    order = sorted(range(len(candidates)), key=lambda one: _weight(affinity, candidates[one].name), reverse=True)
    return next(one for one in order if candidates[one].in_flight < most)


def _weight(affinity: str, name: str) -> bytes:
    return hashlib.blake2b(name.encode(), key=hashlib.sha256(affinity.encode()).digest(), digest_size=8).digest()
