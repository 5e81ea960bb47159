"""In an image whose own packages it must not touch, the gateway's lie in a folder that its process alone looks into:
imported before any of them.
"""

from __future__ import annotations

import os
import sys

_FOLDER = os.environ.get("INFLIGHT_GATEWAY_PACKAGES")
if _FOLDER and _FOLDER not in sys.path:
    sys.path.insert(0, _FOLDER)
