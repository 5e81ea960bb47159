"""JSON Schemas as tools send them, made such that every keyword left can be kept.

Who does not ask for `strict` is promised nothing about a tool's arguments, so a keyword that no grammar here can keep
is left out instead of refusing the request. Every value that fits the schema still fits the loosened one, except where
a part of it could not be kept apart; each step is noted.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from inflight.grammar.json_schema import MAX_ITEMS, apart, keywords_of, known_format
from inflight.grammar.nodes import GrammarError
from inflight.grammar.plain import plain
from inflight.grammar.regex import parse_regex

MAX_NOTES: Final = 32
MAX_LENGTH: Final = 80  # of a string whose length is kept: each further character costs the engine
_DEPTH: Final = 64
_HUGE: Final = 1e15
_TYPES: Final = {  # Python's names; capitals are Gemini's
    "dict": "object", "list": "array", "tuple": "array", "str": "string", "int": "integer", "float": "number",
    "bool": "boolean", "none": "null",
}  # fmt: skip
_NUMBERS: Final = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")


def loosen(schema: object) -> tuple[object, list[str]]:
    """(the schema, what was left out: `path: keyword`, at most `MAX_NOTES` of them). `schema` is parsed JSON."""
    loosener = _Loosener(schema)
    return loosener.schema(schema, "", 0), loosener.notes[:MAX_NOTES]


class _Loosener:
    def __init__(self, document: object) -> None:
        self._document = document
        self.notes: list[str] = []

    def _note(self, path: str, keyword: str) -> None:
        if len(self.notes) < MAX_NOTES:
            self.notes.append(f"{path or '/'}: {keyword}")

    def schema(self, schema: object, path: str, depth: int) -> object:
        if isinstance(schema, bool) or not isinstance(schema, Mapping):
            if schema is True or schema is False:
                return True
            self._note(path, "no schema")
            return True
        if depth > _DEPTH:
            self._note(path, "depth")
            return True
        found = plain(schema)
        for name in ("$defs", "definitions"):
            if isinstance(found.get(name), Mapping):
                found[name] = {
                    key: self.schema(value, f"{path}/{name}/{key}", depth + 1) for key, value in found[name].items()
                }
        nullable = found.pop("nullable", False) is True
        loosened = self._core(found, path, depth)
        if nullable and isinstance(loosened, dict):
            return {"anyOf": [loosened, {"type": "null"}]} if not _nulls(loosened) else loosened
        return loosened

    def _core(self, found: dict[str, Any], path: str, depth: int) -> object:
        kept: dict[str, Any] = {key: found[key] for key in ("$defs", "definitions") if key in found}
        if "$ref" in found:
            reference = found["$ref"]
            self._drop(found, {"$ref"}, path)
            if not isinstance(reference, str) or not (reference == "#" or reference.startswith("#/")):
                self._note(path, "$ref out of the schema")
                return True
            return {**kept, "$ref": reference}
        if isinstance(found.get("allOf"), list):
            return self._all_of(found, kept, path, depth)
        for keyword in ("anyOf", "oneOf"):
            if isinstance(found.get(keyword), list) and found[keyword]:
                return self._any_of(found, kept, keyword, path, depth)
        if "const" in found or "enum" in found:
            return self._constants(found, kept, path)
        return self._typed(found, kept, path, depth)

    def _any_of(self, found: dict[str, Any], kept: dict[str, Any], keyword: str, path: str, depth: int) -> object:
        """Properties beside the alternatives belong to each of them."""
        given = [self._resolved(option) for option in found.pop(keyword)]
        if keyword == "oneOf" and not all(apart(one, two) for place, one in enumerate(given) for two in given[:place]):
            self._note(path, "oneOf")
        if "properties" in found:
            base = self.schema({key: value for key, value in found.items() if key not in kept}, path, depth + 1)
            given = [{"allOf": [base, option]} for option in given]
        else:
            self._drop(found, {"type"}, path)
        options = [self.schema(option, f"{path}/{keyword}/{place}", depth + 1) for place, option in enumerate(given)]
        return True if True in options else {**kept, "anyOf": options}

    def _all_of(self, found: dict[str, Any], kept: dict[str, Any], path: str, depth: int) -> object:
        """Objects are put together; of anything else the first is kept."""
        parts = [self._resolved(part) for part in found.pop("allOf")]
        parts.append({key: value for key, value in found.items() if key not in kept})
        merged: dict[str, Any] = {}
        for part in parts:
            if not isinstance(part, Mapping):
                continue
            for key, value in part.items():
                if key == "properties" and isinstance(value, Mapping):
                    merged.setdefault("properties", {})
                    merged["properties"] = {**merged["properties"], **value}
                elif key == "required" and isinstance(value, list):
                    merged["required"] = list(dict.fromkeys([*merged.get("required", []), *value]))
                elif key not in merged:
                    merged[key] = value
                elif merged[key] != value and key in keywords_of("any"):
                    self._note(path, f"allOf/{key}")
        loosened = self.schema(merged, path, depth + 1)
        return {**kept, **loosened} if isinstance(loosened, dict) else loosened

    def _resolved(self, schema: object) -> object:
        for _ in range(_DEPTH):
            if not (isinstance(schema, Mapping) and isinstance(schema.get("$ref"), str)):
                return schema
            here: object = self._document
            for part in schema["$ref"].split("/")[1:]:
                here = here.get(part.replace("~1", "/").replace("~0", "~")) if isinstance(here, Mapping) else None
            schema = here
        return None

    def _constants(self, found: dict[str, Any], kept: dict[str, Any], path: str) -> object:
        options = [found["const"]] if "const" in found else found["enum"]
        self._drop(found, {"enum", "const", "type"}, path)
        if not isinstance(options, list) or not options:
            self._note(path, "enum")
            return True
        return {**kept, "enum": options}

    def _typed(self, found: dict[str, Any], kept: dict[str, Any], path: str, depth: int) -> object:
        types = self._types(found, path)
        patterns = found.get("patternProperties")
        if isinstance(patterns, Mapping) and found.get("additionalProperties") is False:
            self._note(path, "additionalProperties")
            found["additionalProperties"] = next(iter(patterns.values())) if len(patterns) == 1 else True
        if not types:
            self._drop(found, set(), path)
            return True
        allowed = frozenset().union(*(keywords_of(each) for each in types))
        elsewhere = keywords_of("typed") - allowed  # says nothing of these types
        self._drop(found, set(allowed) | {"type"} | elsewhere, path)
        loosened: dict[str, Any] = {key: found[key] for key in sorted(allowed & set(found))}
        if "string" in types:
            self._string(loosened, path)
        self._numbers(loosened, path)
        if "array" in types:
            self._array(loosened, found, path, depth)
        if "object" in types:
            self._object(loosened, path, depth)
        return {**kept, "type": types[0] if len(types) == 1 else types, **loosened}

    def _types(self, found: dict[str, Any], path: str) -> list[str]:
        """The types that it may have; none: any value."""
        if "type" not in found:
            guesses = [kind for kind in ("object", "array", "string", "number") if keywords_of(kind) & set(found)]
            return guesses[:1]
        given = found["type"] if isinstance(found["type"], list) else [found["type"]]
        names = dict.fromkeys(_TYPES.get(str(each).lower(), str(each).lower()) for each in given)
        known = [each for each in names if _is_type(each)]
        if len(known) < len(names):
            self._note(path, "type")
            return []
        return known

    def _string(self, loosened: dict[str, Any], path: str) -> None:
        pattern = loosened.get("pattern")
        if "pattern" in loosened and not _is_pattern(pattern):
            self._leave(loosened, "pattern", path)
        if "format" in loosened and not known_format(loosened["format"]):
            self._leave(loosened, "format", path)
        if "pattern" in loosened and "format" in loosened:
            self._leave(loosened, "format", path)
        exact = "pattern" in loosened or "format" in loosened
        for keyword in ("minLength", "maxLength"):
            value = loosened.get(keyword, 0)
            if keyword in loosened and (exact or not _is_count(value) or value > MAX_LENGTH):
                self._leave(loosened, keyword, path)
        if loosened.get("minLength", 0) > loosened.get("maxLength", MAX_LENGTH):
            self._leave(loosened, "maxLength", path)

    def _numbers(self, loosened: dict[str, Any], path: str) -> None:
        for keyword in _NUMBERS:
            value = loosened.get(keyword, 0)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or abs(value) > _HUGE:
                self._leave(loosened, keyword, path)
        least = max((loosened[key] for key in ("minimum", "exclusiveMinimum") if key in loosened), default=None)
        most = min((loosened[key] for key in ("maximum", "exclusiveMaximum") if key in loosened), default=None)
        if least is not None and most is not None and least >= most:
            for keyword in _NUMBERS:
                if keyword in loosened:
                    self._leave(loosened, keyword, path)

    def _array(self, loosened: dict[str, Any], found: Mapping[str, Any], path: str, depth: int) -> None:
        if "items" in loosened:
            loosened["items"] = self.schema(loosened["items"], f"{path}/items", depth + 1)
        if not isinstance(loosened.get("prefixItems", []), list):
            self._leave(loosened, "prefixItems", path)
        if "prefixItems" in loosened:
            loosened["prefixItems"] = [
                self.schema(item, f"{path}/prefixItems/{place}", depth + 1)
                for place, item in enumerate(loosened["prefixItems"])
            ]
        least, most = loosened.get("minItems", 0), loosened.get("maxItems", MAX_ITEMS)
        if not (_is_count(least) and _is_count(most)) or max(least, most) > MAX_ITEMS or least > most:
            for keyword in ("minItems", "maxItems"):
                if keyword in loosened:
                    self._leave(loosened, keyword, path)

    def _object(self, loosened: dict[str, Any], path: str, depth: int) -> None:
        properties = loosened.get("properties", {})
        if not isinstance(properties, Mapping):
            self._leave(loosened, "properties", path)
            properties = {}
        fitted = {
            name: self.schema(inner, f"{path}/properties/{name}", depth + 1)
            for name, inner in properties.items()
            if inner is not False
        }
        required = loosened.get("required", [])
        if not isinstance(required, list) or not all(isinstance(name, str) for name in required):
            if "required" in loosened:
                self._leave(loosened, "required", path)
            required = []
        for name in required:
            fitted.setdefault(name, True)
        if fitted:
            loosened["properties"] = fitted
        extra = loosened.get("additionalProperties")
        if isinstance(extra, Mapping):
            loosened["additionalProperties"] = self.schema(extra, f"{path}/additionalProperties", depth + 1)
        elif "additionalProperties" in loosened and not isinstance(extra, bool):
            self._leave(loosened, "additionalProperties", path)

    def _leave(self, loosened: dict[str, Any], keyword: str, path: str) -> None:
        if keyword in loosened:
            self._note(path, keyword)
            del loosened[keyword]

    def _drop(self, found: dict[str, Any], keep: set[str], path: str) -> None:
        """Note the assertions beside those that are kept, and leave them out."""
        for keyword in sorted(keywords_of("any") & set(found) - keep):
            self._note(path, keyword)
            del found[keyword]


def _nulls(schema: Mapping[str, Any]) -> bool:
    kind = schema.get("type")
    return kind == "null" or (isinstance(kind, list) and "null" in kind) or None in schema.get("enum", [])


def _is_type(kind: str) -> bool:
    return kind in ("string", "integer", "number", "array", "object", "boolean", "null")


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_pattern(pattern: object) -> bool:
    try:
        return isinstance(pattern, str) and bool(parse_regex(pattern) or True)
    except GrammarError:
        return False
