"""Guides of tools: what they allow is one or more calls that parse and validate, in the family's own form."""

from __future__ import annotations

import json
import random
import time
from typing import Any

import jsonschema
import pytest

from inflight.answer.tools.events import CallArguments, CallStart
from inflight.answer.tools.forms import ToolForm, make_parser
from inflight.grammar.loosen import loosen
from inflight.grammar.nodes import GrammarError
from inflight.grammar.prepare import network, prepare
from inflight.grammar.tools import FORMS, relaxations
from tests.unit.machines.grammar_walks import accepts, sample

pytestmark = pytest.mark.fast


def tool(name: str, parameters: Any = None, **more: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "parameters": parameters, **more}}


WEATHER = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "days": {"type": "integer"}, "unit": {"enum": ["c", "f"]}},
    "required": ["city"],
}
TOOLS = [tool("get_weather", WEATHER), tool("get_weather_forecast", WEATHER), tool("now")]


def guide(form: str, tools: list[dict[str, Any]] | None = None, parallel: bool = True) -> str:
    return json.dumps({"form": form, "tools": tools or TOOLS, "parallel": parallel})


@pytest.mark.parametrize("form", sorted(FORMS))
@pytest.mark.parametrize("seed", range(12))
def test_what_it_allows_are_calls_that_parse_and_validate(form: str, seed: int) -> None:
    text = sample(network("tools", guide(form)), random.Random(seed))
    if text is None:  # it grew too long
        return
    parser = make_parser(ToolForm(form), TOOLS)
    assert parser is not None
    events = parser.push(text) + parser.finish()
    assert {type(event).__name__ for event in events} == {"CallStart", "CallArguments", "CallEnd"}, text
    for event in events:
        if isinstance(event, CallStart):
            schema = next(t["function"]["parameters"] for t in TOOLS if t["function"]["name"] == event.name)
            written = "".join(e.text for e in events if isinstance(e, CallArguments) and e.index == event.index)
            jsonschema.validate(json.loads(written), schema or {"type": "object", "maxProperties": 0})


def test_fifty_tools_of_twelve_distinct_parameters_compile() -> None:
    kinds = ("string", "integer", "boolean", "number")
    tools = [
        tool(
            f"tool_{number}",
            {
                "type": "object",
                "properties": {f"p{number}_{place}": {"type": kinds[place % 4]} for place in range(12)},
                "required": [f"p{number}_0"],
            },
        )
        for number in range(50)
    ]
    began = time.process_time()
    assert prepare("tools", guide("hermes", tools))
    assert time.process_time() - began < 5.0  # about 1 s; 3 s where neighbours filled the caches


@pytest.mark.parametrize(
    ("schema", "keyword"),
    [
        ({"type": "object", "properties": {"a": {"type": "string", "format": "binary"}}}, "binary"),
        ({"type": "object", "properties": {"a": {"type": "array", "uniqueItems": True}}}, "uniqueItems"),
        ({"type": "object", "properties": {"a": {"type": "string", "pattern": "a+", "maxLength": 4}}}, "maxLength"),
        ({"type": "object", "patternProperties": {"a": {}}}, "patternProperties"),
    ],
)
def test_a_strict_tool_is_refused_by_keyword_and_another_relaxed(schema: dict[str, Any], keyword: str) -> None:
    with pytest.raises(GrammarError, match=f"of f .*{keyword}"):
        network("tools", guide("hermes", [tool("f", schema, strict=True)]))
    assert prepare("tools", guide("hermes", [tool("f", schema)]))
    (note,) = relaxations([tool("f", schema)])
    assert note.startswith("f")
    assert relaxations([tool("f", schema, strict=True)]) == []


