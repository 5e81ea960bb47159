from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inflight.answer.parts import Parts, PartsForm
from inflight.answer.reasoning import ReasoningForm
from inflight.answer.tools.forms import ToolForm
from tests.unit.machines.strategies import budget, cuts

pytestmark = pytest.mark.fast

TOOLS = ({"type": "function", "function": {"name": "f"}},)
CALL = '<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>'
THINKING = PartsForm(reasoning=ReasoningForm.THINK, splits=True, tools=ToolForm.HERMES, schemas=TOOLS)


def read(form: PartsForm, pieces: list[str]) -> tuple[str, str, list[dict[str, Any]]]:
    """(thought, answer, calls put together from what was new after each piece)."""
    parts = form.make()
    thought = answer = ""
    calls: dict[int, dict[str, Any]] = {}
    for piece in [*pieces, None]:
        parts.finish() if piece is None else parts.push(piece)
        thought += parts.take_thought()
        answer += parts.take_answer()
        for item in json.loads(parts.take_calls(whole=False)):
            if "id" in item:
                assert item["index"] not in calls
                calls[item["index"]] = {**item["function"], "id": item["id"]}
            else:
                calls[item["index"]]["arguments"] += item["function"]["arguments"]
        assert not parts.pending
    return thought, answer, [calls[index] for index in sorted(calls)]


def test_thought_answer_and_calls() -> None:
    thought, answer, calls = read(THINKING, [f"<think>f or\n{CALL}?</think>\n\nYes.\n{CALL}\n{CALL}"])
    assert (thought, answer) == (f"f or\n{CALL}?", "Yes.\n")
    assert [(call["name"], call["arguments"]) for call in calls] == [("f", '{"a": 1}')] * 2
    assert len({call["id"] for call in calls}) == 2
    assert all(call["id"].startswith("call_") for call in calls)


def test_thoughts_that_nobody_asked_for_stay_in_the_answer_and_call_nothing() -> None:
    form = PartsForm(reasoning=ReasoningForm.THINK, tools=ToolForm.HERMES, schemas=TOOLS)
    thought, answer, calls = read(form, [f"<think>\n{CALL}\n</think>\n\nYes. {CALL}"])
    assert (thought, answer, len(calls)) == ("", f"<think>\n{CALL}\n</think>\n\nYes. ", 1)


@given(st.data(), st.lists(st.sampled_from(["<think>", "</think>", CALL, "a", "\n", "<tool", "é"]), max_size=8))
@budget(150)
def test_the_parts_do_not_depend_on_how_the_text_was_cut(data: st.DataObject, words: list[str]) -> None:
    text = "".join(words)

    def bare(found: tuple[str, str, list[dict[str, Any]]]) -> Any:
        return found[0], found[1], [{**call, "id": ""} for call in found[2]]

    assert bare(read(THINKING, data.draw(cuts(text)))) == bare(read(THINKING, [text]))


def test_whole_calls_are_as_openai_has_them() -> None:
    parts = Parts(PartsForm(tools=ToolForm.MISTRAL, schemas=TOOLS))
    parts.push('[TOOL_CALLS][{"name": "f", "arguments": {}}]')
    parts.finish()
    (call,) = json.loads(parts.take_calls(whole=True))
    assert call == {"id": call["id"], "type": "function", "function": {"name": "f", "arguments": "{}"}}
    assert len(call["id"]) == 9
    assert call["id"].isalnum()
