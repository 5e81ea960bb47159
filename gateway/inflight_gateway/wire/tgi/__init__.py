"""The API of Hugging Face's text-generation-inference (TGI): one event per token, details, its own errors."""
