"""LiteLLM as a library."""

from __future__ import annotations

import os

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # it would ask the network for prices

import litellm
from common import ASK, CITY, URL, WEATHER, calls_for_a_city, has_a_city, report, says_paris

BASE = {"model": "hosted_vllm/llm", "api_base": URL, "api_key": "none", "temperature": 0, "timeout": 180}


def chat() -> None:
    says_paris(litellm.completion(messages=ASK, max_tokens=24, **BASE).choices[0].message.content)
    asked = {**BASE, "model": "openai/llm"}
    says_paris(litellm.completion(messages=ASK, max_tokens=24, **asked).choices[0].message.content)


def chat_streamed() -> None:
    chunks = list(
        litellm.completion(messages=ASK, max_tokens=24, stream=True, stream_options={"include_usage": True}, **BASE)
    )
    whole = litellm.stream_chunk_builder(chunks, messages=ASK)
    says_paris(whole.choices[0].message.content)
    assert whole.choices[0].finish_reason == "stop"
    assert whole.usage.completion_tokens > 0


def tools() -> None:
    answer = litellm.completion(messages=ASK, max_tokens=200, tools=[WEATHER], tool_choice="required", **BASE)
    call = answer.choices[0].message.tool_calls[0]
    calls_for_a_city(call.function.name, call.function.arguments)


def tools_streamed() -> None:
    chunks = list(
        litellm.completion(messages=ASK, max_tokens=200, tools=[WEATHER], tool_choice="required", stream=True, **BASE)
    )
    call = litellm.stream_chunk_builder(chunks, messages=ASK).choices[0].message.tool_calls[0]
    calls_for_a_city(call.function.name, call.function.arguments)


def structured() -> None:
    answer = litellm.completion(messages=ASK, max_tokens=100, response_format=CITY, **BASE)
    has_a_city(answer.choices[0].message.content)


def completions() -> None:
    asked = {**BASE, "model": "text-completion-openai/llm"}
    says_paris(litellm.text_completion(prompt="The capital of France is", max_tokens=8, **asked).choices[0].text)


def completions_streamed() -> None:
    asked = {**BASE, "model": "text-completion-openai/llm"}
    stream = litellm.text_completion(prompt="The capital of France is", max_tokens=8, stream=True, **asked)
    says_paris("".join(chunk.choices[0].text or "" for chunk in stream))


report(
    "litellm",
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
