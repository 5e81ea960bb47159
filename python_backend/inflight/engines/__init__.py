"""Engines behind one seam (`base.py`). They know nothing of Triton, sockets or text."""

from __future__ import annotations
