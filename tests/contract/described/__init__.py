"""APIs as their vendors describe them: requests made of the description, answers held against it."""

from __future__ import annotations

import copy
import json
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jsonschema
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from referencing import Registry, Resource
from referencing.jsonschema import DRAFT202012

from tests.harness.gateway import Gateway

SCHEMAS = "#/components/schemas/"
HANGS_S = 20.0
# What a model of this vocabulary can read.
TEXT = {"type": "string", "minLength": 1, "maxLength": 40, "pattern": "^[ -~é🙂]+$"}


@dataclass(frozen=True)
class Operation:
    """A path on which the model answers. `honoured`: a schema of requests with the fields that the gateway honours
    alone. `whole`: the schema of an answer that is not streamed. `streamed`: raises AssertionError, or jsonschema's
    error, for a stream that is not as described. `share`: of all cases, with the whole description and the honoured.
    """

    honoured: Mapping[str, Any]
    whole: Mapping[str, Any]
    streamed: Callable[[str], None] | None
    share: tuple[float, float]
    always_streams: bool = False


class Api:
    """A vendor's description, and what of it the gateway honours."""

    def __init__(
        self, description: dict[str, Any], base: str, statuses: tuple[int, ...], operations: Mapping[str, Operation]
    ) -> None:
        """`base`: before its paths; `statuses`: of refusals, whose schema is ErrorResponse."""
        self.description, self.base, self.statuses, self.operations = description, base, statuses, operations
        resource = Resource(description, DRAFT202012)
        self._registry: Registry[Any] = Registry().with_resource("api", resource)

    def validate(self, said: Any, schema: Mapping[str, Any] | str) -> None:
        """Raise jsonschema's error; `schema`: one of the description's, by name, or one that refers to them."""
        found = reference(schema) if isinstance(schema, str) else schema
        if "$ref" in found:
            found = {"$ref": f"api{found['$ref']}"}
        elif "$ref" in found.get("items", {}):
            found = {**found, "items": {"$ref": f"api{found['items']['$ref']}"}}
        jsonschema.Draft202012Validator(found, registry=self._registry).validate(said)

    def check(self, path: str, body: Any, status: int, kind: str, text: str) -> None:
        """Raise AssertionError, or jsonschema's error, for an answer that the description does not have."""
        shown = f"{path} {status} {json.dumps(body)[:2000]} -> {text[:1000]}"
        assert status in (200, *self.statuses), shown
        if status != 200:
            self.validate(json.loads(text), "ErrorResponse")
            assert self.sentence(json.loads(text)), shown
            return
        operation = self.operations[path]
        if operation.always_streams or (isinstance(body, dict) and body.get("stream") and operation.streamed):
            assert kind.startswith("text/event-stream"), shown
            assert operation.streamed is not None
            operation.streamed(text)
            return
        assert kind == "application/json", shown
        self.validate(json.loads(text), operation.whole)

    @staticmethod
    def sentence(error: Any) -> str:
        """What an error says."""
        said = error["error"]
        return str(said if isinstance(said, str) else said["message"])

    def ask(self, gateway: Gateway, path: str, honoured: bool, cases: int, counted: Counter[Any]) -> None:
        """Make that many requests of one operation, and check what is answered."""
        description = self.description
        if honoured:
            description = copy.deepcopy(description)
            body = description["paths"][path]["post"]["requestBody"]["content"]["application/json"]
            body["schema"] = self.operations[path].honoured
        schema = schemathesis.openapi.from_dict(description)
        schema.config.update(base_url=gateway.url + self.base)

        @settings(
            max_examples=cases,
            deadline=None,
            database=None,
            derandomize=True,
            suppress_health_check=list(HealthCheck),
            phases=[Phase.generate],
        )
        @given(case=schema[path]["POST"].as_strategy())
        def one(case: schemathesis.Case) -> None:
            began = time.monotonic()
            response = case.call(timeout=HANGS_S)
            assert time.monotonic() - began < HANGS_S
            self.check(path, case.body, response.status_code, response.headers["content-type"][0], response.text)
            counted[path, honoured, response.status_code] += 1

        one()


def reference(name: str) -> dict[str, Any]:
    """A schema of the description, by its name."""
    return {"$ref": SCHEMAS + name}


def of(required: str, properties: Mapping[str, Any]) -> dict[str, Any]:
    """An object with these properties and no others; `required`: names, with blanks between."""
    return {
        "type": "object", "additionalProperties": False, "required": required.split(), "properties": dict(properties),
    }  # fmt: skip


def one_of(*values: Any) -> dict[str, Any]:
    """One of these schemas, or of these values."""
    return {"anyOf": [value if isinstance(value, dict) else {"const": value} for value in values]}


def listed(of_what: Mapping[str, Any], most: int, least: int = 1) -> dict[str, Any]:
    """A list of so many."""
    return {"type": "array", "items": dict(of_what), "minItems": least, "maxItems": most}


def number(least: float, most: float) -> dict[str, Any]:
    """A number within bounds."""
    return {"type": "number", "minimum": least, "maximum": most}


def whole(least: int, most: int) -> dict[str, Any]:
    """A whole number within bounds."""
    return {"type": "integer", "minimum": least, "maximum": most}


FLAG = {"type": "boolean"}
# Of a function: what templates and clients' parsers of calls have to bear.
PARAMETERS = of(
    "type properties",
    {
        "type": {"const": "object"},
        "properties": {
            "type": "object",
            "maxProperties": 2,
            "additionalProperties": {"enum": [{"type": "string"}, {}]},
        },
    },
)
NAME = {"type": "string", "pattern": "^[a-zA-Z0-9_-]{1,20}$"}


def events(text: str) -> list[tuple[str, Any]]:
    """The events of a stream: the name of each, and its data."""
    *blocks, rest = text.split("\n\n")
    assert rest == "", rest
    found = []
    for block in blocks:
        lines = dict(line.split(":", 1) for line in block.split("\n") if not line.startswith(":"))
        if lines:
            assert set(lines) <= {"event", "data"}, block
            data = lines["data"].strip()
            found.append((lines.get("event", "").strip(), data if data == "[DONE]" else json.loads(data)))
    return found
