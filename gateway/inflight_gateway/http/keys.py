"""API keys: compared by digest in constant time, read from a file or the environment, never shown."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping
from pathlib import Path

VARIABLE = "INFLIGHT_GATEWAY_KEYS"


class Keys:
    """The keys that are taken. Without any, everybody is let in."""

    def __init__(self, path: Path | None, environment: Mapping[str, str]) -> None:
        """Raises OSError where the file cannot be read."""
        self._path = path
        self._given = environment.get(VARIABLE, "")
        self._digests: tuple[bytes, ...] = ()
        self.load()

    def load(self) -> None:
        """Read the file again (SIGHUP). Raises OSError, and keeps what it had."""
        text = self._path.read_text(encoding="utf-8") if self._path is not None else ""
        lines = [*text.splitlines(), *self._given.replace(",", "\n").splitlines()]
        keys = [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
        self._digests = tuple(hashlib.sha256(key.encode()).digest() for key in keys)

    @property
    def wanted(self) -> bool:
        """Whether a key is needed at all."""
        return bool(self._digests) or self._path is not None

    def owner(self, headers: Mapping[bytes, bytes]) -> str | None:
        """Who asks: a short digest of the key, `-` where none is needed; None: not let in."""
        scheme, _, key = headers.get(b"authorization", b"").partition(b" ")
        if scheme.lower() != b"bearer":
            key = b""
        key = key.strip() or headers.get(b"x-api-key", b"") or headers.get(b"api-key", b"")
        digest = hashlib.sha256(key).digest()
        if not self.wanted:
            return "-"
        found = False
        for known in self._digests:  # all of them, so that the time says nothing
            found = hmac.compare_digest(known, digest) or found
        return digest.hex()[:8] if found else None
