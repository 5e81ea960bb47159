"""What every client's script shares: it runs in an environment that has the client and nothing of this project.

`python SCRIPT URL` tries the client's features one by one at a gateway and writes a JSON object to standard output: the
client's version, and per feature "yes" or what went wrong.
"""

from __future__ import annotations

import importlib.metadata
import json
import sys
from collections.abc import Callable

URL = sys.argv[1] + "/v1"
ANSWER, sys.stdout = sys.stdout, sys.stderr  # some clients print
ASK = [{"role": "user", "content": "What is the capital of France?"}]
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather in a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
CITY = {
    "type": "json_schema",
    "json_schema": {"name": "city", "strict": True, "schema": WEATHER["function"]["parameters"]},  # type: ignore[index]
}


def report(package: str, features: dict[str, Callable[[], object]]) -> None:
    """Try each feature; one is well if it raises nothing."""
    found = {}
    for name, attempt in features.items():
        try:
            attempt()
            found[name] = "yes"
        except Exception as error:  # noqa: BLE001 - told, and the next one is tried
            found[name] = f"{type(error).__name__}: {error}"[:500]
    json.dump({"version": importlib.metadata.version(package), "features": found}, ANSWER)


def says_paris(text: str | None) -> None:
    """The small model knows it."""
    assert text is not None
    assert "Paris" in text, text


def calls_for_a_city(name: str | None, arguments: str) -> None:
    """A call of the one tool."""
    assert name == "get_weather", name
    assert isinstance(json.loads(arguments)["city"], str), arguments


def has_a_city(text: str | None) -> None:
    """A structured answer."""
    assert text is not None
    assert isinstance(json.loads(text)["city"], str), text
