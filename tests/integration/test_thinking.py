"""What a model thinks, through the real server and the gateway: a guide begins behind it, and clients find it where
their APIs have it. SmolLM2 thinks by a template of the tests and by examples in the conversation; what it writes
between the tags is its own.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import anthropic
import jsonschema
import openai
import pytest

from tests.conftest import MakeServer
from tests.harness.gateway import running
from tests.harness.grpc_client import GrpcClient

pytestmark = pytest.mark.server

TEMPLATE = """\
{% for message in messages %}<|im_start|>{{ message.role }}
{% if message.role == 'assistant' %}<think>
{{ message.reasoning_content }}
</think>

{% endif %}{{ message.content }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
<think>
{% endif %}"""
SCHEMA = {
    "type": "object",
    "properties": {"colour": {"type": "string", "maxLength": 20}},
    "required": ["colour"],
    "additionalProperties": False,
}
EXAMPLES = (("snow", "white"), ("coal", "black"), ("blood", "red"))
GUIDES: dict[str, tuple[str, str]] = {
    "json": ("", "{.*}"),
    "json_schema": (json.dumps(SCHEMA), "{.*}"),
    "regex": ("Colour: [a-z]{3,9}", "Colour: [a-z]{3,9}"),
    "choice": (json.dumps(["green", "blue"]), "green|blue"),
    "ebnf_grammar": ('root ::= "(" root ")" | "green"', r"\(*green\)*"),
}
"""kind → (guide, a regular expression of what it allows)."""


QUESTION = "Which colour has grass?"


def conversation(answer: str) -> str:
    turns: list[dict[str, str]] = []
    for thing, colour in EXAMPLES:
        turns.append({"role": "user", "content": f"Which colour has {thing}?"})
        thought = f"The user asks about {thing}. It is {colour}."
        turns.append({"role": "assistant", "reasoning": thought, "content": answer.format(colour)})
    return json.dumps([*turns, {"role": "user", "content": QUESTION}])


def test_every_kind_of_guide_begins_behind_the_thought(tmp_path: Path, make_server: MakeServer) -> None:
    template = tmp_path / "thinks.jinja"
    template.write_text(TEMPLATE, encoding="utf-8")
    server = make_server({"llm": {"chat_template": str(template)}}, engine="openvino")
    with GrpcClient(server.grpc_url) as grpc:
        pending = {}
        for kind, (guide, _) in GUIDES.items():
            values: dict[str, Any] = {"guided_decoding_guide_type": kind, "max_tokens": 80, "reasoning": True}
            if guide:
                values["guided_decoding_guide"] = guide
            messages = conversation('{{"colour": "{}"}}' if kind.startswith("json") else "{}")
            pending[kind] = grpc.start(messages=messages, return_finish_reason=True, **values)
        raw = grpc.start(
            messages=conversation("{}"),
            guided_decoding_guide_type="regex",
            guided_decoding_guide="green",
            max_tokens=60,
        )
        for kind, answer in pending.items():
            answer.result()
            thought = "".join(
                text.decode() for response in answer.responses for text in response.outputs.get("reasoning_output", [])
            )
            assert len(thought) > 10, kind
            assert "grass" in thought, kind
            assert answer.finish_reason == "stop", (kind, thought, answer.text)
            assert re.fullmatch(GUIDES[kind][1], answer.text, re.DOTALL), (kind, answer.text)
        jsonschema.validate(json.loads(pending["json_schema"].text), SCHEMA)
        # Without `reasoning` the text is what the model wrote.
        assert raw.result().text.endswith("</think>\n\ngreen")
    with running(server.grpc_url) as gateway:
        gateway.wait_ready()
        thought = of_chat(openai.OpenAI(base_url=f"{gateway.url}/v1", api_key="none", max_retries=0))
        of_responses(openai.OpenAI(base_url=f"{gateway.url}/v1", api_key="none", max_retries=0), thought)
        of_messages(anthropic.Anthropic(base_url=gateway.url, api_key="none", max_retries=0), thought)


# --- The same thought, as each client has it: whole, streamed, and sent back with the next question. ------------------

GREEDY: dict[str, Any] = {"model": "llm", "temperature": 0}
MOST = 80


def of_chat(client: openai.OpenAI) -> str:
    """What was thought; `reasoning_content` has it, whole and joined."""
    asked = {**GREEDY, "messages": json.loads(conversation("{}")), "max_completion_tokens": MOST}
    said = client.chat.completions.create(**asked)
    message = said.choices[0].message
    thought = message.reasoning_content  # type: ignore[attr-defined]
    assert "grass" in thought
    assert "green" in (message.content or "").lower()
    assert "think>" not in thought + (message.content or "")
    chunks = list(client.chat.completions.create(**asked, stream=True))
    deltas = [choice.delta for chunk in chunks for choice in chunk.choices]
    assert "".join(getattr(delta, "reasoning_content", None) or "" for delta in deltas) == thought
    assert "".join(delta.content or "" for delta in deltas) == message.content
    return str(thought)


def of_responses(client: openai.OpenAI, thought: str) -> None:
    """An item of its own before the message, with `reasoning_tokens`; it can be sent back as it came."""
    turns: list[Any] = []
    for thing, colour in EXAMPLES:
        known = {"type": "reasoning_text", "text": f"The user asks about {thing}. It is {colour}."}
        turns.append({"role": "user", "content": f"Which colour has {thing}?"})
        turns.append({"type": "reasoning", "id": f"rs_{thing}", "summary": [], "content": [known]})
        turns.append({"role": "assistant", "content": colour})
    asked = {**GREEDY, "input": [*turns, {"role": "user", "content": QUESTION}], "max_output_tokens": MOST}
    said = client.responses.create(**asked)
    assert [item.type for item in said.output] == ["reasoning", "message"]
    assert said.output[0].content[0].text == thought  # type: ignore[union-attr,index]
    assert "green" in said.output_text.lower()
    assert said.usage is not None
    assert 0 < said.usage.output_tokens_details.reasoning_tokens < said.usage.output_tokens
    with client.responses.stream(**asked) as stream:
        deltas = "".join(event.delta for event in stream if event.type == "response.reasoning_text.delta")
        last = stream.get_final_response()
    assert deltas == thought
    assert last.output_text == said.output_text
    # The next question, behind the answer as it came.
    more = [*asked["input"], *(item.to_dict() for item in said.output), {"role": "user", "content": "And the sky?"}]
    again = client.responses.create(**{**asked, "input": more})
    assert again.output[0].type == "reasoning"


def of_messages(client: anthropic.Anthropic, thought: str) -> None:
    """A block `thinking` before the text, streamed by its own deltas; left out where it is not to be displayed."""
    turns: list[Any] = []
    for thing, colour in EXAMPLES:
        known = {"type": "thinking", "thinking": f"The user asks about {thing}. It is {colour}.", "signature": ""}
        turns.append({"role": "user", "content": f"Which colour has {thing}?"})
        turns.append({"role": "assistant", "content": [known, {"type": "text", "text": colour}]})
    asked: dict[str, Any] = {
        "model": "llm",
        "extra_body": {"temperature": 0},
        "messages": [*turns, {"role": "user", "content": QUESTION}],
        "max_tokens": MOST,
    }
    thinking = {"type": "enabled", "budget_tokens": 1024}
    said = client.messages.create(**asked, thinking=thinking)
    assert [block.type for block in said.content] == ["thinking", "text"]
    assert said.content[0].thinking == thought  # type: ignore[union-attr]
    text = said.content[1].text  # type: ignore[union-attr]
    assert "green" in text.lower()
    with client.messages.stream(**asked, thinking=thinking) as stream:
        deltas = "".join(event.thinking for event in stream if event.type == "thinking")
        last = stream.get_final_message()
    assert deltas == thought
    assert [block.type for block in last.content] == ["thinking", "text"]
    assert last.content[1].text == text  # type: ignore[union-attr]
    omitted = client.messages.create(**asked, thinking={"type": "adaptive", "display": "omitted"})
    assert [(block.type, block.text) for block in omitted.content] == [("text", text)]  # type: ignore[union-attr]
    more = [*asked["messages"], {"role": "assistant", "content": said.content}]
    more.append({"role": "user", "content": "And the sky?"})
    again = client.messages.create(**{**asked, "messages": more}, thinking=thinking)
    assert again.content[0].type == "thinking"
