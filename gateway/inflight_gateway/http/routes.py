"""The paths on which models answer, each with its dialect."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from inflight_gateway.wire import chat, completion, tokenize
from inflight_gateway.wire.anthropic import answer as anthropic_answer
from inflight_gateway.wire.anthropic import request as anthropic
from inflight_gateway.wire.dialect import OPENAI, Dialect, Endpoint

ANSWERED: Final[Mapping[str, Endpoint]] = {
    "/v1/chat/completions": Endpoint(OPENAI, chat.parse),
    "/v1/completions": Endpoint(OPENAI, completion.parse),
    "/v1/tokenize": Endpoint(OPENAI, tokenize.parse, model_named=False),
    "/v1/detokenize": Endpoint(tokenize.OF_TOKENS, tokenize.parse_tokens, model_named=False),
    "/v1/messages": Endpoint(anthropic_answer.DIALECT, anthropic.parse),
    "/v1/messages/count_tokens": Endpoint(anthropic_answer.DIALECT, anthropic.parse_count),
}


def dialect_of(path: str) -> Dialect:
    """The dialect in which whoever asks for `path` reads an error."""
    endpoint = ANSWERED.get(path)
    return endpoint.dialect if endpoint is not None else OPENAI
