"""LlamaIndex's class for servers that are like OpenAI's."""

from __future__ import annotations

import json

from common import ASK, URL, calls_for_a_city, report, says_paris
from llama_index.core.llms import ChatMessage
from llama_index.core.tools import FunctionTool
from llama_index.llms.openai_like import OpenAILike
from pydantic import BaseModel

MESSAGES = [ChatMessage(role="user", content=ASK[0]["content"])]
BASE = {"model": "llm", "api_base": URL, "api_key": "none", "temperature": 0, "max_retries": 0, "timeout": 180}
model = OpenAILike(
    is_chat_model=True, is_function_calling_model=True, should_use_structured_outputs=True, max_tokens=200, **BASE
)
text_model = OpenAILike(is_chat_model=False, max_tokens=8, **BASE)


def get_weather(city: str) -> str:
    """The weather in a city."""
    return f"sun in {city}"


WEATHER = FunctionTool.from_defaults(get_weather)


class City(BaseModel):
    """A city."""

    city: str


def chat() -> None:
    says_paris(model.chat(MESSAGES).message.content)


def chat_streamed() -> None:
    says_paris("".join(part.delta or "" for part in model.stream_chat(MESSAGES)))


def called(answer: object) -> None:
    call = model.get_tool_calls_from_response(answer)[0]
    calls_for_a_city(call.tool_name, json.dumps(call.tool_kwargs))


def tools() -> None:
    called(model.chat_with_tools([WEATHER], chat_history=MESSAGES, tool_required=True))


def tools_streamed() -> None:
    called(list(model.stream_chat_with_tools([WEATHER], chat_history=MESSAGES, tool_required=True))[-1])


def structured() -> None:
    assert isinstance(model.as_structured_llm(City).chat(MESSAGES).raw, City)


def completions() -> None:
    says_paris(text_model.complete("The capital of France is").text)


def completions_streamed() -> None:
    says_paris("".join(part.delta or "" for part in text_model.stream_complete("The capital of France is")))


report(
    "llama-index-llms-openai-like",
    {
        "chat": chat,
        "chat, streamed": chat_streamed,
        "tools": tools,
        "tools, streamed": tools_streamed,
        "structured": structured,
        "completions": completions,
        "completions, streamed": completions_streamed,
    },
)
