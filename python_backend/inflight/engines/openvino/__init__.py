"""OpenVINO GenAI. Whoever imports `openvino` imports this package first: see below."""

import sys

# OpenVINO reports every import to its maker, from a process that it forks for it. There is no variable against that; it
# takes a report that cannot be imported for one that is not wanted.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
