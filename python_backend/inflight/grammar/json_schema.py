"""JSON Schema → `nodes`. What cannot be enforced exactly is refused by its keyword, never ignored.

Every text that the grammar allows is valid under the schema (draft 2020-12); the reverse does not hold: properties come
in the schema's order, white space is bounded, numbers have a bounded length, patterns match the whole string, and other
properties appear only where `additionalProperties` says so.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from inflight.grammar import chars
from inflight.grammar import json_values as values
from inflight.grammar.nodes import Call, Chars, Grammar, GrammarError, Node, Repeat, alt, literal, maybe, seq
from inflight.grammar.plain import plain, with_null
from inflight.grammar.regex import parse_regex

MAX_DEPTH = 64
MAX_ITEMS = 10_000

_ANNOTATIONS = {
    "$anchor", "$comment", "$defs", "$id", "$schema", "default", "definitions", "deprecated", "description",
    "discriminator", "example", "examples", "readOnly", "title", "writeOnly",
}  # fmt: skip
_OF_TYPE: dict[str, frozenset[str]] = {
    "string": frozenset({"minLength", "maxLength", "pattern", "format"}),
    "integer": frozenset({"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"}),
    "number": frozenset({"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"}),
    "array": frozenset({"items", "prefixItems", "minItems", "maxItems"}),
    "object": frozenset({"properties", "required", "additionalProperties"}),
    "boolean": frozenset(),
    "null": frozenset(),
}
_REFUSED = {
    "additionalItems", "allOf", "contains", "dependencies", "dependentRequired", "dependentSchemas", "else", "if",
    "maxContains", "maxProperties", "minContains", "minProperties", "multipleOf", "not", "patternProperties",
    "propertyNames", "then", "unevaluatedItems", "unevaluatedProperties", "uniqueItems", "$dynamicRef", "$recursiveRef",
}  # fmt: skip
_OTHERS = {"type", "enum", "const", "anyOf", "oneOf", "$ref"}
_ASSERTIONS = frozenset().union(*_OF_TYPE.values()) | _REFUSED | _OTHERS
_TIME = r"([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9]"
_DATE = (
    r"[0-9]{3}[1-9]-"  # days that every year has
    r"((0[13578]|1[02])-(0[1-9]|[12][0-9]|3[01])|(0[469]|11)-(0[1-9]|[12][0-9]|30)|02-(0[1-9]|1[0-9]|2[0-8]))"
)
_BYTE = r"(25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])"
_LABEL = r"[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?"
_FORMATS = {
    "date": _DATE,
    "time": rf"{_TIME}(\.[0-9]{{1,6}})?(Z|[+-]([01][0-9]|2[0-3]):[0-5][0-9])",
    "date-time": rf"{_DATE}T{_TIME}(\.[0-9]{{1,6}})?(Z|[+-]([01][0-9]|2[0-3]):[0-5][0-9])",
    "email": rf"[A-Za-z0-9_%+-]+(\.[A-Za-z0-9_%+-]+)*@{_LABEL}(\.{_LABEL})+",
    "hostname": rf"{_LABEL}(\.{_LABEL})*",
    "ipv4": rf"{_BYTE}(\.{_BYTE}){{3}}",
    "uuid": r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}",
    "uri": r"[a-z][a-z0-9+.-]*://[A-Za-z0-9._~-]+(:[0-9]{1,5})?(/[A-Za-z0-9._~!$&'()*+,;=:@%-]*)*(\?[A-Za-z0-9._~&=-]*)?",
}


def keywords_of(kind: str) -> frozenset[str]:
    """The keywords that say something of values of a type and are kept here; of `any`: all that say something; of
    `typed`: those that say something of some types only.
    """
    if kind == "typed":
        return frozenset().union(*_OF_TYPE.values())
    return _ASSERTIONS if kind == "any" else _OF_TYPE.get(kind, frozenset())


def known_format(name: object) -> bool:
    """Whether the `format` of a string can be kept."""
    return isinstance(name, str) and name in _FORMATS


def schema_grammar(schema: object, share: bool = True) -> Grammar:
    """The grammar of a schema (parsed JSON: an object or a boolean). Raises `GrammarError`.

    `share` lets all free strings be one rule; without it they are copied to where they are used, so that alternatives
    which begin with a string can be told apart.
    """
    converter = Converter(schema, share)
    root = converter.convert(schema, True, 0)
    return Grammar({**values.RULES, **converter.rules, "root": root}, frozenset(converter.opaque))


def unquoted(schema: Mapping[str, Any]) -> Node | None:
    """A text of a schema as it stands, without quotes and escapes; None where any text fits. Texts of a length hold no
    `<`, so that a tag behind them is found. Raises `GrammarError`.
    """
    pattern = _pattern(schema)
    if pattern is not None:
        return pattern
    least, most = _count(schema, "minLength", 0), _count(schema, "maxLength", None)
    if not least and most is None:
        return None
    _check_counts(least, most, "Length")
    return Repeat(Chars(chars.difference(chars.ALL, chars.of("<"))), least or 0, most)


def _pattern(schema: Mapping[str, Any]) -> Node | None:
    """What `pattern` or `format` say. Raises `GrammarError`."""
    if "pattern" not in schema and "format" not in schema:
        return None
    keyword = "pattern" if "pattern" in schema else "format"
    beside = sorted({"pattern", "format", "minLength", "maxLength"} & set(schema) - {keyword})
    if beside:
        raise GrammarError(f"has {beside[0]!r} beside {keyword!r} in one schema, which cannot be enforced here")
    text = schema[keyword]
    if not isinstance(text, str) or (keyword == "format" and text not in _FORMATS):
        raise GrammarError(f"has the {keyword} {str(text)[:40]!r}; the formats known are {', '.join(_FORMATS)}")
    return parse_regex(_FORMATS[text] if keyword == "format" else text)


class Converter:
    """Schemas of one document → `nodes`. References lead into the document. `python`: values are written as literals of
    that language, with the rules `json_values.PYTHON_RULES`.
    """

    def __init__(self, document: object, share: bool, python: bool = False) -> None:
        self._document = document
        self._share = share
        self._python = python
        self.rules: dict[str, Node] = {}
        self.opaque = {"white", "value", "object"} | ({"string", "integer", "number"} if share else set())

    def convert(self, schema: object, copy: bool, depth: int) -> Node:
        """`copy` asks for the nodes themselves instead of a call, so that alternatives can be compared."""
        if depth > MAX_DEPTH:
            raise GrammarError(f"is nested more than {MAX_DEPTH} levels deep")
        if isinstance(schema, bool):
            if not schema:
                raise GrammarError("has the schema false, which no value fits")
            return values.VALUE
        if not isinstance(schema, Mapping):
            raise GrammarError("has something where a schema (an object or a boolean) belongs")
        schema = with_null(plain(schema))
        refused = sorted(_REFUSED & set(schema))
        if "allOf" in refused and isinstance(schema["allOf"], list) and len(schema["allOf"]) == 1:
            self._alone(schema, "allOf")
            return self.convert(schema["allOf"][0], copy, depth + 1)
        if refused:
            raise GrammarError(f"uses the JSON Schema keyword {refused[0]!r}, which cannot be enforced here")
        for keyword in ("$ref", "anyOf", "oneOf"):
            if keyword in schema:
                self._alone(schema, keyword)
                if keyword == "$ref":
                    return self._reference(schema["$ref"], copy)
                return self._any_of(schema, keyword, depth)
        if "const" in schema or "enum" in schema:
            return self._constants(schema)
        return self._typed(schema, copy, depth)

    @staticmethod
    def _alone(schema: Mapping[str, Any], keyword: str) -> None:
        beside = sorted(_ASSERTIONS & set(schema) - {keyword})
        if beside:
            raise GrammarError(f"has {beside[0]!r} beside {keyword!r} in one schema, which cannot be enforced here")

    def _reference(self, pointer: object, copy: bool) -> Node:
        if not isinstance(pointer, str) or not (pointer == "#" or pointer.startswith("#/")):
            raise GrammarError("has a $ref that leads out of the schema; only local ones (#/…) are allowed")
        name = ("copy" if copy else "ref") + ":" + pointer
        if name not in self.rules:
            self.rules[name] = values.VALUE  # so that a schema that contains itself ends here
            if not copy:
                self.opaque.add(name)
            self.rules[name] = self.convert(self._find(pointer), True, 1)
        return Call(name)

    def _find(self, pointer: str) -> object:
        here: object = self._document
        for part in pointer.split("/")[1:]:
            key = part.replace("~1", "/").replace("~0", "~")
            if isinstance(here, Mapping) and key in here:
                here = here[key]
            elif isinstance(here, list) and key.isdigit() and int(key) < len(here):
                here = here[int(key)]
            else:
                raise GrammarError(f"has the $ref {pointer[:100]!r}, which leads nowhere")
        return here

    def _any_of(self, schema: Mapping[str, Any], keyword: str, depth: int) -> Node:
        options = schema[keyword]
        if not isinstance(options, list) or not options:
            raise GrammarError(f"has an {keyword} that is not a list of schemas")
        if keyword == "oneOf":
            _check_one_of([self._resolved(option) for option in options])
        return alt(self.convert(option, True, depth + 1) for option in options)

    def _resolved(self, schema: object) -> object:
        for _ in range(MAX_DEPTH):
            if not (isinstance(schema, Mapping) and isinstance(schema.get("$ref"), str)):
                return schema
            schema = self._find(schema["$ref"])
        raise GrammarError("has a $ref that only leads to itself")

    def _constants(self, schema: Mapping[str, Any]) -> Node:
        options = schema.get("enum", [schema.get("const")])
        if not isinstance(options, list) or not options:
            raise GrammarError("has an enum that is not a list of values")
        if "const" in schema and "enum" in schema:
            options = [value for value in options if _same(value, schema["const"])]
        if "type" in schema:
            options = [value for value in options if _type_of(value) & set(_types(schema))]
        beside = sorted(_ASSERTIONS & set(schema) - {"type", "const", "enum"})
        if beside:
            raise GrammarError(f"has {beside[0]!r} beside an enum or a const, which cannot be enforced here")
        if not options:
            raise GrammarError("has an enum of which no value is of its type")
        return alt(values.constant(value, self._python) for value in options)

    def _typed(self, schema: Mapping[str, Any], copy: bool, depth: int) -> Node:
        types = _types(schema)
        enforced = frozenset().union(*(_OF_TYPE[each] for each in types))
        unknown = sorted((_ASSERTIONS & set(schema)) - enforced - {"type"})
        if unknown and "type" not in schema:
            raise GrammarError(f"has {unknown[0]!r} in a schema without a type; say which type it is for")
        if "type" not in schema and not (set(schema) & enforced):
            return values.VALUE
        if "integer" in types and "number" in types:
            types.remove("integer")
        return alt(self._of_type(each, schema, copy and len(types) == 1, depth) for each in types)

    def _of_type(self, kind: str, schema: Mapping[str, Any], copy: bool, depth: int) -> Node:
        if kind == "string":
            return self._string(schema)
        if kind in ("integer", "number"):
            return _number(schema, kind) if _OF_TYPE[kind] & set(schema) else Call(kind)
        if kind == "boolean":
            return alt([values.constant(True, self._python), values.constant(False, self._python)])
        if kind == "null":
            return values.constant(None, self._python)
        if copy:
            return self._array(schema, depth) if kind == "array" else self._object(schema, depth)
        own = {key: schema[key] for key in sorted(_OF_TYPE[kind] & set(schema))}
        name = kind + ":" + json.dumps(own)
        if name not in self.rules:
            self.opaque.add(name)
            self.rules[name] = values.VALUE
            self.rules[name] = self._array(schema, depth) if kind == "array" else self._object(schema, depth)
        return Call(name)

    def _string(self, schema: Mapping[str, Any]) -> Node:
        pattern = _pattern(schema)
        if pattern is not None:
            return values.string_matching(pattern)
        least, most = _count(schema, "minLength", 0), _count(schema, "maxLength", None)
        if least == 0 and most is None:
            return values.STRING
        _check_counts(least, most, "Length")
        name = f"string:{least}:{most}"
        self.rules[name] = values.string_of_length(least or 0, most)
        if self._share:
            self.opaque.add(name)
        return Call(name)

    def _array(self, schema: Mapping[str, Any], depth: int) -> Node:
        first = schema.get("prefixItems", [])
        if not isinstance(first, list):
            raise GrammarError("has prefixItems that are not a list of schemas")
        least, most = _count(schema, "minItems", 0) or 0, _count(schema, "maxItems", None)
        _check_counts(least, most, "Items")
        fixed = [self.convert(item, False, depth + 1) for item in first][:most]
        more: Node | None = None
        if schema.get("items", True) is not False:
            more = self.convert(schema.get("items", True), False, depth + 1)
        elif least > len(fixed):
            raise GrammarError("has minItems that its items do not allow")
        comma = seq(literal(","), values.WHITE)
        tail: Node = seq()
        if more is not None:
            done = len(fixed)
            tail = Repeat(seq(comma, more), max(least - done, 0), None if most is None else most - done)
        for place in reversed(range(1, len(fixed))):
            tail = seq(comma, fixed[place], tail)
            tail = tail if place < least else maybe(tail)
        if fixed:
            head: Node = seq(fixed[0], tail)
        elif more is not None and most != 0:
            head = seq(more, Repeat(seq(comma, more), max(least - 1, 0), None if most is None else most - 1))
        else:
            return seq(literal("["), values.WHITE, literal("]"))
        inside = seq(head, values.WHITE)
        return seq(literal("["), values.WHITE, inside if least else maybe(inside), literal("]"))

    def _object(self, schema: Mapping[str, Any], depth: int) -> Node:
        properties = schema.get("properties", {})
        required = schema.get("required", [])
        if not isinstance(properties, Mapping) or not isinstance(required, list):
            raise GrammarError("has properties that are not an object, or required that is not a list")
        extra = schema.get("additionalProperties", not properties and not required)
        for name in required:
            if name not in properties:
                raise GrammarError(f"requires the property {str(name)[:60]!r} without saying what it is in properties")
        pairs = [
            (
                seq(values.constant(name), literal(":"), values.WHITE, self.convert(inner, False, depth + 1)),
                name in required,
            )
            for name, inner in properties.items()
        ]
        comma = seq(literal(","), values.WHITE)
        tail: Node = seq()
        head: Node | None = None  # what an object that is not empty begins with
        if extra is not False:
            key = values.other_string(frozenset(properties)) if properties else values.STRING
            pair = seq(key, literal(":"), values.WHITE, self.convert(extra, False, depth + 1))
            tail = Repeat(seq(comma, pair), 0, None)
            head = seq(pair, tail)
        for pair, needed in reversed(pairs):
            with_it = seq(pair, tail)
            head = with_it if needed or head is None else alt([with_it, head])
            tail = seq(comma, with_it) if needed else alt([seq(comma, with_it), tail])
        inside = seq() if head is None else seq(head, values.WHITE)
        return seq(literal("{"), values.WHITE, inside if required else maybe(inside), literal("}"))


def _types(schema: Mapping[str, Any]) -> list[str]:
    if "type" not in schema:
        found = [kind for kind in ("object", "array", "string") if _OF_TYPE[kind] & set(schema)]
        if len(found) > 1 or (not found and _OF_TYPE["number"] & set(schema)):
            raise GrammarError("has keywords in a schema without a type; say which type they are for")
        return found or list(_OF_TYPE)
    types = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
    for each in types:
        if not isinstance(each, str) or each not in _OF_TYPE:
            raise GrammarError(f"has the type {str(each)[:40]!r}; it must be one of {', '.join(_OF_TYPE)}")
    if not types:
        raise GrammarError("has an empty list of types")
    return list(dict.fromkeys(types))


def _type_of(value: object) -> set[str]:
    if value is None:
        return {"null"}
    if isinstance(value, bool):
        return {"boolean"}
    if isinstance(value, (int, float)):
        return {"number", "integer"} if float(value).is_integer() else {"number"}
    if isinstance(value, str):
        return {"string"}
    return {"array"} if isinstance(value, list) else {"object"}


def _same(left: object, right: object) -> bool:
    return json.dumps(left, sort_keys=True) == json.dumps(right, sort_keys=True)


def _check_one_of(options: list[object]) -> None:
    """Exactly one of them may fit: they must differ in type, in value, or in a required constant."""
    for place, option in enumerate(options):
        for other in options[:place]:
            if not apart(option, other):
                raise GrammarError("has a oneOf of which two schemas may both fit; use anyOf, or a const that differs")


def apart(left: object, right: object) -> bool:
    """Whether no value fits both schemas, as far as can be told at once."""
    if not isinstance(left, Mapping) or not isinstance(right, Mapping):
        return False
    one, two = _constants_of(left), _constants_of(right)
    if one is not None and two is not None:
        return not any(_same(a, b) for a in one for b in two)
    if "type" in left and "type" in right:
        first, second = set(_types(left)), set(_types(right))
        if not first & second and not {"integer", "number"} <= first | second:
            return True
    if _forbids(left, right) or _forbids(right, left):
        return True
    shared = set(left.get("required", [])) & set(right.get("required", []))
    here, there = left.get("properties", {}), right.get("properties", {})
    return any(name in here and name in there and _apart_constants(here[name], there[name]) for name in shared)


def _forbids(left: Mapping[str, Any], right: Mapping[str, Any]) -> bool:
    """Whether `left` takes no property that `right` requires; both are objects."""
    if left.get("type") != "object" or right.get("type") != "object" or left.get("additionalProperties") is not False:
        return False
    return any(name not in left.get("properties", {}) for name in right.get("required", []))


def _apart_constants(left: object, right: object) -> bool:
    one = _constants_of(left) if isinstance(left, Mapping) else None
    two = _constants_of(right) if isinstance(right, Mapping) else None
    return one is not None and two is not None and not any(_same(a, b) for a in one for b in two)


def _constants_of(schema: Mapping[str, Any]) -> list[object] | None:
    if "const" in schema:
        return [schema["const"]]
    return schema["enum"] if isinstance(schema.get("enum"), list) else None


def _count(schema: Mapping[str, Any], name: str, otherwise: int | None) -> int | None:
    value = schema.get(name, otherwise)
    if value is None or (isinstance(value, int) and not isinstance(value, bool) and value >= 0):
        return value
    raise GrammarError(f"has {name} {str(value)[:40]}; it must be a whole number from 0")


def _check_counts(least: int | None, most: int | None, name: str) -> None:
    if least is not None and most is not None and least > most:
        raise GrammarError(f"allows no value: min{name} ({least}) is more than max{name} ({most})")
    if max(least or 0, most or 0) > MAX_ITEMS:
        raise GrammarError(f"has a min{name} or max{name} above {MAX_ITEMS:,}")


def _number(schema: Mapping[str, Any], kind: str) -> Node:
    names = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")
    bounds: list[float | int | None] = []
    for name in names:
        value = schema.get(name)
        if value is not None and (isinstance(value, bool) or not isinstance(value, (int, float)) or abs(value) > 1e15):
            raise GrammarError(f"has {name} {str(value)[:40]}; it must be a number between -1e15 and 1e15")
        bounds.append(value)
    if all(bound is None for bound in bounds):
        return values.INTEGER if kind == "integer" else values.NUMBER
    if kind == "number":
        return values.number_between(*bounds)
    return values.whole_between(*bounds)
