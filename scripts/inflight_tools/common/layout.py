"""Where things lie in this repository. `.cache/` and `.venv/` are made by the scripts and ignored by git."""

from __future__ import annotations

from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[3]
CACHE = REPOSITORY / ".cache"

SERVER = CACHE / "server"  # the unpacked wheel that carries tritonserver; its own layout is kept, libraries rely on it
BACKENDS = CACHE / "backends"  # what --backend-directory names: python/ and inflight/
WRAPPER = CACHE / "bin" / "tritonserver"
PERF_ANALYZER = CACHE / "perf_analyzer"
MODELS = CACHE / "models"
LOGS = CACHE / "logs"

BACKEND_SOURCE = REPOSITORY / "python_backend"
SCRIPTS = REPOSITORY / "scripts"  # PYTHONPATH of what starts `-m inflight_tools…`
MODEL_REPOSITORY = REPOSITORY / "model_repository"
ENGINE = MODEL_REPOSITORY / "llm" / "1" / "engine"
