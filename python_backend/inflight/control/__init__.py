"""A socket for operators: status, health, an orderly drain. `python -m inflight.control` speaks to every model."""

from __future__ import annotations

from inflight.control.folder import candidate_folders, control_dir
from inflight.control.server import ANSWER_WAIT_S, ControlServer, ask, ask_all, drain_request, open_control

__all__ = [
    "ANSWER_WAIT_S",
    "ControlServer",
    "ask",
    "ask_all",
    "candidate_folders",
    "control_dir",
    "drain_request",
    "open_control",
]
