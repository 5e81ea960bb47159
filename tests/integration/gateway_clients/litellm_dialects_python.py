"""LiteLLM's providers `anthropic` and `huggingface`, pointed here, and its own Responses."""

from __future__ import annotations

import os

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # it would ask the network for prices

import litellm
from common import ASK, URL, WEATHER, calls_for_a_city, report, says_paris

ROOT = URL.removesuffix("/v1")
ANTHROPIC = {"model": "anthropic/llm", "api_base": ROOT, "api_key": "none", "temperature": 0, "timeout": 180}
HUGGINGFACE = {"model": "huggingface/llm", "api_base": ROOT, "api_key": "none", "temperature": 0, "timeout": 180}


def messages() -> None:
    answer = litellm.completion(messages=ASK, max_tokens=24, **ANTHROPIC)
    says_paris(answer.choices[0].message.content)
    assert answer.usage.completion_tokens > 0


def messages_streamed() -> None:
    chunks = list(litellm.completion(messages=ASK, max_tokens=24, stream=True, **ANTHROPIC))
    whole = litellm.stream_chunk_builder(chunks, messages=ASK)
    says_paris(whole.choices[0].message.content)
    assert whole.choices[0].finish_reason == "stop"


def tools() -> None:
    answer = litellm.completion(messages=ASK, max_tokens=200, tools=[WEATHER], tool_choice="required", **ANTHROPIC)
    call = answer.choices[0].message.tool_calls[0]
    calls_for_a_city(call.function.name, call.function.arguments)


def tools_streamed() -> None:
    chunks = list(
        litellm.completion(
            messages=ASK, max_tokens=200, tools=[WEATHER], tool_choice="required", stream=True, **ANTHROPIC
        )
    )
    call = litellm.stream_chunk_builder(chunks, messages=ASK).choices[0].message.tool_calls[0]
    calls_for_a_city(call.function.name, call.function.arguments)


def text_generation() -> None:
    says_paris(litellm.completion(messages=ASK, max_tokens=24, **HUGGINGFACE).choices[0].message.content)


def text_generation_streamed() -> None:
    chunks = litellm.completion(messages=ASK, max_tokens=24, stream=True, **HUGGINGFACE)
    says_paris("".join(chunk.choices[0].delta.content or "" for chunk in chunks))


def responses() -> None:
    asked = {"model": "openai/llm", "api_base": URL, "api_key": "none", "temperature": 0, "timeout": 180}
    answer = litellm.responses(input=ASK[0]["content"], max_output_tokens=24, **asked)
    says_paris(answer.output[0].content[0].text)


report(
    "litellm",
    {
        "messages": messages,
        "messages, streamed": messages_streamed,
        "tools": tools,
        "tools, streamed": tools_streamed,
        "text generation": text_generation,
        "text generation, streamed": text_generation_streamed,
        "responses": responses,
    },
)
