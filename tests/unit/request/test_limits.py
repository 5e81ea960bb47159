"""Each limit that docs/requests.md names is held where it says: at it a request is taken, beyond it refused by name."""

from __future__ import annotations

import json
from typing import Any

import pytest

from inflight.errors import ErrorCode, RequestError
from inflight.request import limits
from inflight.request.messages import parse_messages
from tests.unit.machines.strategies import request

pytestmark = pytest.mark.fast

SCHEMA = {"guided_decoding_guide_type": "json_schema"}


def in_json(**values: Any) -> dict[str, Any]:
    return {"sampling_parameters": json.dumps(values)}


EDGES: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    (
        "stop_words",
        {"stop_words": [str(i) for i in range(limits.MAX_STOPS)]},
        {"stop_words": [str(i) for i in range(limits.MAX_STOPS + 1)]},
    ),
    ("bad_words", {"bad_words": ["x" * limits.MAX_STOP_CHARS]}, {"bad_words": ["x" * (limits.MAX_STOP_CHARS + 1)]}),
    (
        "num_return_sequences",
        {"num_return_sequences": limits.MAX_SEQUENCES},
        {"num_return_sequences": limits.MAX_SEQUENCES + 1},
    ),
    ("best_of", in_json(best_of=limits.MAX_SEQUENCES), in_json(best_of=limits.MAX_SEQUENCES + 1)),
    ("beam_width", {"beam_width": limits.MAX_SEQUENCES}, {"beam_width": limits.MAX_SEQUENCES + 1}),
    ("logprobs", {"logprobs": limits.MAX_LOGPROBS}, {"logprobs": limits.MAX_LOGPROBS + 1}),
    ("temperature", {"temperature": limits.MAX_TEMPERATURE}, {"temperature": limits.MAX_TEMPERATURE + 1}),
    (
        "repetition_penalty",
        {"repetition_penalty": limits.MAX_REPETITION_PENALTY},
        {"repetition_penalty": limits.MAX_REPETITION_PENALTY + 1},
    ),
    ("presence_penalty", {"presence_penalty": -limits.MAX_PENALTY}, {"presence_penalty": -limits.MAX_PENALTY - 1}),
    ("frequency_penalty", {"frequency_penalty": limits.MAX_PENALTY}, {"frequency_penalty": limits.MAX_PENALTY + 1}),
    ("seed", {"seed": 2**64 - 1}, in_json(seed=2**64)),
    ("request_priority", {"request_priority": -limits.MAX_PRIORITY}, {"request_priority": limits.MAX_PRIORITY + 1}),
    ("lora_name", {"lora_name": "é" * (limits.MAX_NAME_BYTES // 2)}, {"lora_name": "x" * (limits.MAX_NAME_BYTES + 1)}),
    ("cache_salt", {"cache_salt": "x" * limits.MAX_NAME_BYTES}, {"cache_salt": "x" * (limits.MAX_NAME_BYTES + 1)}),
    (
        "guided_decoding_guide",
        {**SCHEMA, "guided_decoding_guide": " " * (limits.MAX_GUIDE_BYTES - 2) + "{}"},
        {**SCHEMA, "guided_decoding_guide": " " * (limits.MAX_GUIDE_BYTES - 1) + "{}"},
    ),
    (
        "sampling_parameters",
        {"sampling_parameters": "{}" + " " * (limits.MAX_JSON_BYTES - 2)},
        {"sampling_parameters": "{}" + " " * (limits.MAX_JSON_BYTES - 1)},
    ),
]


@pytest.mark.parametrize(("name", "within", "beyond"), EDGES, ids=[name for name, _, _ in EDGES])
def test_the_limit_is_taken_and_one_more_is_refused_by_name(
    name: str, within: dict[str, Any], beyond: dict[str, Any]
) -> None:
    request(**within)
    with pytest.raises(RequestError) as refusal:
        request(**beyond)
    assert (refusal.value.code, refusal.value.parameter) == (ErrorCode.INVALID_ARG, name)
    assert refusal.value.message.startswith(f"{name} ")


def test_as_many_messages_as_there_may_be() -> None:
    message = {"role": "user", "content": "x"}
    assert len(parse_messages(json.dumps([message] * limits.MAX_MESSAGES).encode())) == limits.MAX_MESSAGES
    with pytest.raises(RequestError, match=f"at most {limits.MAX_MESSAGES} are allowed"):
        parse_messages(json.dumps([message] * (limits.MAX_MESSAGES + 1)).encode())


def test_the_page_names_every_limit_that_the_code_has() -> None:
    shown = " ".join(limit for _, limit in limits.limits())
    for name, value in vars(limits).items():
        if name.isupper():
            assert f"{value:,}".removesuffix(".0") in shown, name
