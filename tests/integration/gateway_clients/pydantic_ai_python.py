"""pydantic-ai's agents."""

from __future__ import annotations

import asyncio

from common import ASK, URL, report, says_paris
from pydantic import BaseModel
from pydantic_ai import Agent, NativeOutput, ToolOutput
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider
from pydantic_ai.settings import ModelSettings

QUESTION = ASK[0]["content"]
model = OpenAIChatModel("llm", provider=OpenAIProvider(base_url=URL, api_key="none"))
settings = ModelSettings(temperature=0, max_tokens=200, timeout=180)


class City(BaseModel):
    """A city."""

    city: str


def chat() -> None:
    says_paris(Agent(model, model_settings=settings).run_sync(QUESTION).output)


def chat_streamed() -> None:
    async def ask() -> str:
        async with Agent(model, model_settings=settings).run_stream(QUESTION) as answer:
            return await answer.get_output()

    says_paris(asyncio.run(ask()))


def tools() -> None:
    agent = Agent(model, output_type=ToolOutput(City), model_settings=settings)
    assert isinstance(agent.run_sync(QUESTION).output, City)


def tools_streamed() -> None:
    async def ask() -> City:
        agent = Agent(model, output_type=ToolOutput(City), model_settings=settings)
        async with agent.run_stream(QUESTION) as answer:
            return await answer.get_output()

    assert isinstance(asyncio.run(ask()), City)


def structured() -> None:
    agent = Agent(model, output_type=NativeOutput(City), model_settings=settings)
    assert isinstance(agent.run_sync(QUESTION).output, City)


report(
    "pydantic-ai-slim",
    {
        "chat": chat,
        "chat, streamed": chat_streamed,
        "tools": tools,
        "tools, streamed": tools_streamed,
        "structured": structured,
    },
)
