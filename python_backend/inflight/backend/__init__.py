"""The wiring of one model, without a word of Triton: `model.py` beside this package is its only user."""

from __future__ import annotations

from inflight.backend.model import Backend

__all__ = ["Backend"]
