"""A guide begins behind what a model thinks, through the real server. SmolLM2 thinks by a template of the tests and by
examples in the conversation; what it writes between the tags is its own.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from tests.conftest import MakeServer
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


def conversation(answer: str) -> str:
    turns: list[dict[str, str]] = []
    for thing, colour in EXAMPLES:
        turns.append({"role": "user", "content": f"Which colour has {thing}?"})
        thought = f"The user asks about {thing}. It is {colour}."
        turns.append({"role": "assistant", "reasoning": thought, "content": answer.format(colour)})
    return json.dumps([*turns, {"role": "user", "content": "Which colour has grass?"}])


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
