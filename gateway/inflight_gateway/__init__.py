"""An HTTP server in front of Triton: OpenAI's API for the Inflight models that it serves.

Layers: `http` (connections) → `wire` (one parser and one renderer per dialect, pure) → `core` (one internal request and
one stream of events) → `triton` (gRPC).
"""
