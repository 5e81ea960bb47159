"""Guides in the forms whose arguments are no JSON object: the form's own parser reads what they allow, and it fits."""

from __future__ import annotations

import json
import random
import time
from typing import Any

import pytest

from inflight.answer.tools.events import CallArguments, CallEnd, CallStart
from inflight.answer.tools.forms import ToolForm, make_parser
from inflight.answer.tools.qwen3_coder import Qwen3CoderParser
from inflight.grammar import chars, tool_arguments
from inflight.grammar.nodes import Chars, GrammarError, Repeat, literal, seq
from inflight.grammar.prepare import network, prepare
from inflight.grammar.tool_arguments import FORMS, fits, kind_of
from tests.unit.grammar.test_public_schemas import BY_NAME, excused, judge
from tests.unit.machines.grammar_walks import accepts, sample

pytestmark = pytest.mark.fast

OWN = pytest.mark.parametrize("form", sorted(FORMS))


def tool(schema: Any, **more: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": "f", "parameters": schema, **more}}


def guide(form: str, *tools: dict[str, Any], parallel: bool = False) -> str:
    return json.dumps({"form": form, "tools": tools, "parallel": parallel})


def read(form: str, tools: list[dict[str, Any]], text: str) -> Any:
    """The arguments of the one call that the form's parser finds in the text, and nothing beside it."""
    parser = make_parser(ToolForm(form), tools)
    assert parser is not None
    events = parser.push(text) + parser.finish()
    assert {type(event) for event in events} == {CallStart, CallArguments, CallEnd}, text
    assert sum(isinstance(event, CallStart) for event in events) == 1
    return json.loads("".join(event.text for event in events if isinstance(event, CallArguments)))


TEXT = chars.difference(chars.ALL, chars.of("<"))
_AS_JSON = {"save_tree", "ping", "find_place", "create_pet", "book_room", "route", "area"}
NO_ROOM = {
    "pythonic": _AS_JSON | {"search_issues", "fill_form"},
    "qwen3_coder": _AS_JSON
    | {"add_person", "paint", "paint_v1", "draw", "set_volume", "choose_model", "merge", "start_run", "get_forecast"}
    | {"weather_strict"},
}
"""Schemas that say more than named parameters, or values that the form could not bring back: written as JSON."""


@OWN
@BY_NAME
def test_what_the_guide_writes_of_a_public_schema_validates(
    form: str, case: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    tools = [tool(case["schema"])]
    if not fits(form, tools):
        assert case["name"] in NO_ROOM[form]
        return
    assert prepare("tools", guide(form, *tools))
    # At random no walk through free text would ever spell the tag behind it.
    monkeypatch.setattr(tool_arguments, "text_until", lambda end: seq(Repeat(Chars(TEXT), 0, None), literal(end)))
    automata, validator = network("tools", guide(form, *tools)), judge(case)
    left_out = {note.rpartition(": ")[2] for note in case.get("relaxed", [])}
    whole = 0
    for seed in range(20):
        text = sample(automata, random.Random(seed), 400)
        if text is None:  # it grew too long
            continue
        whole += 1
        written = read(form, tools, text)
        for error in validator.iter_errors(written):
            assert excused(error, left_out), (text, error.message)
    assert whole


WEATHER = {
    "type": "object",
    "properties": {
        "city": {"type": "string"},
        "days": {"type": "integer", "minimum": 1, "maximum": 9},
        "exact": {"type": "boolean"},
        "unit": {"enum": ["c", "f"]},
        "tags": {"type": "array", "items": {"type": ["boolean", "null"]}},
        "more": {"type": "object"},
    },
    "required": ["city", "exact"],
}


@pytest.mark.parametrize(
    ("form", "text", "fits_it"),
    [
        ("pythonic", '[f(city="Rome", exact=True)]', True),
        (
            "pythonic",
            '[f(city="a, \\"b\\")]", days=3, exact=False, unit="c", tags=[True, None], more={"a": False})]',
            True,
        ),
        ("pythonic", '[f(city="Rome", exact=True), f(city="Oslo", exact=False)]', True),
        ("pythonic", '[f(city="Rome", exact=true)]', False),
        ("pythonic", '[f(city="Rome")]', False),
        ("pythonic", '[f(exact=True, city="Rome")]', False),
        ("pythonic", '[f(city="Rome", days=10, exact=True)]', False),
        ("pythonic", '[f(city="Rome", exact=True, tags=[null])]', False),
        ("pythonic", 'f(city="Rome", exact=True)', False),
        (
            "qwen3_coder",
            "<tool_call>\n<function=f>\n<parameter=city>\nRome\n</parameter>\n<parameter=exact>\ntrue\n</parameter>\n"
            "</function>\n</tool_call>",
            True,
        ),
        (
            "qwen3_coder",
            '<tool_call>\n<function=f>\n<parameter=city>\na\n "b" </p> <\n</parameter>\n<parameter=days>\n3\n'
            "</parameter>\n<parameter=exact>\nfalse\n</parameter>\n<parameter=unit>\nc\n</parameter>\n"
            '<parameter=tags>\n[true, null]\n</parameter>\n<parameter=more>\n{"a": 1}\n</parameter>\n'
            "</function>\n</tool_call>",
            True,
        ),
        (
            "qwen3_coder",
            "<tool_call>\n<function=f>\n<parameter=city>\nRome\n</parameter>\n</function>\n</tool_call>",
            False,
        ),
        (
            "qwen3_coder",
            "<tool_call>\n<function=f>\n<parameter=city>\nRome\n</parameter>\n<parameter=exact>\ntrue\n</parameter>\n"
            "<parameter=unit>\nk\n</parameter>\n</function>\n</tool_call>",
            False,
        ),
    ],
)
def test_calls_in_the_form_that_the_model_was_trained_on(form: str, text: str, fits_it: bool) -> None:
    tools = [tool(WEATHER)]
    assert fits(form, tools)
    assert accepts(network("tools", guide(form, *tools, parallel=True)), text) is fits_it
    if fits_it and text.count("city") == 1:
        assert judge({"schema": WEATHER}).is_valid(read(form, tools, text))


@OWN
@pytest.mark.parametrize(
    "schema",
    [
        {"type": "object"},
        {"type": "object", "properties": {}, "additionalProperties": {"type": "string"}},
        {"anyOf": [{"type": "object", "properties": {"a": {}}}, {"type": "object", "properties": {"b": {}}}]},
        {"$ref": "#/$defs/a", "$defs": {"a": {"type": "object", "properties": {"a": {"type": "string"}}}}},
        {"type": "object", "properties": {"a": {}}, "required": ["b"]},
        {"type": "object", "properties": {"a<b>": {"enum": [1, "x"]}}},
    ],
)
def test_what_has_no_room_in_a_form_is_written_as_json(form: str, schema: dict[str, Any]) -> None:
    assert not fits(form, [tool(schema)])


@OWN
@pytest.mark.parametrize("schema", [None, {}, {"type": "object", "properties": {}, "additionalProperties": False}])
def test_a_tool_without_parameters_is_called_without(form: str, schema: Any) -> None:
    tools = [tool(schema)]
    assert fits(form, tools)
    text = "[f()]" if form == "pythonic" else "<tool_call>\n<function=f>\n</function>\n</tool_call>"
    assert accepts(network("tools", guide(form, *tools)), text)
    assert read(form, tools, text) == {}


@OWN
def test_a_strict_tool_is_kept_or_refused_and_another_relaxed(form: str) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "string", "format": "binary"}}}
    with pytest.raises(GrammarError, match=r"of f .*binary"):
        network("tools", guide(form, tool(schema, strict=True)))
    assert prepare("tools", guide(form, tool(schema)))


