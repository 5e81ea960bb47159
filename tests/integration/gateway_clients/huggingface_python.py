"""huggingface_hub's InferenceClient."""

from __future__ import annotations

from common import ASK, CITY, URL, WEATHER, calls_for_a_city, has_a_city, report, says_paris
from huggingface_hub import InferenceClient

client = InferenceClient(base_url=URL, api_key="none", timeout=180)


def chat() -> None:
    answer = client.chat_completion(ASK, model="llm", temperature=0, max_tokens=24)
    says_paris(answer.choices[0].message.content)
    # A URL as the model: it names none, and sends "dummy".
    says_paris(
        InferenceClient(model=URL.removesuffix("/v1"), timeout=180)
        .chat_completion(ASK, temperature=0, max_tokens=24)
        .choices[0]
        .message.content
    )


def chat_streamed() -> None:
    text, reasons = "", []
    for chunk in client.chat_completion(ASK, model="llm", temperature=0, max_tokens=24, stream=True):
        text += chunk.choices[0].delta.content or ""
        reasons.append(chunk.choices[0].finish_reason)
    says_paris(text)
    assert [reason for reason in reasons if reason] == ["stop"]


def tools() -> None:
    answer = client.chat_completion(
        ASK, model="llm", temperature=0, max_tokens=200, tools=[WEATHER], tool_choice="required"
    )
    call = answer.choices[0].message.tool_calls[0]
    calls_for_a_city(call.function.name, call.function.arguments)


def tools_streamed() -> None:
    name, arguments = "", ""
    for chunk in client.chat_completion(
        ASK, model="llm", temperature=0, max_tokens=200, tools=[WEATHER], tool_choice="required", stream=True
    ):
        for call in chunk.choices[0].delta.tool_calls or []:
            if call.index:  # a model may make more of them
                continue
            name += call.function.name or ""
            arguments += call.function.arguments or ""
    calls_for_a_city(name, arguments)


def structured() -> None:
    answer = client.chat_completion(ASK, model="llm", temperature=0, max_tokens=100, response_format=CITY)
    has_a_city(answer.choices[0].message.content)


report(
    "huggingface_hub",
    {
        "chat": chat,
        "chat, streamed": chat_streamed,
        "tools": tools,
        "tools, streamed": tools_streamed,
        "structured": structured,
    },
)
