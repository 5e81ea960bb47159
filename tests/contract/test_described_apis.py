"""Requests made from OpenAI's own description of its API, through the gateway to the simulated engine: every answer is
one that the description has, and none is a failure of ours.
"""

from __future__ import annotations

import copy
import json
import time
from collections import Counter
from typing import Any

import jsonschema
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from referencing import Registry, Resource
from referencing.jsonschema import DRAFT202012

from inflight_tools.common.layout import REPOSITORY
from tests.conftest import MakeServer
from tests.harness.gateway import Gateway, running

pytestmark = pytest.mark.server

DESCRIPTION = json.loads((REPOSITORY / "tests/contract/openai_api/openapi.json").read_text(encoding="utf-8"))
SCHEMAS = "#/components/schemas/"
HANGS_S = 20.0
# Refused by name; a request with one of them says nothing of the rest.
REFUSED = (
    "audio", "function_call", "functions", "logit_bias", "moderation", "prediction", "suffix", "web_search_options",
    "best_of", "modalities", "response_format",
)  # fmt: skip
WHOLE = {"/chat/completions": "CreateChatCompletionResponse", "/completions": "CreateCompletionResponse"}
CHUNK = {"/chat/completions": "CreateChatCompletionStreamResponse", "/completions": "CreateCompletionResponse"}

_registry: Registry[Any] = Registry().with_resource("openai", Resource(DESCRIPTION, DRAFT202012))


def validator(name: str) -> Any:
    return jsonschema.Draft202012Validator({"$ref": f"openai{SCHEMAS}{name}"}, registry=_registry)


def described(*, honoured: bool) -> dict[str, Any]:
    """The description with a model that there is; `honoured`: of the fields that the gateway honours, and with prompts
    that a model of this vocabulary can read.
    """
    found = copy.deepcopy(DESCRIPTION)
    schemas = found["components"]["schemas"]
    schemas["ModelIdsShared"] = {"const": "llm"}
    chat = schemas["CreateChatCompletionRequest"]["allOf"]
    completion = schemas["CreateCompletionRequest"]
    completion["properties"]["model"] = {"const": "llm"}
    if honoured:
        for part in (*chat, completion):
            for name in REFUSED:
                part.get("properties", {}).pop(name, None)
        text = {"type": "string", "minLength": 1, "maxLength": 40, "pattern": "^[ -~é🙂]+$"}
        ids = {"type": "array", "items": {"type": "integer", "minimum": 3, "maximum": 9000}, "minItems": 1}
        completion["properties"]["prompt"] = {
            "oneOf": [text, {"type": "array", "items": text, "minItems": 1, "maxItems": 3}, ids]
        }
        message = {"type": "object", "required": ["role", "content"], "additionalProperties": False}
        part = {"type": "object", "properties": {"type": {"const": "text"}, "text": text}, "required": ["type", "text"]}
        content = {"oneOf": [text, {"type": "array", "items": part, "minItems": 1, "maxItems": 2}]}
        roles = {"enum": ["system", "developer", "user", "assistant"]}
        properties = next(one["properties"] for one in chat if "messages" in one.get("properties", {}))
        properties["messages"]["items"] = {**message, "properties": {"role": roles, "content": content}}
        properties["messages"]["maxItems"] = 4
        # The simulated engine gives chosen tokens' log-probabilities alone.
        properties["top_logprobs"] = completion["properties"]["logprobs"] = {"const": 0}
        for one in (properties, completion["properties"]):
            one["n"] = {"type": "integer", "minimum": 1, "maximum": 3}
            for name in ("max_tokens", "max_completion_tokens"):
                if name in one:
                    one[name] = {"type": "integer", "minimum": 1}
    return found


def check(path: str, body: Any, status: int, kind: str, text: str) -> None:
    """Raises AssertionError, or jsonschema's error, for an answer that the description does not have."""
    shown = f"{path} {status} {json.dumps(body)[:2000]} -> {text[:1000]}"
    assert status in (200, 400, 404), shown
    if status != 200:
        validator("ErrorResponse").validate(json.loads(text))
        assert json.loads(text)["error"]["message"], shown
        return
    if not (isinstance(body, dict) and body.get("stream")):
        assert kind == "application/json", shown
        validator(WHOLE[path]).validate(json.loads(text))
        return
    assert kind.startswith("text/event-stream"), shown
    *chunks, done, rest = text.split("\n\n")
    assert (done, rest) == ("data: [DONE]", ""), shown
    chunk_form = validator(CHUNK[path])
    reasons: Counter[int] = Counter()
    for chunk in chunks:
        said = json.loads(chunk.removeprefix("data: "))
        for choice in said["choices"]:
            reasons[choice["index"]] += choice["finish_reason"] is not None
            if path == "/completions" and choice["finish_reason"] is None:
                choice["finish_reason"] = "stop"  # the description of a whole answer is also that of its chunks
        chunk_form.validate(said)
    assert set(reasons.values()) == {1}, shown


def ask(gateway: Gateway, path: str, honoured: bool, cases: int, counted: Counter[tuple[str, bool, int]]) -> None:
    """Make that many requests of one operation, and check what is answered."""
    schema = schemathesis.openapi.from_dict(described(honoured=honoured))
    schema.config.update(base_url=f"{gateway.url}/v1")

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
        check(path, case.body, response.status_code, response.headers["content-type"][0], response.text)
        counted[path, honoured, response.status_code] += 1

    one()


@pytest.mark.parametrize(
    "cases", [300, pytest.param(5000, marks=[pytest.mark.full, pytest.mark.timeout(1800)])], ids=["300", "5,000"]
)
def test_what_openai_describes_is_answered_as_it_describes(make_server: MakeServer, cases: int) -> None:
    server = make_server(
        models={"llm": {"max_tokens_limit": "16", "engine_options": {"step_ms": 0.1, "prefill_us_per_token": 0.1}}}
    )
    counted: Counter[tuple[str, bool, int]] = Counter()
    with running(server.grpc_url) as gateway:
        gateway.wait_ready()
        # A chat of the whole description takes a hundred times as long to make as all others.
        for path, honoured, share in (
            ("/chat/completions", False, 0.05),
            ("/chat/completions", True, 0.3),
            ("/completions", False, 0.25),
            ("/completions", True, 0.4),
        ):
            ask(gateway, path, honoured, round(cases * share), counted)
        status, _, body = gateway.call("GET", "/v1/models")
        assert status == 200
        validator("ListModelsResponse").validate(json.loads(body))
        status, _, body = gateway.call("GET", "/v1/models/llm")
        assert status == 200
        validator("Model").validate(json.loads(body))
        assert gateway.call("GET", "/ready")[0] == 200
    assert sum(counted.values()) >= 0.8 * cases
    for path in WHOLE:  # else nothing was tried but refusals
        assert counted[path, True, 200] > counted[path, True, 400], counted
    print(dict(counted))