@OWN
def test_fifty_tools_of_twelve_distinct_parameters_compile(form: str) -> None:
    kinds = ("string", "integer", "boolean", "number")
    tools = []
    for number in range(50):
        properties = {f"p{number}_{place}": {"type": kinds[place % 4]} for place in range(12)}
        function = {"name": f"t{number}", "parameters": {"type": "object", "properties": properties}}
        tools.append({"type": "function", "function": function})
    took = []
    while not took or (min(took) >= 2.0 and len(took) < 3):  # whoever shares the caches costs processor time as well
        began = time.process_time()
        assert prepare("tools", guide(form, *tools, parallel=True))
        took.append(time.process_time() - began)
    assert min(took) < 2.0


@pytest.mark.parametrize(
    "schema",
    [
        *({"type": kind} for kind in ("string", "integer", "boolean", "object", "str", ["string", "null"])),
        *({"type": kind} for kind in (["integer", "null"], ["integer", "string"], None)),
        *({}, True, {"enum": ["a"]}, {"anyOf": [{}]}, {"$ref": "#"}, {"type": "string", "anyOf": [{}]}),
    ],
)
def test_guide_and_parser_agree_on_what_is_text(schema: Any) -> None:
    """The rooms of grammars and of answers know nothing of each other."""
    parser = make_parser(ToolForm.QWEN3_CODER, [tool({"properties": {"a": schema}})])
    assert isinstance(parser, Qwen3CoderParser)
    assert parser._types["f"].get("a", "string") == kind_of(schema)
