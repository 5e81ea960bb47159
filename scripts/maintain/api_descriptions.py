#!/usr/bin/env python3
"""Cuts OpenAI's own description of its API (openapi.json of github.com/openai/openai-openapi, MIT) to what the gateway
answers, without prose and examples: `openai_description.py openapi.json`, and LICENSE beside it. It says OpenAPI
3.1 and writes `nullable` as in 3.0: that becomes the null of 3.1.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

from inflight_tools.common.layout import REPOSITORY

TARGET = REPOSITORY / "tests" / "contract" / "openai_api"
PATHS = (
    ("/chat/completions", "post"),
    ("/completions", "post"),
    ("/models", "get"),
    ("/models/{model}", "get"),
)
# What no path leads to: the chunks of a stream.
FURTHER = ("#/components/schemas/CreateChatCompletionStreamResponse",)
PROSE = frozenset(("description", "summary", "example", "examples", "title", "tags", "operationId", "externalDocs"))


def without_prose(value: Any, names: bool = False) -> Any:
    """The value without what only people read. `names`: its keys are names of properties, and stay."""
    if isinstance(value, list):
        return [without_prose(one) for one in value]
    if not isinstance(value, dict):
        return value
    if not names and value.get("nullable") is True:
        return {"anyOf": [without_prose({**value, "nullable": False}), {"type": "null"}]}
    return {
        key: without_prose(one, key in ("properties", "schemas", "responses", "parameters", "patternProperties"))
        for key, one in value.items()
        if names or not (key in PROSE or key == "nullable" or key.startswith("x-"))
    }


def found(description: dict[str, Any], reference: str) -> Any:
    """What a reference within the description means."""
    value: Any = description
    for key in reference.removeprefix("#/").split("/"):
        value = value[key]
    return value


def references(value: Any) -> set[str]:
    """Every reference in it."""
    if isinstance(value, dict):
        own = {value["$ref"]} if isinstance(value.get("$ref"), str) else set()
        return own.union(*map(references, value.values()))
    return set().union(*map(references, value)) if isinstance(value, list) else set()


def cut(description: dict[str, Any]) -> dict[str, Any]:
    """The description of `PATHS` and whatever they refer to."""
    left: dict[str, Any] = {
        "openapi": description["openapi"],
        "info": {"title": "OpenAI API, cut to what the gateway answers", "version": description["info"]["version"]},
        "paths": {},
        "components": {},
    }
    for path, method in PATHS:
        operation = without_prose(description["paths"][path][method])
        for response in operation["responses"].values():
            response.setdefault("description", "")  # which OpenAPI demands
        left["paths"].setdefault(path, {})[method] = operation
    known: set[str] = set()
    wanted = references(left["paths"]) | set(FURTHER)
    while wanted:
        reference = wanted.pop()
        known.add(reference)
        _, _, kind, name = reference.split("/")
        part = without_prose(found(description, reference))
        if kind == "responses":
            part.setdefault("description", "")
        left["components"].setdefault(kind, {})[name] = part
        wanted |= references(part) - known
    for kind, parts in left["components"].items():
        left["components"][kind] = dict(sorted(parts.items()))
    return left


def main() -> None:
    """Cut the file that is named."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", type=Path)
    source = parser.parse_args().source
    text = json.dumps(cut(json.loads(source.read_text(encoding="utf-8"))), indent=1, ensure_ascii=False)
    (TARGET / "openapi.json").write_text(text + "\n", encoding="utf-8")
    shutil.copyfile(source.parent / "LICENSE", TARGET / "LICENSE")
    print(f"wrote {TARGET / 'openapi.json'}: {len(text)} bytes")


if __name__ == "__main__":
    main()
