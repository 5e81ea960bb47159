"""Anthropic's API, of the types in its own Python client: it publishes no description."""

from __future__ import annotations

from typing import Any

import anthropic.types
import pydantic
from anthropic.types import message_count_tokens_params, message_create_params

from tests.contract.described import (
    FLAG,
    NAME,
    PARAMETERS,
    SCHEMAS,
    TEXT,
    Api,
    Operation,
    events,
    listed,
    number,
    of,
    one_of,
    reference,
    whole,
)  # fmt: skip

_TYPES: dict[str, Any] = {
    "CreateParams": message_create_params.MessageCreateParams,
    "CountParams": message_count_tokens_params.MessageCountTokensParams,
    "Message": anthropic.types.Message,
    "MessageTokensCount": anthropic.types.MessageTokensCount,
    "StreamEvent": anthropic.types.RawMessageStreamEvent,
    "ErrorResponse": anthropic.types.ErrorResponse,
}


def _description() -> dict[str, Any]:
    """OpenAPI's form of those types."""
    schemas: dict[str, Any] = {}
    for name, kind in _TYPES.items():
        found = pydantic.TypeAdapter(kind).json_schema(ref_template=SCHEMAS + "{model}")
        schemas |= found.pop("$defs", {})
        schemas.setdefault(name, found)
    for name in ("MessageCreateParamsNonStreaming", "MessageCreateParamsStreaming", "CountParams"):
        schemas[name]["properties"]["model"] = {"const": "llm"}

    def post(body: str, answer: str) -> dict[str, Any]:
        content = {"application/json": {"schema": reference(body)}}
        answers = {"200": {"description": "", "content": {"application/json": {"schema": reference(answer)}}}}
        return {"post": {"requestBody": {"required": True, "content": content}, "responses": answers}}

    return {
        "openapi": "3.1.0",
        "info": {"title": "Anthropic's Messages", "version": anthropic.__version__},
        "paths": {
            "/messages": post("CreateParams", "Message"),
            "/messages/count_tokens": post("CountParams", "MessageTokensCount"),
        },
        "components": {"schemas": schemas},
    }


def _blocks(*kinds: dict[str, Any]) -> dict[str, Any]:
    return one_of(TEXT, listed(one_of(*kinds), 2))


_TEXT_BLOCK = of(
    "type text", {"type": {"const": "text"}, "text": TEXT, "cache_control": {"enum": [None, {"type": "ephemeral"}]}}
)
_TURNS = listed(
    one_of(
        of(
            "role content",
            {
                "role": {"const": "user"},
                "content": _blocks(
                    _TEXT_BLOCK,
                    of(
                        "type tool_use_id",
                        {
                            "type": {"const": "tool_result"}, "tool_use_id": NAME, "content": TEXT, "is_error": FLAG,
                        },
                    ),
                ),
            },
        ),
        of(
            "role content",
            {
                "role": {"const": "assistant"},
                "content": _blocks(
                    _TEXT_BLOCK,
                    of("type thinking signature", {"type": {"const": "thinking"}, "thinking": TEXT, "signature": TEXT}),
                    of("type data", {"type": {"const": "redacted_thinking"}, "data": TEXT}),
                ),
            },
        ),
    ),
    4,
)  # fmt: skip
_TOOL = of("name input_schema", {"name": NAME, "description": TEXT, "input_schema": PARAMETERS})
_PROMPT = {
    "model": {"const": "llm"}, "messages": _TURNS, "system": one_of(TEXT, listed(_TEXT_BLOCK, 2)),
    "tools": listed(_TOOL, 1, 0), "tool_choice": of("type", {"type": {"enum": ["auto", "none"]}}),
    "thinking": of("type", {"type": {"const": "disabled"}}),
}  # fmt: skip
_CREATE = of(
    "model messages max_tokens",
    {
        **_PROMPT, "max_tokens": whole(1, 10**6), "stream": FLAG, "temperature": number(0, 1),
        "top_p": number(0.01, 1), "top_k": whole(1, 100), "stop_sequences": listed(TEXT, 2, 0),
        "metadata": of("", {"user_id": one_of(TEXT, None)}), "service_tier": {"enum": ["auto", "standard_only"]},
    },
)  # fmt: skip


def _events(text: str) -> None:
    """Blocks one after another, each begun, filled and ended, between the message's beginning and its end."""
    found = events(text)
    for name, said in found:
        assert said["type"] == name, said
        if name != "ping":
            ANTHROPIC.validate(said, "StreamEvent")
    kinds = [said["type"] for _, said in found if said["type"] != "ping"]
    assert (kinds[0], kinds[-2:]) == ("message_start", ["message_delta", "message_stop"]), kinds
    place, within = -1, False
    for _, said in found[1:-2]:
        if said["type"] == "content_block_start":
            assert not within, text
            place, within = place + 1, True
        if said["type"].startswith("content_block"):
            assert within, text
            assert said["index"] == place, text
        if said["type"] == "content_block_stop":
            within = False
    assert not within, text


ANTHROPIC = Api(
    _description(),
    "/v1",
    (400, 404),
    {
        "/messages": Operation(_CREATE, reference("Message"), _events, (0.02, 0.12)),
        "/messages/count_tokens": Operation(
            of("model messages", _PROMPT), reference("MessageTokensCount"), None, (0.01, 0.02)
        ),
    },
)
