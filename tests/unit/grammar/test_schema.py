"""JSON Schemas as networks: whatever a network can write is valid under the schema (jsonschema is the judge), and what
cannot be enforced is refused by its keyword.
"""

from __future__ import annotations

import json
import random
import re
from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from inflight.grammar.nodes import GrammarError
from inflight.grammar.prepare import network, prepare
from tests.unit.machines.grammar_walks import accepts, sample, ways
from tests.unit.machines.strategies import budget

NAMES = st.text('abk"\\é', min_size=1, max_size=3)
BOUND = st.one_of(st.integers(-300, 300), st.integers(-40, 40).map(lambda value: value / 8))


def numbers(kind: str) -> st.SearchStrategy[dict[str, Any]]:
    keywords = st.dictionaries(
        st.sampled_from(["minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"]), BOUND, max_size=3
    )
    return keywords.map(lambda found: {"type": kind, **found})


def _lengths(least: str, most: str) -> st.SearchStrategy[dict[str, int]]:
    return st.tuples(st.integers(0, 3), st.integers(0, 4)).map(lambda pair: {least: pair[0], most: sum(pair)})


LEAVES: st.SearchStrategy[Any] = st.one_of(
    st.sampled_from([True, {}, {"type": "boolean"}, {"type": "null"}, {"type": "string"}, {"title": "anything"}]),
    numbers("integer"),
    numbers("number"),
    _lengths("minLength", "maxLength").map(lambda found: {"type": "string", **found}),
    st.lists(st.one_of(st.none(), st.booleans(), st.integers(), NAMES), min_size=1, max_size=4).map(
        lambda values: {"enum": values}
    ),
    st.sampled_from(["[A-Z]{2}", '^a+"b?$', "x|yz", ".{0,3}", "[^a]"]).map(
        lambda pattern: {"type": "string", "pattern": pattern}
    ),
    st.lists(st.sampled_from(["string", "integer", "null", "boolean", "array"]), min_size=1, unique=True).map(
        lambda types: {"type": types}
    ),
)


@st.composite
def objects(draw: st.DrawFn, inner: st.SearchStrategy[Any]) -> dict[str, Any]:
    properties = draw(st.dictionaries(NAMES, inner, max_size=4))
    required = [name for name in properties if draw(st.booleans())]
    schema = {"type": "object", "properties": properties, "required": required}
    if draw(st.booleans()):
        schema["additionalProperties"] = draw(st.one_of(st.booleans(), inner))
    return schema


@st.composite
def arrays(draw: st.DrawFn, inner: st.SearchStrategy[Any]) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "array", **draw(_lengths("minItems", "maxItems"))}
    if draw(st.booleans()):
        schema["items"] = draw(inner)
    if draw(st.booleans()):
        schema["prefixItems"] = draw(st.lists(inner, min_size=1, max_size=3))
    return schema


SCHEMAS = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        objects(inner), arrays(inner), st.lists(inner, min_size=1, max_size=3).map(lambda options: {"anyOf": options})
    ),
    max_leaves=6,
)


@given(SCHEMAS, st.integers(0, 2**32))
@budget(600)
def test_what_is_written_is_valid(schema: Any, seed: int) -> None:
    try:
        net = network("json_schema", json.dumps(schema))
    except GrammarError:
        return
    validator = jsonschema.Draft202012Validator(schema)
    for number in range(6):
        text = sample(net, random.Random(seed + number))
        if text is not None:
            validator.validate(json.loads(text))


@given(SCHEMAS, st.integers(0, 2**32))
@budget(150)
def test_one_way_to_read_at_a_time(schema: Any, seed: int) -> None:
    try:
        net = network("json_schema", json.dumps(schema))
    except GrammarError:
        return
    text = sample(net, random.Random(seed), 60)
    if text is not None:
        assert ways(net, text) <= 1
        assert accepts(net, text)