LOOSENED: list[tuple[Any, Any]] = [
    # pydantic
    (
        {"anyOf": [{"type": "integer"}, {"type": "null"}], "default": None},
        {"anyOf": [{"type": "integer"}, {"type": "null"}]},
    ),
    (
        {"allOf": [{"$ref": "#/$defs/A"}], "$defs": {"A": {"type": "string"}}},
        {"$defs": {"A": {"type": "string"}}, "type": "string"},
    ),
    # OpenAPI
    ({"type": "string", "nullable": True}, {"anyOf": [{"type": "string"}, {"type": "null"}]}),
    ({"type": "string", "format": "byte"}, {"type": "string"}),
    ({"type": "integer", "format": "int64"}, {"type": "integer"}),
    (
        {"type": "object", "oneOf": [{"type": "string"}, {"type": "integer"}]},
        {"anyOf": [{"type": "string"}, {"type": "integer"}]},
    ),
    ({"type": "number", "minimum": 0, "exclusiveMinimum": True}, {"type": "number", "exclusiveMinimum": 0}),
    # zod, and what MCP servers send
    ({"type": "string", "minLength": 1, "maxLength": 4000}, {"type": "string", "minLength": 1}),
    (
        {"type": "object", "properties": {}, "additionalProperties": False},
        {"type": "object", "additionalProperties": False, "properties": {}},
    ),
    ({"type": "object", "required": ["a"]}, {"type": "object", "properties": {"a": True}, "required": ["a"]}),
    ({"type": ["string", "null"], "enum": ["a", None]}, {"enum": ["a", None]}),
    (
        {"type": "array", "items": [{"type": "string"}, {"type": "integer"}]},
        {"type": "array", "prefixItems": [{"type": "string"}, {"type": "integer"}]},
    ),
    ({"type": "any"}, True),
    ({"$ref": "https://example.com/schema.json"}, True),
    ({"properties": {"a": {}}}, {"type": "object", "properties": {"a": True}}),
    (
        {
            "allOf": [
                {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"]},
                {"properties": {"b": True}},
            ]
        },
        {"type": "object", "properties": {"a": {"type": "string"}, "b": True}, "required": ["a"]},
    ),
]


@pytest.mark.parametrize(("schema", "expected"), LOOSENED)
def test_schemas_as_tools_send_them(schema: Any, expected: Any) -> None:
    loosened, _ = loosen(schema)
    assert loosened == expected
    assert prepare("json_schema", json.dumps(loosened))


def test_a_schema_that_needs_nothing_is_kept_and_nothing_noted() -> None:
    loosened, notes = loosen(WEATHER)
    assert notes == []
    assert loosened == WEATHER


def _held(inner: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": {"v": inner}, "required": ["v"], "additionalProperties": False}


@pytest.mark.parametrize("form", ["hermes", "pythonic", "qwen3_coder"])
def test_a_tool_that_can_be_read_in_two_ways_keeps_its_names_unless_it_is_strict(form: str) -> None:
    """Its alternatives begin alike, and one contains itself; the other tools of the request are none the worse."""
    leaf = {"type": "object", "properties": {"x": {"type": "number"}}, "required": ["x"], "additionalProperties": False}
    either = {"anyOf": [_held({"$ref": "#/$defs/e"}), _held(leaf)]}
    schema = {
        "type": "object",
        "$defs": {"e": either},
        "properties": {"filter": {"$ref": "#/$defs/e"}},
        "required": ["filter"],
    }
    plain = {"type": "object", "properties": {"q": {"type": "integer"}}, "required": ["q"]}

    def guide(strict: bool) -> str:
        functions = [{"name": "plain", "parameters": plain}, {"name": "find", "strict": strict, "parameters": schema}]
        tools = [{"type": "function", "function": function} for function in functions]
        return json.dumps({"form": form, "tools": tools, "parallel": True})

    made = network("tools", guide(strict=False))
    envelopes = {
        "hermes": '<tool_call>\n{{"name": "{0}", "arguments": {{"{1}": {2}}}}}\n</tool_call>',
        "pythonic": "[{0}({1}={2})]",
        "qwen3_coder": "<tool_call>\n<function={0}>\n<parameter={1}>\n{2}\n</parameter>\n</function>\n</tool_call>",
    }
    call = envelopes[form].format
    assert accepts(made, call("find", "filter", '{"v": {"x": 1}}'))
    assert not accepts(made, call("find", "other", "1"))
    assert accepts(made, call("plain", "q", "1"))
    assert not accepts(made, call("plain", "q", '"one"')), "the other tool's schema is kept"
    with pytest.raises(GrammarError, match="can be read in two ways"):
        prepare("tools", guide(strict=True))
