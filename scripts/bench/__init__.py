"""Benchmarks that compare this backend with something else, side by side in one run on the same machine."""
