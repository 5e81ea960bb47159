"""OpenAI's own client."""

from __future__ import annotations

import openai
from common import ASK, CITY, URL, WEATHER, calls_for_a_city, has_a_city, report, says_paris
from pydantic import BaseModel

client = openai.OpenAI(base_url=URL, api_key="none", max_retries=0, timeout=180)


class City(BaseModel):
    """A structured answer."""

    city: str


def chat() -> None:
    answer = client.chat.completions.create(model="llm", messages=ASK, temperature=0, max_tokens=24)
    says_paris(answer.choices[0].message.content)
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


def streamed(**asked: object) -> object:
    with client.chat.completions.stream(model="llm", temperature=0, max_tokens=200, **asked) as stream:
        for _ in stream:
            pass
        return stream.get_final_completion()


def chat_streamed() -> None:
    answer = streamed(messages=ASK, stream_options={"include_usage": True})
    says_paris(answer.choices[0].message.content)
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage.completion_tokens > 0


def tools() -> None:
    answer = client.chat.completions.create(
        model="llm", messages=ASK, temperature=0, max_tokens=200, tools=[WEATHER], tool_choice="required"
    )
    call = answer.choices[0].message.tool_calls[0]
    calls_for_a_city(call.function.name, call.function.arguments)


def tools_streamed() -> None:
    named = {"type": "function", "function": {"name": "get_weather"}}
    call = streamed(messages=ASK, tools=[WEATHER], tool_choice=named).choices[0].message.tool_calls[0]
    calls_for_a_city(call.function.name, call.function.arguments)


def structured() -> None:
    answer = client.chat.completions.parse(
        model="llm", messages=ASK, temperature=0, max_tokens=100, response_format=City
    )
    assert isinstance(answer.choices[0].message.parsed, City)
    has_a_city(streamed(messages=ASK, response_format=CITY).choices[0].message.content)


def completions() -> None:
    answer = client.completions.create(model="llm", prompt=["The capital of France is", "1 2 3"], temperature=0)
    says_paris(answer.choices[0].text)


def completions_streamed() -> None:
    stream = client.completions.create(
        model="llm", prompt="The capital of France is", temperature=0, stream=True, max_tokens=8
    )
    says_paris("".join(chunk.choices[0].text for chunk in stream if chunk.choices))


def models() -> None:
    assert [model.id for model in client.models.list()] == ["llm"]


report(
    "openai",
    {
        "chat": chat,
        "chat, streamed": chat_streamed,
        "tools": tools,
        "tools, streamed": tools_streamed,
        "structured": structured,
        "completions": completions,
        "completions, streamed": completions_streamed,
        "models": models,
    },
)
