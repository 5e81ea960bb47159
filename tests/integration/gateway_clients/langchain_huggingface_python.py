"""LangChain's endpoint of Hugging Face: TGI's API."""

from __future__ import annotations

from common import URL, report, says_paris
from langchain_huggingface import HuggingFaceEndpoint

PROMPT = "The capital of France is"
endpoint = HuggingFaceEndpoint(  # it sends typical_p, and samples unless one token alone may be taken
    endpoint_url=URL.removesuffix("/v1"), task="text-generation", max_new_tokens=8, top_k=1, timeout=180
)


def text_generation() -> None:
    says_paris(endpoint.invoke(PROMPT))


def text_generation_streamed() -> None:
    pieces = list(endpoint.stream(PROMPT))
    assert len(pieces) > 1, pieces
    says_paris("".join(pieces))


report(
    "langchain-huggingface",
    {"text generation": text_generation, "text generation, streamed": text_generation_streamed},
)
