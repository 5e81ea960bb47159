"""Triton over gRPC: requests, their responses, and which models there are."""
