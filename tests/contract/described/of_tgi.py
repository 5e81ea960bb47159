"""TGI's API, of its own description."""

from __future__ import annotations

import json
from typing import Any

from inflight_tools.common.layout import REPOSITORY
from tests.contract.described import (
    FLAG,
    TEXT,
    Api,
    Operation,
    events,
    listed,
    number,
    of,
    one_of,
    reference,
    whole,
)  # fmt: skip

_FILE = REPOSITORY / "tests/contract/described/tgi/openapi.json"
_PARAMETERS = of(
    "",
    {
        "best_of": one_of(1, None), "decoder_input_details": {"const": False}, "details": FLAG, "do_sample": FLAG,
        "frequency_penalty": one_of(number(-2, 2), None), "grammar": one_of(None),
        "max_new_tokens": one_of(whole(1, 100), None), "repetition_penalty": one_of(number(0.1, 2), None),
        "return_full_text": one_of(FLAG, None), "seed": one_of(whole(0, 2**64 - 1), None),
        "stop": listed(TEXT, 2, 0), "temperature": one_of(number(0.1, 2), None), "top_k": one_of(whole(1, 100), None),
        "top_p": one_of(number(0.01, 0.99), None), "truncate": one_of(None),
        "typical_p": one_of(number(0.1, 0.99), None), "watermark": {"const": False},
    },
)  # fmt: skip
_TEXTS = {"inputs": TEXT, "parameters": _PARAMETERS}
_GENERATE = of("inputs", _TEXTS)
_EITHER = of("inputs", {**_TEXTS, "stream": FLAG})
_MESSAGES = of(
    "messages",
    {"messages": listed(of("role content", {"role": {"enum": ["system", "user", "assistant"]}, "content": TEXT}), 3)},
)


def _description() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(_FILE.read_text(encoding="utf-8"))
    return found


def _events(text: str) -> None:
    """One for each token, the last of which has the whole text."""
    found = events(text)
    assert found
    for place, (name, said) in enumerate(found):
        assert name == ""
        TGI.validate(said, "StreamResponse")
        assert said["index"] == place + 1
        assert (said["generated_text"] is not None) == (place == len(found) - 1), text[-500:]


_LISTED = {"type": "array", "items": reference("GenerateResponse"), "minItems": 1, "maxItems": 1}
TGI = Api(
    _description(),
    "",
    (404, 422),
    {
        "/": Operation(_EITHER, _LISTED, _events, (0.02, 0.04)),
        "/generate": Operation(_GENERATE, reference("GenerateResponse"), None, (0.02, 0.04)),
        "/generate_stream": Operation(_GENERATE, {}, _events, (0.02, 0.04), always_streams=True),
        "/tokenize": Operation(_GENERATE, reference("TokenizeResponse"), None, (0.01, 0.01)),
        "/chat_tokenize": Operation(_MESSAGES, reference("ChatTokenizeResponse"), None, (0.005, 0.01)),
        "/invocations": Operation(_EITHER, _LISTED, _events, (0, 0.02)),
    },
)
