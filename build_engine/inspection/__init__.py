"""The ``inspect`` command: what an engine is, whether it is whole, whether it runs here, and what was fused."""
