"""The engine process: `python -m inflight.engine_worker RUN_DIR`. What it does is in `engine_process.worker`."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

from inflight.engine_process.worker import main

if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s[%(process)d] %(levelname)s %(message)s")
    sys.exit(main(Path(sys.argv[1])))
