"""LangChain's package for OpenAI."""

from __future__ import annotations

import json

from common import ASK, URL, calls_for_a_city, report, says_paris
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAI
from pydantic import BaseModel

QUESTION = ASK[0]["content"]
BASE = {"model": "llm", "base_url": URL, "api_key": "none", "temperature": 0, "max_retries": 0, "timeout": 180}
model = ChatOpenAI(max_tokens=200, **BASE)
text_model = OpenAI(max_tokens=8, **BASE)


@tool
def get_weather(city: str) -> str:
    """The weather in a city."""
    return f"sun in {city}"


class City(BaseModel):
    """A city."""

    city: str


def chat() -> None:
    answer = model.invoke(QUESTION)
    says_paris(answer.content)
    assert answer.usage_metadata["output_tokens"] > 0


def chat_streamed() -> None:
    whole = None
    for chunk in model.stream(QUESTION):
        whole = chunk if whole is None else whole + chunk
    says_paris(whole.content)
    assert whole.response_metadata["finish_reason"] == "stop"


def tools() -> None:
    call = model.bind_tools([get_weather], tool_choice="any").invoke(QUESTION).tool_calls[0]
    calls_for_a_city(call["name"], json.dumps(call["args"]))


def tools_streamed() -> None:
    whole = None
    for chunk in model.bind_tools([get_weather], tool_choice="get_weather").stream(QUESTION):
        whole = chunk if whole is None else whole + chunk
    calls_for_a_city(whole.tool_calls[0]["name"], json.dumps(whole.tool_calls[0]["args"]))


def structured() -> None:
    for method in ("json_schema", "function_calling"):
        assert isinstance(model.with_structured_output(City, method=method).invoke(QUESTION), City)


def completions() -> None:
    says_paris(text_model.invoke("The capital of France is"))


def completions_streamed() -> None:
    says_paris("".join(text_model.stream("The capital of France is")))


report(
    "langchain-openai",
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
