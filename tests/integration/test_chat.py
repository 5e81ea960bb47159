"""Tools, prefill, counting and why it stopped, with the real model through the real server. SmolLM2 knows no tools, so
what is promised of calls rests on their guide alone.
"""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import pytest
from tokenizers import Tokenizer

from inflight_tools.common.layout import ENGINE
from tests.conftest import MakeServer
from tests.harness.grpc_client import GrpcClient, Pending, RequestFailed
from tests.harness.http_client import HttpClient

pytestmark = pytest.mark.server

WEATHER = {
    "type": "object",
    "properties": {
        "city": {"type": "string"},
        "days": {"type": "integer", "minimum": 1, "maximum": 9},
        "unit": {"type": "string", "enum": ["celsius", "fahrenheit"]},
    },
    "required": ["city"],
}
SEARCH = {
    "type": "object",
    "properties": {"query": {"type": "string"}, "tags": {"type": "array", "items": {"type": "string"}, "maxItems": 3}},
    "required": ["query"],
}
SCHEMAS: dict[str, Any] = {"get_weather": WEATHER, "search": SEARCH, "now": {"type": "object", "maxProperties": 0}}
TOOLS = json.dumps(
    [
        {"type": "function", "function": {"name": name, **({} if name == "now" else {"parameters": schema})}}
        for name, schema in SCHEMAS.items()
    ]
)
CITIES = ("Paris", "Oslo", "Lima", "Rome", "Kyoto", "Quito", "Cairo", "Delhi", "Bonn", "Accra")
ASKS = ("What is the weather in {}?", "Search for books about {}.", "What time is it in {}?", "Plan a day in {}.")


def chat(text: str, *more: dict[str, str]) -> str:
    return json.dumps([{"role": "user", "content": text}, *more])


def start(grpc: GrpcClient, messages: str, **values: Any) -> Pending:
    return grpc.start(messages=messages, max_tokens=values.pop("max_tokens", 200), return_finish_reason=True, **values)


def calls_of(answer: Pending) -> list[dict[str, str]]:
    """The calls, put together from what each response added."""
    calls: dict[int, dict[str, str]] = {}
    for response in answer.responses:
        for text in response.outputs.get("tool_calls", []):
            for item in json.loads(text):
                if "id" in item:
                    calls[item["index"]] = {"id": item["id"], **item["function"]}
                else:
                    calls[item["index"]]["arguments"] += item["function"]["arguments"]
    return [calls[index] for index in sorted(calls)]


