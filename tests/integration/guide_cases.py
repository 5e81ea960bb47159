"""Schemas that a client may send, and guides that are sent to do harm."""

from __future__ import annotations

import json
from typing import Any

SCHEMAS: list[Any] = [
    {
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 20},
            "age": {"type": "integer", "minimum": 0, "maximum": 120},
            "married": {"type": "boolean"},
        },
        "required": ["name", "age", "married"],
    },
    {
        "type": "array",
        "items": {"enum": ["red", "green", 7, None, {"a": [1, "é"]}]},
        "minItems": 2,
        "maxItems": 4,
    },
    {
        "$defs": {
            "point": {
                "type": "object",
                "properties": {"x": {"type": "number", "minimum": -1, "maximum": 1}},
                "required": ["x"],
            }
        },
        "type": "object",
        "properties": {"from": {"$ref": "#/$defs/point"}, "to": {"$ref": "#/$defs/point"}},
        "required": ["from", "to"],
    },
    {
        "oneOf": [
            {
                "type": "object",
                "properties": {"kind": {"const": "circle"}, "r": {"type": "integer", "minimum": 1, "maximum": 99}},
                "required": ["kind", "r"],
            },
            {
                "type": "object",
                "properties": {"kind": {"const": "square"}, "side": {"type": "integer", "minimum": 1, "maximum": 99}},
                "required": ["kind", "side"],
            },
        ]
    },
    {"type": "string", "pattern": '^[A-Z]{2}-"[0-9]{2}"\\\\$'},
    {
        "type": "object",
        "properties": {"day": {"type": "string", "format": "date"}, "id": {"type": "string", "format": "uuid"}},
        "required": ["day", "id"],
    },
    {"type": ["integer", "null"], "exclusiveMinimum": -5, "exclusiveMaximum": 5},
]


def nested(depth: int) -> str:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(depth):
        schema = {"type": "object", "properties": {"a": schema}, "required": ["a"]}
    return json.dumps(schema)


def _doubling(last: str) -> str:
    return "\n".join(["root ::= r0", *(f"r{i} ::= r{i + 1} r{i + 1}" for i in range(30)), f"r30 ::= {last}"])


HOSTILE: list[tuple[str, str]] = [
    ("regex", "(((("),
    ("regex", "(" * 20_000 + "a" + ")" * 20_000),
    ("regex", "(x{1,200}y{1,200}){1,20}"),
    ("regex", "(a{1,50}){1,50}"),
    ("regex", "(.{1,30}){1,30}"),
    ("regex", "([a-z]+[a-z]+)+[0-9]"),
    ("regex", ".{0,60}|.{0,61}"),
    ("regex", ".{0,5000}x"),
    ("regex", "(.*a){20}"),
    ("regex", ".*(a|b){1,15}x"),
    ("regex", "[ab]*a[ab]{18}"),
    ("regex", "a{1,100000}"),
    ("regex", "a{99999999999}"),
    ("regex", "a" * 65_000),
    ("regex", "".join(f"(a{i}|b)?" for i in range(4_000))),
    ("regex", "(?=a)b"),
    ("regex", r"(a)\1"),
    ("regex", "[^\\x01-\\U0010FFFF]"),
    ("regex", "\0"),
    ("regex", ""),
    ("ebnf_grammar", ""),
    ("ebnf_grammar", 'root ::= ""'),
    ("ebnf_grammar", "root ::= root"),
    ("ebnf_grammar", 'root ::= "a" dead\ndead ::= dead "x"'),
    ("ebnf_grammar", "root ::= foo"),
    ("ebnf_grammar", 'root ::= root "a" | "b"'),
    ("ebnf_grammar", 'root ::= root root | "a"'),
    ("ebnf_grammar", 'root ::= s\ns ::= "a" s | s "a" | "a"'),
    ("ebnf_grammar", 'root ::= s\ns ::= s s | s s s | "a" | ""'),
    ("ebnf_grammar", 'root ::= ("a"{1,1000}){1,1000}'),
    ("ebnf_grammar", 'root ::= "a"{1,100000}'),
    ("ebnf_grammar", 'root ::= "\\ud800"'),
    ("ebnf_grammar", 'root ::= "\\x00"'),
    ("ebnf_grammar", "root ::= " + "(" * 5_000),
    ("ebnf_grammar", _doubling('"a"')),
    ("ebnf_grammar", _doubling('"a" | ""')),
    ("ebnf_grammar", "\n".join(f"r{i} ::= r{i + 1} | [a-z] r{i}" for i in range(1_500))),
    ("json_schema", nested(300)),
    ("json_schema", '{"a":' * 9_000),
    ("json_schema", json.dumps({"enum": [f"v{i}" for i in range(6_000)]})),
    ("json_schema", json.dumps({"enum": list(range(10_000))})),
    ("json_schema", json.dumps({"type": "integer", "minimum": 5, "maximum": 1})),
    ("json_schema", json.dumps({"type": "string", "maxLength": 10_000})),
    ("json_schema", json.dumps({"type": "array", "minItems": 1_000_000})),
    ("json_schema", json.dumps({"properties": {f"k{i}": {"type": "integer"} for i in range(1_500)}})),
    ("json_schema", json.dumps({"anyOf": [{"type": "string", "minLength": i} for i in range(100)]})),
    ("json_schema", json.dumps({"type": "string", "pattern": "^(a|aa)+([a-z]+)*$"})),
    ("json_schema", json.dumps({"$ref": "#"})),
    (
        "json_schema",
        json.dumps({"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"}),
    ),
    ("json_schema", json.dumps({"$ref": "file:///etc/passwd"})),
    ("json_schema", '{"const": "\\ud800"}'),
    ("json_schema", "false"),
    ("json_schema", "17"),
    ("json_schema", "[" * 30_000),
    ("choice", "[]"),
    ("choice", '[""]'),
    ("choice", json.dumps([str(i) for i in range(1_001)])),
    ("choice", json.dumps(["x" * 60_000])),
    ("choice", '["\\ud800"]'),
    ("choice", '{"a": 1}'),
]
