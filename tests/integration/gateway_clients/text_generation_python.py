"""TGI's own client, which is no longer maintained and still installed."""

from __future__ import annotations

import contextlib

from common import URL, report, says_paris
from text_generation import Client
from text_generation.errors import ValidationError

PROMPT = "The capital of France is"
client = Client(URL.removesuffix("/v1"), timeout=180)


def text_generation() -> None:
    answer = client.generate(PROMPT, max_new_tokens=12)
    says_paris(answer.generated_text)
    assert len(answer.details.tokens) == answer.details.generated_tokens == 12


def text_generation_streamed() -> None:
    events = list(client.generate_stream(PROMPT, max_new_tokens=12))
    said = "".join(event.token.text for event in events if not event.token.special)
    says_paris(said)
    assert len(events) == 12
    assert events[-1].generated_text == said


def errors() -> None:
    with contextlib.suppress(ValidationError):
        client.generate(PROMPT, max_new_tokens=4, truncate=1)
        raise AssertionError("truncate was taken")


report(
    "text-generation",
    {
        "text generation": text_generation,
        "text generation, streamed": text_generation_streamed,
        "errors": errors,
    },
)
