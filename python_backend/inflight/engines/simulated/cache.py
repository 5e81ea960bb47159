"""KV blocks of the simulated engine: who holds how many, and which are kept for prompts that begin alike. Pure.

A full block is known by a key that covers its tokens, all tokens before it and the cache salt, so equal beginnings
share blocks. Conservation: blocks held by nobody but one sequence (private) + shared ones + idle ones that are only
kept for reuse never exceed the pool; idle ones give way, least recently used first, the end of a prompt before its
beginning. That the held ones alone fit is the admission's promise (`SimulatedEngine._admit`), not this module's.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence


def block_keys(token_ids: Sequence[int], block_size: int, parent: int) -> list[int]:
    """Keys of the whole blocks of `token_ids` that follow the block `parent`.

    Python's own hash of integers: two different prompts may share a key once in 2⁶⁴, which would cost a simulation a
    few tokens of prefill and nothing else.
    """
    keys = []
    for start in range(0, len(token_ids) - block_size + 1, block_size):
        parent = hash((parent, *token_ids[start : start + block_size]))
        keys.append(parent)
    return keys


class Lease:
    """The blocks of one sequence: the first `held` of `keys` shared under these keys, and `private` ones."""

    __slots__ = ("held", "keys", "private")

    def __init__(self, keys: Iterable[int]) -> None:
        self.keys = list(keys)
        self.held = 0
        self.private = 0

    @property
    def blocks(self) -> int:
        """How many it holds."""
        return self.held + self.private


class BlockPool:
    """`total` blocks; see the module's text."""

    def __init__(self, total: int) -> None:
        self.total = total
        self._private = 0
        self._shared: dict[int, int] = {}  # key → sequences that hold it
        # Keys in the order in which they fell idle. A plain dict takes longer for its first key the more were removed.
        self._idle: OrderedDict[int, None] = OrderedDict()

    @property
    def used(self) -> int:
        """Blocks that running sequences hold; a shared one counts once."""
        return self._private + len(self._shared)

    @property
    def idle(self) -> int:
        """Blocks that are only kept for reuse."""
        return len(self._idle)

    def open(self, keys: Iterable[int], blocks: int) -> Lease:
        """Hold `blocks` blocks, those of the leading `keys` that are still there among them (`Lease.held`)."""
        lease = Lease(keys)
        for key in lease.keys:
            if key not in self._shared and key not in self._idle:
                break
            self._hold(key)
            lease.held += 1
        self.grow(lease, blocks - lease.held)
        return lease

    def grow(self, lease: Lease, blocks: int) -> None:
        """Hold that many more."""
        lease.private += blocks
        self._private += blocks
        self._make_room()

    def publish(self, lease: Lease) -> None:
        """The blocks of all its keys are computed: others may share them. None is kept twice."""
        for key in lease.keys[lease.held :]:
            lease.private -= 1
            self._private -= 1
            self._hold(key)
        lease.held = len(lease.keys)

    def close(self, lease: Lease) -> None:
        """Give everything back; what was published stays for reuse while there is room."""
        self._private -= lease.private
        for key in reversed(lease.keys[: lease.held]):
            self._shared[key] -= 1
            if not self._shared[key]:
                del self._shared[key]
                self._idle[key] = None
        lease.held = lease.private = 0
        self._make_room()

    def _make_room(self) -> None:
        while self._idle and self.used + len(self._idle) > self.total:
            self._idle.popitem(last=False)

    def _hold(self, key: int) -> None:
        self._idle.pop(key, None)
        self._shared[key] = self._shared.get(key, 0) + 1
