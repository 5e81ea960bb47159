"""OpenAI's agents: by default they ask /v1/responses."""

from __future__ import annotations

import asyncio
import os

os.environ["OPENAI_AGENTS_DISABLE_TRACING"] = "1"  # it would send what was said elsewhere

from agents import Agent, ModelSettings, OpenAIResponsesModel, Runner, function_tool, handoff
from common import ASK, URL, report, says_paris
from openai import AsyncOpenAI
from pydantic import BaseModel

QUESTION = ASK[0]["content"]
MOST = 4  # turns


class City(BaseModel):
    """A city."""

    city: str


def agent(**more: object) -> Agent:
    """One on the small model."""
    model = OpenAIResponsesModel("llm", AsyncOpenAI(base_url=URL, api_key="none", timeout=180))
    settings = ModelSettings(temperature=0, max_tokens=120, **more.pop("settings", {}))  # type: ignore[arg-type]
    return Agent(name="one", model=model, model_settings=settings, **more)  # type: ignore[arg-type]


def responses() -> None:
    says_paris(Runner.run_sync(agent(), QUESTION).final_output)


def responses_streamed() -> None:
    async def ask() -> tuple[str, str]:
        run = Runner.run_streamed(agent(), QUESTION)
        said = ""
        async for event in run.stream_events():
            if event.type == "raw_response_event" and event.data.type == "response.output_text.delta":
                said += event.data.delta
        return said, run.final_output

    said, last = asyncio.run(ask())
    says_paris(said)
    assert said == last


def tools() -> None:
    asked = []

    @function_tool
    def get_weather(city: str) -> str:
        """The weather in a city."""
        asked.append(city)
        return "sunny"

    # The small model's template shows no tools, so it takes them only where a call is required: once.
    one = agent(tools=[get_weather], settings={"tool_choice": "required"}, tool_use_behavior="stop_on_first_tool")
    answer = Runner.run_sync(one, "What is the weather in Paris?", max_turns=MOST)
    assert asked
    assert answer.final_output == "sunny"


def handoffs() -> None:
    other = agent(instructions="Answer in one sentence.")
    other.name = "geographer"
    first = agent(handoffs=[handoff(other)], settings={"tool_choice": "required"})
    answer = Runner.run_sync(first, QUESTION, max_turns=MOST)  # the one that is handed to sees the call
    assert answer.last_agent.name == "geographer"
    assert answer.final_output


def structured() -> None:
    assert isinstance(Runner.run_sync(agent(output_type=City), QUESTION).final_output, City)


report(
    "openai-agents",
    {
        "responses": responses,
        "responses, streamed": responses_streamed,
        "tools": tools,
        "handoffs": handoffs,
        "structured": structured,
    },
)
