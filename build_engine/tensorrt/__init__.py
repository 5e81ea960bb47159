"""The TensorRT-LLM target: calibrate and quantize, write and correct the checkpoint, read it back, compile."""
