"""An HTTP server in front of Triton: OpenAI's, Anthropic's and TGI's APIs for its Inflight models.

Layers: `http` (connections) → `wire` (one parser and one renderer per dialect, pure) → `core` (one internal request and
one stream of events) → `triton` (gRPC).
"""