@pytest.mark.parametrize("name", ["date", "time", "date-time", "email", "hostname", "ipv4", "uuid", "uri"])
def test_formats(name: str) -> None:
    schema = {"type": "string", "format": name}
    net = network("json_schema", json.dumps(schema))
    checker = jsonschema.Draft202012Validator(schema, format_checker=jsonschema.Draft202012Validator.FORMAT_CHECKER)
    written = [text for text in (sample(net, random.Random(seed), 40) for seed in range(60)) if text is not None]
    assert written
    for text in written:
        checker.validate(json.loads(text))


@pytest.mark.parametrize(
    ("schema", "text"),
    [
        ({"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}, '{"a": 1}'),
        ({"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}, '{\n  "a": 1\n}'),
        ({"type": "object", "properties": {"a": {}, "b": {}}}, '{"b":[{}, {"x":null}]}'),
        ({"type": "object"}, '{"any": {"thing": ["goes", -1.5e-3]}}'),
        ({"type": "object", "additionalProperties": {"type": "null"}, "properties": {"a": True}}, '{"a":0,"aa":null}'),
        ({"type": "array", "items": {"type": "string"}, "maxItems": 2}, "[]"),
        ({"type": "array", "prefixItems": [{"type": "null"}], "items": False}, "[null]"),
        ({"type": "number", "minimum": 0, "maximum": 1}, "0.25"),
        ({"type": "number", "exclusiveMinimum": -1}, "-0.125"),
        ({"type": "integer", "minimum": 18, "maximum": 120}, "99"),
        ({"const": {"a": [1, "é"]}}, '{"a": [1, "é"]}'),
        ({"enum": ["x", 1, None]}, "null"),
        ({"type": "string", "pattern": '^"\\\\\n$'}, '"\\"\\\\\\n"'),
        ({"allOf": [{"type": "null"}]}, "null"),
        ({"type": "string", "minimum": 3}, '"of no effect on a string"'),
        ({"oneOf": [{"type": "string"}, {"type": "integer"}]}, "3"),
        (
            {
                "$defs": {"n": {"anyOf": [{"type": "null"}, {"$ref": "#"}]}},
                "type": "array",
                "items": {"$ref": "#/$defs/n"},
            },
            "[null, [[], null]]",
        ),
    ],
)
def test_what_a_model_would_write_is_allowed(schema: Any, text: str) -> None:
    jsonschema.validate(json.loads(text), schema)
    assert accepts(network("json_schema", json.dumps(schema)), text)


@pytest.mark.parametrize(
    ("schema", "text"),
    [
        ({"type": "object", "properties": {"a": {}}}, '{"b": 1}'),
        ({"type": "object", "additionalProperties": {"type": "null"}, "properties": {"a": {"const": 1}}}, '{"a":null}'),
        ({"type": "object", "additionalProperties": True, "properties": {"a": {"const": 1}}}, '{"\\u0061":null}'),
        ({"type": "string"}, '"\n"'),
        ({"type": "string"}, '"\\ud800"'),
        ({"type": "integer", "minimum": 18, "maximum": 120}, "121"),
        ({"type": "integer"}, "007"),
        ({"type": "object"}, "{" + " " * 40 + "}"),
    ],
)
def test_what_is_not_allowed(schema: Any, text: str) -> None:
    assert not accepts(network("json_schema", json.dumps(schema)), text)


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ({"not": {}}, "'not'"),
        ({"type": "integer", "multipleOf": 3}, "'multipleOf'"),
        ({"type": "array", "uniqueItems": True}, "'uniqueItems'"),
        ({"type": "array", "contains": {}}, "'contains'"),
        ({"type": "object", "patternProperties": {"a": {}}}, "'patternProperties'"),
        ({"type": "object", "minProperties": 1}, "'minProperties'"),
        ({"type": "object", "dependentRequired": {"a": ["b"]}}, "'dependentRequired'"),
        ({"if": {}, "then": {}}, "'if'"),
        ({"allOf": [{"type": "string"}, {"type": "integer"}]}, "'allOf'"),
        ({"anyOf": [{"type": "string"}], "minLength": 3}, "'minLength' beside 'anyOf'"),
        ({"$ref": "#/$defs/a", "minLength": 3, "$defs": {"a": {}}}, "'minLength' beside '$ref'"),
        ({"enum": ["a"], "maxLength": 3}, "'maxLength' beside an enum"),
        ({"type": "string", "pattern": "a+", "maxLength": 3}, "'maxLength' beside 'pattern'"),
        ({"minimum": 3}, "say which type"),
        ({"items": {}, "properties": {}}, "say which type"),
        ({"oneOf": [{"type": "integer"}, {"type": "number"}]}, "both fit"),
        ({"oneOf": [{"type": "object"}, {"type": "object"}]}, "both fit"),
        ({"$ref": "https://example.com/x"}, "out of the schema"),
        ({"$ref": "other.json#/a"}, "out of the schema"),
        ({"$ref": "#/nowhere"}, "leads nowhere"),
        ({"$ref": "#"}, "no text"),
        ({"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"}, "no text"),
        ({"type": "array", "items": {"$ref": "#"}, "minItems": 1}, "no text"),
        (False, "false"),
        ({"type": "object", "properties": {"a": False}, "required": ["a"]}, "false"),
        ({"type": "strange"}, "'strange'"),
        ({"type": []}, "empty list"),
        ({"type": 5}, "'5'"),
        ({"enum": []}, "list of values"),
        ({"enum": ["a"], "type": "integer"}, "of its type"),
        ({"type": "integer", "minimum": 5, "maximum": 1}, "allows no number"),
        ({"type": "number", "exclusiveMinimum": 1, "exclusiveMaximum": 1}, "allows no number"),
        ({"type": "integer", "minimum": 10**30}, "1e15"),
        ({"type": "integer", "minimum": "5"}, "must be a number"),
        ({"type": "string", "minLength": 5, "maxLength": 1}, "allows no value"),
        ({"type": "string", "minLength": -1}, "whole number"),
        ({"type": "string", "minLength": 1.5}, "whole number"),
        ({"type": "string", "maxLength": 100_000}, "10,000"),
        ({"type": "array", "minItems": 3, "items": False}, "minItems"),
        ({"type": "array", "items": 3}, "where a schema"),
        ({"type": "array", "prefixItems": {}}, "prefixItems"),
        ({"type": "object", "required": ["a"]}, "'a'"),
        ({"type": "object", "properties": []}, "properties"),
        ({"anyOf": []}, "list of schemas"),
        ({"type": "string", "pattern": "(("}, "missing )"),
        ({"type": "string", "pattern": 3}, "pattern"),
        ({"type": "string", "format": "iri"}, "formats known"),
        (17, "where a schema"),
    ],
)
def test_what_cannot_be_enforced_is_refused(schema: Any, words: str) -> None:
    with pytest.raises(GrammarError, match=re.escape(words)):
        prepare("json_schema", json.dumps(schema))


def test_alternatives_that_begin_alike_are_told_apart_where_they_can_be() -> None:
    both = {
        "anyOf": [
            {"type": "object", "properties": {"a": {"type": "object", "properties": {name: {"type": "string"}}}}}
            for name in ("x", "y")
        ]
    }
    with pytest.raises(GrammarError, match="two ways"):
        prepare("json_schema", json.dumps(both))
    tagged = {
        "anyOf": [
            {"type": "object", "properties": {"t": {"const": name}, name: {"type": "object"}}, "required": ["t"]}
            for name in ("x", "y")
        ]
    }
    net = network("json_schema", json.dumps(tagged))
    assert accepts(net, '{"t": "y", "y": {}}')
    assert not accepts(net, '{"t": "y", "x": {}}')


def test_not_json() -> None:
    for text in ('{"type":"obj', "", "nan", '{"a":' * 30_000):
        with pytest.raises(GrammarError, match=r"not JSON|too deeply"):
            prepare("json_schema", text)


def test_two_hundred_optional_properties_stay_small() -> None:
    schema = {"type": "object", "properties": {f"k{n}": {"type": "boolean"} for n in range(60)}}
    assert len(prepare("json_schema", json.dumps(schema))) < 80_000
