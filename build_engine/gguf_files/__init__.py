"""GGUF files as sources: what llama.cpp's format holds becomes an ordinary checkpoint, or is refused by name."""
