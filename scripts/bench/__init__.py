"""Benchmarks that compare this backend with something else, side by side in one run on the same machine."""

import inflight.engines.openvino  # noqa: F401 (before anybody imports OpenVINO, which reports that to its maker)
