"""instructor, which asks for structured answers through tools or schemas."""

from __future__ import annotations

import instructor
import openai
from common import ASK, URL, report
from pydantic import BaseModel

plain = openai.OpenAI(base_url=URL, api_key="none", max_retries=0, timeout=180)
BASE = {"model": "llm", "messages": ASK, "temperature": 0, "max_tokens": 200, "max_retries": 0}


class City(BaseModel):
    """A city."""

    city: str


def tools() -> None:
    client = instructor.from_openai(plain, mode=instructor.Mode.TOOLS)
    assert isinstance(client.chat.completions.create(response_model=City, **BASE), City)


def tools_streamed() -> None:
    client = instructor.from_openai(plain, mode=instructor.Mode.TOOLS)
    assert isinstance(list(client.chat.completions.create_partial(response_model=City, **BASE))[-1].city, str)


def structured() -> None:
    client = instructor.from_openai(plain, mode=instructor.Mode.JSON_SCHEMA)
    assert isinstance(client.chat.completions.create(response_model=City, **BASE), City)


report("instructor", {"tools": tools, "tools, streamed": tools_streamed, "structured": structured})
