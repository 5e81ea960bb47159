"""An HTTP server in front of Triton: OpenAI's, Anthropic's and TGI's APIs for its Inflight models.

Layers: `http` (connections) → `wire` (one parser and one renderer per dialect, pure) → `core` (one internal request and
one stream of events) → `triton` (gRPC).
"""

from __future__ import annotations

import os
import sys

# In an image whose own packages it must not touch, the gateway's lie in a folder that this process alone looks into.
_FOLDER = os.environ.get("INFLIGHT_GATEWAY_PACKAGES")
if _FOLDER and _FOLDER not in sys.path:
    sys.path.insert(0, _FOLDER)
