#!/usr/bin/env python3
"""Renders a collection of chat templates with their conversations and compares with the prompts that they should make.

The collection is a JSON object: name → {"chat_template", "data", "target"}, where data holds the messages and whatever
else the template is given. Such is the one in huggingface.js (packages/jinja/test/e2e.test.js, both tables written as
JSON); none is kept here. Prints what differs and where; the exit status says nothing of that.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent / "python_backend"))
from inflight.errors import LoadError, RequestError
from inflight.request.chat import ChatOptions
from inflight.request.chat_template import ChatTemplate
from inflight.request.messages import parse_messages

SHOWN = 40  # characters around the first difference


def render(case: Mapping[str, Any]) -> str:
    """The prompt. Raises `RequestError` and `LoadError`."""
    data = dict(case["data"])
    tokens = {name: data.pop(name) for name in list(data) if name.endswith("_token")}
    template = ChatTemplate(case["chat_template"], tokens)
    messages = parse_messages(json.dumps(data.pop("messages")).encode(), template.features)
    chat = ChatOptions(
        tools=tuple(data.pop("tools", None) or ()),
        documents=tuple(data.pop("documents", None) or ()),
        add_generation_prompt=data.pop("add_generation_prompt", False),
        template_kwargs={name: value for name, value in data.items() if name in template.settable},
    )
    return template.render(messages, 1 << 20, chat=chat)


def difference(found: str, wanted: str) -> str:
    """Where two texts differ first, in both."""
    place = next((n for n, pair in enumerate(zip(found, wanted, strict=False)) if pair[0] != pair[1]), len(found))
    part = slice(max(0, place - SHOWN), place + SHOWN)
    return f"{found[part]!r} instead of {wanted[part]!r}"


def main() -> int:
    """Compare, and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("collection", type=Path, help="JSON file")
    cases = json.loads(parser.parse_args().collection.read_text(encoding="utf-8"))
    equal = 0
    for name, case in cases.items():
        try:
            found = render(case)
        except (RequestError, LoadError) as error:
            print(f"{name}: {error}")
            continue
        if found == case["target"]:
            equal += 1
        else:
            print(f"{name}: {difference(found, case['target'])}")
    print(f"{equal} of {len(cases)} prompts are equal")
    return 0


if __name__ == "__main__":
    sys.exit(main())
