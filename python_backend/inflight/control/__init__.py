"""A socket for operators: status, and an orderly drain. `python -m inflight.control` speaks to every running model."""

from __future__ import annotations

from inflight.control.folder import candidate_folders, control_dir
from inflight.control.server import ANSWER_WAIT_S, ControlServer, ask, ask_all, open_control

__all__ = ["ANSWER_WAIT_S", "ControlServer", "ask", "ask_all", "candidate_folders", "control_dir", "open_control"]
