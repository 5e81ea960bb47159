#!/usr/bin/env python3
"""Cuts a vendor's own description of its API to what the gateway answers, without prose and examples:
`api_descriptions.py openai openapi.json`, and LICENSE beside it.

    openai  openapi.json of github.com/openai/openai-openapi, MIT
    tgi     openapi.json in the folder docs of github.com/huggingface/text-generation-inference, Apache 2.0

What they write as in OpenAPI 3.0 (`nullable`) becomes the null of 3.1. Anthropic publishes no such file: tests make its
description of the types in its Python client.
"""

from __future__ import annotations

import argparse
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inflight_tools.common.layout import REPOSITORY

TARGET = REPOSITORY / "tests" / "contract" / "described"


@dataclass(frozen=True)
class Api:
    """What of a description is kept. `further`: what no path leads to, as the chunks of a stream."""

    title: str
    paths: tuple[tuple[str, str], ...]
    further: tuple[str, ...] = ()


APIS = {
    "openai": Api(
        "OpenAI API",
        (
            ("/chat/completions", "post"),
            ("/completions", "post"),
            ("/models", "get"),
            ("/models/{model}", "get"),
            ("/responses", "post"),
        ),
        ("#/components/schemas/CreateChatCompletionStreamResponse",),
    ),
    "tgi": Api(
        "Text Generation Inference",
        (
            ("/", "post"),
            ("/generate", "post"),
            ("/generate_stream", "post"),
            ("/chat_tokenize", "post"),
            ("/tokenize", "post"),
            ("/invocations", "post"),
            ("/info", "get"),
        ),
    ),
}
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


def cut(description: dict[str, Any], api: Api) -> dict[str, Any]:
    """The description of the API's paths and whatever they refer to."""
    left: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {"title": f"{api.title}, cut to what the gateway answers", "version": description["info"]["version"]},
        "paths": {},
        "components": {},
    }
    for path, method in api.paths:
        operation = without_prose(description["paths"][path][method])
        for response in operation["responses"].values():
            response.setdefault("description", "")  # which OpenAPI demands
        left["paths"].setdefault(path, {})[method] = operation
    known: set[str] = set()
    wanted = references(left["paths"]) | set(api.further)
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
    parser.add_argument("api", choices=APIS)
    parser.add_argument("source", type=Path)
    options = parser.parse_args()
    description = json.loads(options.source.read_text(encoding="utf-8"))
    text = json.dumps(cut(description, APIS[options.api]), indent=1, ensure_ascii=False)
    target = TARGET / options.api
    target.mkdir(parents=True, exist_ok=True)
    (target / "openapi.json").write_text(text + "\n", encoding="utf-8")
    shutil.copyfile(options.source.parent / "LICENSE", target / "LICENSE")
    print(f"wrote {target / 'openapi.json'}: {len(text)} bytes")


if __name__ == "__main__":
    main()
