"""What a model's form of calls and thoughts makes of a request."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from inflight.answer.reasoning import ReasoningForm, Stage
from inflight.answer.tools.forms import ToolForm
from inflight.backend.about import with_left_out
from inflight.backend.forms import ModelForms, model_forms
from inflight.backend.relaxations import MOST
from inflight.errors import ErrorCode, RequestError
from inflight.grammar.thought import Thought
from inflight.model.parameters import ModelConfig
from inflight.request.prompt import Prompt
from tests.unit.machines.strategies import request

pytestmark = pytest.mark.fast

TOOLS = json.dumps([{"type": "function", "function": {"name": name}} for name in ("f", "g")])
CHAT = {"messages": "[]", "tools": TOOLS}
HERMES = "<tool_call>{{ tools }}"


def forms(template: str = HERMES, **parameters: Any) -> ModelForms:
    return model_forms(ModelConfig(**parameters), template, "tools" in template, {"<think>": 7, "[TOOL_CALLS]": 9})


def guide_of(model: ModelForms, **values: Any) -> dict[str, Any]:
    guided = model.guided(request(**{**CHAT, **values}), lambda _: Stage.BEFORE)
    assert guided.guide is not None
    assert guided.guide.kind == "tools"
    guide: dict[str, Any] = json.loads(guided.guide.text)
    return guide


@pytest.mark.parametrize(
    ("template", "form"),
    [
        (HERMES, "hermes"),
        ("[TOOL_CALLS]", "mistral"),
        ("<tool_call><function=", "qwen3_coder"),
        ("[func_name1(", "pythonic"),
        ("", "json_list"),
    ],
)
def test_a_required_call_is_guided_in_the_models_own_form_where_a_guide_knows_it(template: str, form: str) -> None:
    guide = guide_of(forms(template), tool_choice="required")
    assert (guide["form"], guide["parallel"], len(guide["tools"])) == (form, True, 2)


@pytest.mark.parametrize("template", ["<tool_call><function=", "[func_name1("])
def test_what_a_form_has_no_room_for_is_guided_and_read_as_json(template: str) -> None:
    free = json.dumps([{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}])
    model = forms(template, tool_format="auto")
    assert guide_of(model, tools=free, tool_choice="required")["form"] == "json_list"
    asked = request(messages="[]", tools=free, tool_choice="required")
    assert model.parts_of(asked, Prompt([1], "")).tools is ToolForm.JSON_LIST
    asked = request(messages="[]", tools=TOOLS, tool_choice="required")
    assert model.parts_of(asked, Prompt([1], "")).tools is model.tools


def test_a_named_tool_alone_is_called_once() -> None:
    guide = guide_of(forms(), tool_choice="g")
    assert [tool["function"]["name"] for tool in guide["tools"]] == ["g"]
    assert guide["parallel"] is False
    assert guide_of(forms(), tool_choice="required", parallel_tool_calls=False)["parallel"] is False


GUIDES = {
    "json": {"guided_decoding_guide_type": "json"},
    "json_schema": {"guided_decoding_guide_type": "json_schema", "guided_decoding_guide": '{"type": "object"}'},
    "regex": {"guided_decoding_guide_type": "regex", "guided_decoding_guide": "a+"},
    "ebnf_grammar": {"guided_decoding_guide_type": "ebnf_grammar", "guided_decoding_guide": 'root ::= "a"'},
    "choice": {"guided_decoding_guide_type": "choice", "guided_decoding_guide": '["a"]'},
    "tools": {"tools": TOOLS, "tool_choice": "required"},
}
THINKS = HERMES + "</think>"


def thought_of(template: str, stage: Stage, **values: Any) -> Thought | None:
    guide = forms(template).guided(request(**values), lambda _: stage).guide
    assert guide is not None
    return guide.thought


@pytest.mark.parametrize("kind", sorted(GUIDES))
def test_every_guide_of_a_model_that_thinks_begins_behind_the_thought(kind: str) -> None:
    chat = {"messages": "[]", **GUIDES[kind]}
    assert thought_of(THINKS, Stage.BEFORE, **chat) == Thought("<think>", "</think>", False)
    assert thought_of(THINKS, Stage.WITHIN, **chat) == Thought("<think>", "</think>", True)
    assert thought_of(THINKS, Stage.BEHIND, **chat) is None
    assert thought_of(HERMES, Stage.BEHIND, **chat) is None
    assert thought_of("[/THINK]", Stage.BEFORE, **{**chat, **GUIDES[kind]}) == Thought("[THINK]", "[/THINK]", False)


def test_a_bare_text_is_guided_from_its_first_character_unless_it_asks_for_thoughts() -> None:
    text = {"text_input": "x", **GUIDES["regex"]}
    assert thought_of(THINKS, Stage.BEFORE, **text) is None
    assert thought_of(THINKS, Stage.WITHIN, **text) is not None
    assert thought_of(THINKS, Stage.BEFORE, **text, reasoning=True) is not None


def test_a_guide_and_a_call_exclude_each_other() -> None:
    guide = {"guided_decoding_guide_type": "regex", "guided_decoding_guide": "a"}
    with pytest.raises(RequestError, match="tool_choice asks for a call"):
        forms().guided(request(**CHAT, tool_choice="required", **guide), lambda _: Stage.BEFORE)
    assert forms().guided(request(**CHAT, **guide), lambda _: Stage.BEFORE).guide is not None


def test_tools_that_the_model_cannot_be_told_of_are_refused() -> None:
    with pytest.raises(RequestError) as caught:
        forms("{{ messages }}").guided(request(**CHAT), lambda _: Stage.BEFORE)
    assert caught.value.code is ErrorCode.UNSUPPORTED
    shown = forms("{{ messages }}", tool_format="hermes")
    assert shown.guided(request(**CHAT), lambda _: Stage.BEFORE).guide is None
    assert forms("{{ messages }}").guided(request(**CHAT, tool_choice="none"), lambda _: Stage.BEFORE).guide is None


@pytest.mark.parametrize(
    ("values", "tools", "calls"),
    [
        ({}, ToolForm.HERMES, None),
        ({"parallel_tool_calls": False}, ToolForm.HERMES, 1),
        ({"tool_choice": "f"}, ToolForm.HERMES, 1),
        ({"tool_choice": "none"}, ToolForm.NONE, None),
    ],
)
def test_what_the_text_is_taken_apart_by(values: dict[str, Any], tools: ToolForm, calls: int | None) -> None:
    parts = forms().parts_of(request(**CHAT, **values), Prompt([1], ""))
    assert (parts.tools, parts.max_calls) == (tools, calls)


def test_thoughts_are_split_where_asked_for() -> None:
    thinking = forms("<think></think>")
    assert thinking.markers == {7}
    assert thinking.parts_of(request(), Prompt([1], "", "<think>\n")).plain
    parts = thinking.parts_of(request(reasoning=True), Prompt([1], "", "<think>\n"))
    assert (parts.reasoning, parts.opened, parts.splits) == (ReasoningForm.THINK, True, True)
    assert (
        forms("", default_reasoning=True).parts_of(request(ModelConfig(default_reasoning=True)), Prompt([1], "")).plain
    )


def test_what_a_guide_leaves_out_of_tools_is_told_of_those_that_it_calls() -> None:
    binary = {"type": "object", "properties": {"a": {"type": "string", "format": "binary"}}}
    tools = json.dumps([{"type": "function", "function": {"name": name, "parameters": binary}} for name in ("f", "g")])

    def told(**values: Any) -> Any:
        return json.loads(with_left_out("{}", forms().left_out(request(messages="[]", tools=tools, **values))))

    assert told(tool_choice="required") == {"relaxations": [f"{name}/properties/a: format" for name in ("f", "g")]}
    assert told(tool_choice="g") == {"relaxations": ["g/properties/a: format"]}
    assert told() == told(tool_choice="none") == {}
    kept = forms().left_out(request(**CHAT, tool_choice="required"))
    assert json.loads(with_left_out("{}", kept)) == {"relaxations": []}


def test_what_is_left_out_of_tools_is_found_once_for_each_list_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients send the same tools with every request, and finding it takes milliseconds for each tool."""
    asked: list[int] = []

    def find(tools: Sequence[Mapping[str, Any]]) -> list[str]:
        asked.append(len(tools))
        return [tool["function"]["name"] for tool in tools]

    monkeypatch.setattr("inflight.backend.relaxations.relaxations", find)
    model = forms()
    required = {**CHAT, "tool_choice": "required"}
    first = model.left_out(request(**required))
    assert first is not None
    assert first == model.left_out(request(**required))
    assert len(asked) == 1
    assert model.left_out(request(**{**CHAT, "tool_choice": "g"})) == ["g"]
    assert asked == [len(first), 1], "a named tool is a list of its own"
    assert model.left_out(request(**CHAT)) is None
    for number in range(2 * MOST):
        tools = json.dumps([{"type": "function", "function": {"name": f"t{number}"}}])
        model.left_out(request(**{**CHAT, "tools": tools, "tool_choice": "required"}))
    assert len(model._relaxations._known) == MOST
