"""What a guide leaves out of tools' schemas, found once for each list: clients send theirs with every request."""

from __future__ import annotations

import collections
import hashlib
import json
import threading
from collections.abc import Mapping, Sequence
from typing import Any

from inflight.grammar.tools import relaxations

MOST = 64  # lists of tools; a list of 128 large tools has some 100 KiB of notes


class Relaxations:
    """The notes of the lists of tools that were asked for last. For any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: collections.OrderedDict[bytes, list[str]] = collections.OrderedDict()

    def of(self, tools: Sequence[Mapping[str, Any]]) -> list[str]:
        """As `grammar.tools.relaxations`, which takes milliseconds for each tool. Nobody may change the list."""
        text = json.dumps(tools, sort_keys=True)
        key = hashlib.blake2b(text.encode("ascii"), digest_size=16).digest()
        with self._lock:
            found = self._known.get(key)
            if found is not None:
                self._known.move_to_end(key)
                return found
        notes = relaxations(tools)
        with self._lock:
            self._known[key] = notes
            if len(self._known) > MOST:
                self._known.popitem(last=False)
        return notes
