"""The paths on which models answer, each with its dialect."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from inflight_gateway.wire import chat, completion, tokenize
from inflight_gateway.wire.anthropic import answer as anthropic_answer
from inflight_gateway.wire.anthropic import request as anthropic
from inflight_gateway.wire.dialect import OPENAI, Dialect, Endpoint
from inflight_gateway.wire.responses import request as responses
from inflight_gateway.wire.responses.answer import DIALECT as RESPONSES
from inflight_gateway.wire.tgi import request as tgi
from inflight_gateway.wire.tgi import tokenize as tgi_tokenize
from inflight_gateway.wire.tgi.answer import DIALECT as TGI

_CHAT = Endpoint(OPENAI, chat.parse)
_COMPLETION = Endpoint(OPENAI, completion.parse)
_INVOKED = {
    "messages": Endpoint(OPENAI, chat.parse, model_named=False),
    "prompt": Endpoint(OPENAI, completion.parse, model_named=False),
}
_TGI_TOKENIZE = Endpoint(TGI, tgi_tokenize.parse, model_named=False)

ANSWERED: Final[Mapping[str, Endpoint]] = {
    "/v1/chat/completions": _CHAT,
    "/v1/completions": _COMPLETION,
    "/v1/tokenize": Endpoint(OPENAI, tokenize.parse, model_named=False, shapes={"inputs": _TGI_TOKENIZE}),
    "/v1/detokenize": Endpoint(tokenize.OF_TOKENS, tokenize.parse_tokens, model_named=False),
    "/v1/responses": Endpoint(RESPONSES, responses.parse),
    "/v1/messages": Endpoint(anthropic_answer.DIALECT, anthropic.parse),
    "/v1/messages/count_tokens": Endpoint(anthropic_answer.DIALECT, anthropic.parse_count),
    "/": Endpoint(TGI, tgi.parse_either, model_named=False),
    "/generate": Endpoint(TGI, tgi.parse_whole, model_named=False),
    "/generate_stream": Endpoint(TGI, tgi.parse_stream, model_named=False),
    "/chat_tokenize": Endpoint(TGI, tgi_tokenize.parse_chat, model_named=False),
    "/invocations": Endpoint(TGI, tgi.parse_either, model_named=False, shapes=_INVOKED),
}
# What has its path without /v1; everything else has both.
BARE: Final = frozenset((*(path for path in ANSWERED if not path.startswith("/v1/")), "/info", "/metrics"))


def full(path: str) -> str:
    """The path under which a request's is known."""
    return path if path.startswith("/v1/") or path in BARE else f"/v1{path}"


def dialect_of(path: str) -> Dialect:
    """The dialect in which whoever asks for `path` reads an error."""
    endpoint = ANSWERED.get(path)
    return endpoint.dialect if endpoint is not None else OPENAI
