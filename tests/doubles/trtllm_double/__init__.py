"""What is behind the stand-in package `tensorrt_llm`: its table of facts, its strict classes, its simulated executor.

The stand-in is chosen and steered by two environment variables: TRTLLM_DOUBLE_PROFILE (0.21, 1.0, 1.1, 1.2 or 1.3,
the last a release without engines) and TRTLLM_DOUBLE (JSON, see `options.DoubleOptions`).
"""
