"""Prompts of fifteen families of chat templates against transformers' own `apply_chat_template`, byte for byte.

The templates are written for these tests after what the families' public ones do. `WIRE` is a conversation as OpenAI's
clients send it; `NATIVE` the same as transformers' documentation has it: what a template was written for.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import transformers

from inflight.errors import RequestError
from inflight.request.chat import ChatOptions
from inflight.request.messages import parse_messages, short_call_id
from inflight.request.template_files import ChatTemplates

pytestmark = pytest.mark.fast

FOLDER = Path(__file__).parent
FAMILIES = sorted(path.stem for path in FOLDER.glob("*.jinja"))
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}
TOOLS: list[dict[str, Any]] = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "Weather of a city — today",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
        },
    }
]
ARGUMENTS = {"city": "Zürich", "days": 2}
SYSTEM = {"role": "system", "content": "Be brief."}
USER = {"role": "user", "content": "Rain in Zürich?"}
TURN = [USER, {"role": "assistant", "content": "I think so."}, {"role": "user", "content": "Sure?"}]
PARTS_OF_USER = [{"type": "text", "text": "Rain in "}, {"type": "text", "text": "Oslo?"}]
ANSWER = {"role": "assistant", "content": "Yes."}
THOUGHT = {**ANSWER, "reasoning_content": "It is autumn."}
AGAIN = {"role": "user", "content": "Sure?"}
RESULT = {"role": "tool", "tool_call_id": "call_abcdef0123", "content": '{"rain": true}'}


def called(arguments: Any, call_id: str, **more: Any) -> dict[str, Any]:
    call = {"id": call_id, "type": "function", "function": {"name": "get_weather", "arguments": arguments}}
    return {"role": "assistant", "content": None, "tool_calls": [call], **more}


# name → (what a client sends, what transformers is given)
CONVERSATIONS: dict[str, tuple[list[Any], list[Any]]] = {
    "turns": (TURN, TURN),
    "system": ([SYSTEM, *TURN], [SYSTEM, *TURN]),
    "developer": ([{**SYSTEM, "role": "developer"}, USER], [SYSTEM, USER]),
    "parts": ([{"role": "user", "content": PARTS_OF_USER}], []),
    "call": (
        [USER, called(json.dumps(ARGUMENTS, ensure_ascii=False), "call_abcdef0123"), RESULT],
        [USER, called(ARGUMENTS, "call_abcdef0123"), {**RESULT, "name": "get_weather"}],
    ),
    "reasoning": ([USER, {**ANSWER, "reasoning": "It is autumn."}, AGAIN], [USER, THOUGHT, AGAIN]),
}
TEXT_ARGUMENTS = {"deepseek"}  # these join arguments to text, so transformers is given text as well
SHORT_IDS = {"mistral"}
PARTS = {"llama4", "gemma3"}  # these read content as parts


def templates(family: str) -> ChatTemplates:
    return ChatTemplates.of((FOLDER / f"{family}.jinja").read_text(encoding="utf-8"), SPECIAL)


def ours(family: str, messages: list[Any], chat: ChatOptions) -> str:
    template = templates(family).choose(chat)
    parsed = parse_messages(json.dumps(messages).encode(), template.features)
    return template.render(parsed, 100_000, chat=chat)


def theirs(family: str, messages: list[Any], **options: Any) -> str:
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizers.Tokenizer(tokenizers.models.WordLevel({"<s>": 0, "</s>": 1}, "<s>")), **SPECIAL
    )
    source = (FOLDER / f"{family}.jinja").read_text(encoding="utf-8")
    rendered = tokenizer.apply_chat_template(messages, chat_template=source, tokenize=False, **options)
    assert isinstance(rendered, str)
    return rendered


def native(family: str, name: str) -> list[Any]:
    """The conversation as the family's template was written for it."""
    messages = copy.deepcopy(CONVERSATIONS[name][1])
    if name == "parts":
        return [{"role": "user", "content": PARTS_OF_USER if family in PARTS else "Rain in Oslo?"}]
    for message in messages:
        for call in message.get("tool_calls") or ():
            if family in TEXT_ARGUMENTS:
                call["function"] = {**call["function"], "arguments": json.dumps(ARGUMENTS, ensure_ascii=False)}
    if family in SHORT_IDS:
        for message in messages:
            if message.get("tool_calls"):
                message["tool_calls"] = [{**call, "id": short_call_id(call["id"])} for call in message["tool_calls"]]
            if "tool_call_id" in message:
                message["tool_call_id"] = short_call_id(message["tool_call_id"])
    if family in PARTS - {"gemma3"}:
        for message in messages:
            if isinstance(message.get("content"), str):
                message["content"] = [{"type": "text", "text": message["content"]}]
    return messages


@pytest.mark.parametrize("tools", [False, True], ids=["plain", "tools"])
@pytest.mark.parametrize("name", CONVERSATIONS)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_prompt_is_transformers_prompt(family: str, name: str, tools: bool) -> None:
    chat = ChatOptions(tools=tuple(TOOLS) if tools else ())
    try:
        expected = theirs(family, native(family, name), tools=TOOLS if tools else None, add_generation_prompt=True)
    except Exception:  # noqa: BLE001 — the template refuses such a conversation, or breaks on it
        with pytest.raises(RequestError):
            ours(family, CONVERSATIONS[name][0], chat)
        return
    assert ours(family, CONVERSATIONS[name][0], chat) == expected


@pytest.mark.parametrize("family", FAMILIES)
def test_prefill_is_cut_where_transformers_cuts_it(family: str) -> None:
    messages = [USER, {"role": "assistant", "content": "I think it will "}]
    wanted = native_prefill(family, messages)
    expected = theirs(family, wanted, continue_final_message=True)
    chat = ChatOptions(add_generation_prompt=False, continue_final_message=True)
    assert ours(family, messages, chat) == expected


def native_prefill(family: str, messages: list[Any]) -> list[Any]:
    if family not in PARTS - {"gemma3"}:
        return messages
    return [{**message, "content": [{"type": "text", "text": message["content"]}]} for message in messages]


def test_there_are_fifteen() -> None:
    assert len(FAMILIES) == 15
