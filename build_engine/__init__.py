"""Hugging Face checkpoints into verified, quantized engines for OpenVINO and TensorRT-LLM.

``python -m build_engine --help`` lists the commands; ``docs/building.md`` explains them. The package shares only
``inflight.manifest`` and ``inflight.errors`` with the serving side. Nothing here imports torch at module level except
the stages that run in a child process (see `build_engine.stages`).
"""

from __future__ import annotations

__version__ = "0.1.0"
