"""Inflight: the serving side. Stream large language models through NVIDIA Triton, from one model directory.

Start reading at `backend/model.py` (how a request travels) and `engines/base.py` (what an engine promises).
"""

from __future__ import annotations

__version__ = "0.1.0"