def required(grpc: GrpcClient, count: int) -> None:
    prompts = [ASKS[number % len(ASKS)].format(CITIES[number // len(ASKS) % len(CITIES)]) for number in range(count)]
    pending = [
        start(
            grpc,
            chat(prompt),
            tools=TOOLS,
            tool_choice="required",
            parallel_tool_calls=False,
            temperature=0.8,
            seed=[number],
        )
        for number, prompt in enumerate(prompts)
    ]
    whole = 0
    for prompt, answer in zip(prompts, pending, strict=True):
        answer.result()
        assert answer.text == "", prompt
        (call,) = calls_of(answer)
        if answer.finish_reason == "length":  # a string without an end
            continue
        assert answer.finish_reason == "tool_calls"
        jsonschema.validate(json.loads(call["arguments"]), SCHEMAS[call["name"]])
        whole += 1
    assert whole >= 0.9 * count


def test_a_required_call_parses_and_validates(grpc: GrpcClient) -> None:
    required(grpc, 12)


@pytest.mark.full
def test_two_hundred_required_calls_parse_and_validate(grpc: GrpcClient) -> None:
    required(grpc, 200)


def test_a_named_tool_is_called_once_and_http_gives_what_grpc_gives(grpc: GrpcClient, http: HttpClient) -> None:
    values = {"tools": TOOLS, "tool_choice": "get_weather", "max_tokens": 60}
    streamed = start(grpc, chat("Rain in Oslo?"), **values).result()
    (call,) = calls_of(streamed)
    assert call["name"] == "get_weather"
    status, answer = http.generate(messages=chat("Rain in Oslo?"), return_finish_reason=True, **values)
    assert status == 200
    (whole,) = json.loads(answer["tool_calls"])
    assert whole["function"] == {"name": "get_weather", "arguments": call["arguments"]}
    assert whole["id"] != call["id"]
    assert answer["finish_reason"] == streamed.finish_reason


def test_tools_that_the_model_cannot_be_told_of_are_refused(grpc: GrpcClient) -> None:
    with pytest.raises(RequestFailed, match="tools have no effect on this model"):
        start(grpc, chat("Hi"), tools=TOOLS).result()


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ({"type": "object", "properties": {"a": {"type": "string", "format": "binary"}}}, "tools of f .*binary"),
        ({"type": "object", "properties": {"a": {"type": "array", "uniqueItems": True}}}, "tools of f .*uniqueItems"),
    ],
)
def test_what_a_strict_tool_asks_and_cannot_be_kept_is_refused_by_keyword(
    grpc: GrpcClient, schema: dict[str, Any], words: str
) -> None:
    def tools(strict: bool) -> str:
        return json.dumps([{"type": "function", "function": {"name": "f", "parameters": schema, "strict": strict}}])

    with pytest.raises(RequestFailed, match=words):
        start(grpc, chat("Hi"), tools=tools(True), tool_choice="required").result()
    asked = {"tool_choice": "required", "return_model_info": True, "max_tokens": 40}
    answer = start(grpc, chat("Hi"), tools=tools(False), **asked).result()
    assert calls_of(answer)
    (note,) = json.loads(answer.responses[-1].outputs["model_info"][0])["relaxations"]
    assert note.startswith("f/properties/a: ")


def test_fifty_tools_of_twelve_parameters_are_served(grpc: GrpcClient) -> None:
    kinds = ("string", "integer", "boolean")
    tools = [
        {
            "type": "function",
            "function": {
                "name": f"tool_{number}",
                "parameters": {
                    "type": "object",
                    "properties": {f"p{number}_{place}": {"type": kinds[place % 3]} for place in range(12)},
                    "required": [f"p{number}_0"],
                },
            },
        }
        for number in range(50)
    ]
    answer = start(grpc, chat("Call one."), tools=json.dumps(tools), tool_choice="required", max_tokens=40).result()
    assert calls_of(answer)[0]["name"].startswith("tool_")


def test_an_answer_goes_on_with_the_last_message(grpc: GrpcClient) -> None:
    begun = chat("Count from one to five.", {"role": "assistant", "content": "One, two, three,"})
    answer = start(grpc, begun, continue_final_message=True, max_tokens=8).result()
    assert answer.text.lstrip().lower().startswith("four")


def test_counting_is_what_the_prompt_has(grpc: GrpcClient) -> None:
    asked = {"return_num_input_tokens": True, "return_token_ids": True}
    counted = start(grpc, chat("Hi"), max_tokens=0, **asked).result()
    outputs = counted.responses[-1].outputs
    assert counted.text == ""
    assert len(outputs["output_ids"]) == outputs["num_input_tokens"][0]
    ids = list(outputs["output_ids"])
    shown = {"exclude_input_in_output": False, "skip_special_tokens": False, "stream": False}
    text = grpc.generate(input_ids=ids, max_tokens=0, **shown).text
    assert text.startswith("<|im_start|>")
    assert "<|im_start|>user\nHi<|im_end|>" in text
    again = grpc.generate(input_ids=ids, max_tokens=8)
    assert again.text == start(grpc, chat("Hi"), max_tokens=8).result().text


def test_a_client_can_ask_what_the_model_is(grpc: GrpcClient) -> None:
    answer = grpc.generate("x", max_tokens=0, return_model_info=True)
    about = json.loads(answer.responses[-1].outputs["model_info"][0])
    assert about["context"] == 8192
    assert (about["engine"], about["chat"], about["shows_tools"], about["tool_format"]) == (
        "openvino",
        True,
        False,
        "none",
    )
    assert "guided_json" in about["capabilities"]
    assert about["adapters"] == []


def test_why_it_stopped(grpc: GrpcClient) -> None:
    def reason(answer: Pending) -> str:
        return str(answer.responses[-1].outputs["stop_reason"][0].decode())

    plain = start(grpc, chat("Name a colour."), max_tokens=40).result()
    stopped = start(grpc, chat("Name a colour."), max_tokens=40, stop_words=["."]).result()
    kept = start(
        grpc, chat("Name a colour."), max_tokens=40, stop_words=["."], include_stop_str_in_output=True
    ).result()
    assert reason(plain) == ""
    assert reason(stopped) == reason(kept) == "."
    assert kept.text == stopped.text + "."
    by_id = start(grpc, chat("Hi"), max_tokens=40, return_token_ids=True).result()
    third = by_id.output_ids[2]
    assert reason(start(grpc, chat("Hi"), sampling_parameters=json.dumps({"stop_token_ids": [third]})).result()) == str(
        third
    )


@pytest.mark.full
def test_required_calls_in_forms_without_json(make_server: MakeServer) -> None:
    begins = {"pythonic": "[", "qwen3_coder": "<tool_call>\n<function="}
    server = make_server({form: {"tool_format": form} for form in begins}, engine="openvino")
    tokenizer = Tokenizer.from_file(str(ENGINE / "tokenizer.json"))
    with GrpcClient(server.grpc_url) as grpc:
        for form, begin in begins.items():
            for city in CITIES[:4]:
                values = {"tools": TOOLS, "tool_choice": "get_weather", "max_tokens": 120, "return_token_ids": True}
                answer = start(grpc, chat(f"Weather in {city}?"), model=form, **values).result()
                (call,) = calls_of(answer)
                ids = list(answer.output_ids)
                assert tokenizer.decode(ids, skip_special_tokens=False).startswith(begin)
                if answer.finish_reason != "length":
                    jsonschema.validate(json.loads(call["arguments"]), WEATHER)
