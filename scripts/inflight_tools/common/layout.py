"""Where things lie: in this repository, or where the package is installed without one, in the user's cache.

`.cache/` and `.venv/` of a checkout are made by the scripts and ignored by git. Without a checkout there is no source
of the backend, no model repository and no engine of ours: `server/find.py` and `server/serve.py` say so.
"""

from __future__ import annotations

import os
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[3]
IS_CHECKOUT = (REPOSITORY / "python_backend" / "model.py").is_file()


def _user_cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "inflight"


CACHE = REPOSITORY / ".cache" if IS_CHECKOUT else _user_cache()

SERVER = CACHE / "server"  # the unpacked wheel that carries tritonserver; its own layout is kept, libraries rely on it
BACKENDS = CACHE / "backends"  # what --backend-directory names: python/ and inflight/
WRAPPER = CACHE / "bin" / "tritonserver"
PERF_ANALYZER = CACHE / "perf_analyzer"
MODELS = CACHE / "models"
LOGS = CACHE / "logs"

BACKEND_SOURCE = REPOSITORY / "python_backend"
SCRIPTS = Path(__file__).resolve().parents[2]  # PYTHONPATH of what starts `-m inflight_tools…`
MODEL_REPOSITORY = REPOSITORY / "model_repository"
ENGINE = MODEL_REPOSITORY / "llm" / "1" / "engine"
