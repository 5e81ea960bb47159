"""OpenAI's API, of its own description."""

from __future__ import annotations

import copy
import json
from collections import Counter
from typing import Any

from inflight_tools.common.layout import REPOSITORY
from tests.contract.described import (
    NAME,
    PARAMETERS,
    TEXT,
    Api,
    Operation,
    events,
    listed,
    of,
    one_of,
    reference,
    whole,
)  # fmt: skip

_FILE = REPOSITORY / "tests/contract/described/openai/openapi.json"
# Refused by name; a request with one of them says nothing of the rest.
REFUSED = (
    "audio", "function_call", "functions", "logit_bias", "moderation", "prediction", "suffix", "web_search_options",
    "best_of", "modalities", "response_format",
)  # fmt: skip


def _description() -> dict[str, Any]:
    """With a model that there is."""
    found: dict[str, Any] = json.loads(_FILE.read_text(encoding="utf-8"))
    schemas = found["components"]["schemas"]
    schemas["ModelIdsShared"] = schemas["ModelIdsResponses"] = {"const": "llm"}
    schemas["CreateCompletionRequest"]["properties"]["model"] = {"const": "llm"}
    return found


def _honoured(name: str) -> dict[str, Any]:
    """A request of the description, of the fields that are honoured, with prompts that the model can read."""
    found = copy.deepcopy(_description()["components"]["schemas"][name])
    parts = [one for one in found.get("allOf", [found]) if "properties" in one]
    for part in parts:
        for refused in REFUSED:
            part["properties"].pop(refused, None)
    properties = parts[-1]["properties"]
    for one in ("max_tokens", "max_completion_tokens"):
        if one in properties:
            properties[one] = {"type": "integer", "minimum": 1}
    properties["n"] = whole(1, 3)
    return found


def _chat() -> dict[str, Any]:
    found = _honoured("CreateChatCompletionRequest")
    properties = found["allOf"][-1]["properties"]
    part = {"type": "object", "properties": {"type": {"const": "text"}, "text": TEXT}, "required": ["type", "text"]}
    message = of(
        "role content",
        {"role": {"enum": ["system", "developer", "user", "assistant"]}, "content": one_of(TEXT, listed(part, 2))},
    )
    properties["messages"] |= {"items": message, "maxItems": 4}
    properties["top_logprobs"] = {"const": 0}  # the simulated engine gives chosen tokens' log-probabilities alone
    return found


def _completion() -> dict[str, Any]:
    found = _honoured("CreateCompletionRequest")
    ids = {"type": "array", "items": whole(3, 9000), "minItems": 1}
    found["properties"] |= {"prompt": one_of(TEXT, listed(TEXT, 3), ids), "logprobs": {"const": 0}}
    return found


def _response() -> dict[str, Any]:
    schemas = _description()["components"]["schemas"]
    parts = [
        schemas["ModelResponseProperties"],
        schemas["ResponseProperties"],
        next(part for part in schemas["CreateResponse"]["allOf"] if "properties" in part),
    ]
    known = {name: value for part in parts for name, value in part["properties"].items()}
    kept = (
        "model metadata temperature top_p user safety_identifier prompt_cache_key prompt_cache_retention "
        "max_tool_calls service_tier parallel_tool_calls store instructions stream stream_options"
    )
    words = one_of(TEXT, listed(one_of(*(of("type text", {"type": {"const": "input_text"}, "text": TEXT}),)), 2))
    said = of(
        "type text annotations logprobs",
        {
            "type": {"const": "output_text"}, "text": TEXT, "annotations": listed({}, 0, 0),
            "logprobs": listed({}, 0, 0),
        },
    )  # fmt: skip
    items = one_of(
        of("role content", {"role": {"enum": ["system", "developer", "user"]}, "content": words}),
        of("type role content", {"type": {"const": "message"}, "role": {"const": "user"}, "content": words}),
        of(
            "type id role status content",
            {
                "type": {"const": "message"}, "id": NAME, "role": {"const": "assistant"},
                "status": {"enum": ["completed", "incomplete"]}, "content": listed(said, 2),
            },
        ),
        of(
            "type call_id name arguments",
            {
                "type": {"const": "function_call"}, "call_id": NAME, "name": NAME,
                "arguments": {"enum": ["{}", '{"a": 1}', ""]},
            },
        ),
        of(
            "type call_id output",
            {"type": {"const": "function_call_output"}, "call_id": NAME, "output": TEXT},
        ),
        of(
            "type id summary content",
            {
                "type": {"const": "reasoning"}, "id": NAME, "summary": listed({}, 0, 0),
                "content": listed(of("type text", {"type": {"const": "reasoning_text"}, "text": TEXT}), 2),
            },
        ),
    )  # fmt: skip
    tool = of(
        "type name parameters strict",
        {
            "type": {"const": "function"}, "name": NAME, "description": TEXT, "parameters": PARAMETERS,
            "strict": {"const": False},
        },
    )  # fmt: skip
    return of(
        "model input",
        {name: known[name] for name in kept.split()}
        | {
            "input": one_of(TEXT, listed(items, 4)),
            "max_output_tokens": one_of(whole(16, 10**6), None),
            "truncation": one_of("disabled", None),
            "tools": listed(tool, 1, 0),
            "tool_choice": one_of("none", "auto"),
            "text": of("", {"verbosity": known["text"] and reference("Verbosity")}),
            "include": listed({"enum": ["message.output_text.logprobs", "reasoning.encrypted_content"]}, 2, 0),
        },
    )


def _chunks(path: str, schema: str) -> Any:
    def check(text: str) -> None:
        *chunks, (_, done) = events(text)
        assert done == "[DONE]", text[-300:]
        reasons: Counter[int] = Counter()
        for name, said in chunks:
            assert name == ""
            for choice in said["choices"]:
                reasons[choice["index"]] += choice["finish_reason"] is not None
                if path == "/completions" and choice["finish_reason"] is None:
                    choice["finish_reason"] = "stop"  # the description of a whole answer is also that of its chunks
            OPENAI.validate(said, schema)
        assert set(reasons.values()) == {1}, text[-300:]

    return check


def _response_events(text: str) -> None:
    """Numbered, each as described, in the order that clients put an answer together from."""
    found = events(text)
    for number_, (name, said) in enumerate(found):
        assert (said["type"], said["sequence_number"]) == (name, number_), said
        OPENAI.validate(said, "ResponseStreamEvent")
    names = [name for name, _ in found]
    assert names[:2] == ["response.created", "response.in_progress"]
    assert names[-1] in ("response.completed", "response.incomplete"), names[-3:]
    last = found[-1][1]["response"]
    done = [said["item"] for name, said in found if name == "response.output_item.done"]
    assert done == last["output"]
    for place, item in enumerate(done):
        if item["type"] == "message":
            said = "".join(
                one["delta"]
                for name, one in found
                if name == "response.output_text.delta" and one["output_index"] == place
            )
            assert said == item["content"][0]["text"]


OPENAI = Api(
    _description(),
    "/v1",
    (400, 404),
    {
        # A chat of the whole description takes a hundred times as long to make as all others.
        "/chat/completions": Operation(
            _chat(),
            reference("CreateChatCompletionResponse"),
            _chunks("/chat/completions", "CreateChatCompletionStreamResponse"),
            (0.02, 0.16),
        ),
        "/completions": Operation(
            _completion(),
            reference("CreateCompletionResponse"),
            _chunks("/completions", "CreateCompletionResponse"),
            (0.1, 0.18),
        ),
        "/responses": Operation(_response(), reference("Response"), _response_events, (0.02, 0.16)),
    },
)
