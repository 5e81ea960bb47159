"""Answers that come token by token: together they are the whole answer, and they end exactly once."""

from __future__ import annotations

import json
import queue
import time
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as official

from inflight_tools.server.server import Server
from tests.harness.grpc_client import GrpcClient
from tests.harness.http_client import HttpClient
from tests.harness.tensors import outputs

pytestmark = pytest.mark.server

EMOJI = "Repeat exactly: 🙂👩‍👩‍👧‍👦🇩🇪 Übermut e\u0301 日本語. Again, exactly:"
PROMPTS: list[dict[str, Any]] = [
    {"text_input": "The capital of France is"},
    {"text_input": EMOJI, "max_tokens": 40},
    {"text_input": "def fibonacci(n):\n    "},
    {"messages": json.dumps([{"role": "user", "content": "Write five emoji of animals, nothing else."}])},
    {"messages": json.dumps([{"role": "user", "content": "Say hello, please."}])},
    {"text_input": "Once upon a time", "temperature": 1.3, "top_p": 0.9, "seed": 11},
    {"text_input": "Once upon a time", "stop_words": ["there", "\n\n"]},
    {"text_input": "Привет, как дела?", "temperature": 1.0, "seed": 3},
]
DETAILS = {"return_finish_reason": True, "return_num_output_tokens": True, "return_token_ids": True}


@pytest.mark.parametrize("values", PROMPTS, ids=range(len(PROMPTS)))
def test_streamed_text_joined_is_the_whole_text(values: dict[str, Any], grpc: GrpcClient, http: HttpClient) -> None:
    values = {"max_tokens": 24, **values}
    whole = grpc.start(stream=False, **values, **DETAILS).result()
    streamed = grpc.start(stream=True, **values, **DETAILS).result()
    raw = b"".join(text for response in streamed.responses for text in response.outputs.get("text_output", []))
    assert raw == whole.responses[0].outputs["text_output"][0]
    assert "\ufffd" not in raw.decode()
    assert len(streamed.responses) > 1
    assert streamed.output_ids == whole.output_ids
    assert streamed.output_tokens == whole.output_tokens == len(whole.output_ids)
    assert streamed.finish_reason == whole.finish_reason != ""
    events = list(http.generate_stream(**values))
    assert "".join(event["text_output"] for event in events) == whole.text


def test_the_answer_holds_emoji_at_all(grpc: GrpcClient) -> None:
    """Else the test above proves nothing about split characters."""
    answer = grpc.generate(EMOJI, max_tokens=40, return_num_output_tokens=True)
    assert any(ord(char) > 0x1F000 for char in answer.text)
    assert any(len(response.texts()[0].encode()) >= 4 and response.tokens() > 1 for response in answer.responses)


def test_every_piece_is_whole_utf8_and_says_something(grpc: GrpcClient) -> None:
    answer = grpc.generate(EMOJI, max_tokens=40, return_finish_reason=True)
    for response in answer.responses:
        response.outputs["text_output"][0].decode("utf-8", "strict")
        assert response.outputs["text_output"][0] or response.outputs["finish_reason"][0]
    reasons = [response.outputs["finish_reason"][0] for response in answer.responses]
    assert reasons[-1] == b"length"
    assert set(reasons[:-1]) == {b""}


def test_tokens_come_while_the_answer_is_being_made(grpc: GrpcClient) -> None:
    grpc.generate("Count to one hundred:", max_tokens=4)
    pending = grpc.start("Count to one hundred:", max_tokens=120, ignore_eos=True, return_num_output_tokens=True)
    pending.result()
    timeline = pending.answer.timeline
    assert timeline.tokens == 120
    assert len(timeline.arrivals) > 40, "at low load nearly every token leaves by itself"
    assert timeline.ttft is not None
    assert timeline.latency is not None
    assert timeline.ttft < timeline.latency / 4


def test_sequences_of_one_request_are_told_apart(grpc: GrpcClient) -> None:
    values = {"num_return_sequences": 3, "temperature": 1.2, "seed": 5, "max_tokens": 16, **DETAILS}
    whole = grpc.start("Once upon a time", stream=False, **{**values, "return_token_ids": None}).result()
    streamed = grpc.start("Once upon a time", **values).result()
    assert streamed.texts == whole.texts
    assert len(set(streamed.texts)) == 3
    assert all(len(response.outputs["sequence_index"]) == 1 for response in streamed.responses)
    assert {response.outputs["sequence_index"][0] for response in streamed.responses} == {0, 1, 2}


def test_a_stream_never_begins_with_the_prompt_and_a_whole_answer_does_when_asked(grpc: GrpcClient) -> None:
    plain = grpc.generate("Once upon a time", max_tokens=8)
    echoed = grpc.generate("Once upon a time", max_tokens=8, exclude_input_in_output=False)
    whole = grpc.generate("Once upon a time", max_tokens=8, exclude_input_in_output=False, stream=False)
    assert echoed.text == plain.text
    assert whole.text == "Once upon a time" + plain.text


def test_many_requests_over_one_stream_do_not_mix(grpc: GrpcClient) -> None:
    prompts = [f"Number {number} is" for number in range(12)]
    pending = [
        grpc.start(prompt, max_tokens=12 + place, ignore_eos=True, **DETAILS) for place, prompt in enumerate(prompts)
    ]
    for place, one in enumerate(pending):
        one.result()
        assert one.finals == 1
        assert one.output_tokens == 12 + place
        assert one.finish_reason == "length"


# -- the one final response ----------------------------------------------------------------------------------------


def official_responses(server: Server, empty_final: bool, **values: Any) -> list[tuple[bool, dict[str, list[Any]]]]:
    """Every response that NVIDIA's own client gets: (triton_final_response, outputs)."""
    arrived: queue.Queue[Any] = queue.Queue()
    client = official.InferenceServerClient(server.grpc_url)
    client.start_stream(lambda result, error: arrived.put((result, error)))
    text = official.InferInput("text_input", [1], "BYTES")
    text.set_data_from_numpy(official_array(values.pop("text_input")))
    inputs = [text]
    for name, (datatype, array) in values.items():
        tensor = official.InferInput(name, [1], datatype)
        tensor.set_data_from_numpy(array)
        inputs.append(tensor)
    client.async_stream_infer("llm", inputs, request_id="r1", enable_empty_final_response=empty_final)
    found = []
    give_up = time.monotonic() + 30.0
    quiet_s = 30.0
    while time.monotonic() < give_up:
        try:
            result, error = arrived.get(timeout=quiet_s)
        except queue.Empty:
            break
        assert error is None, error
        response = result.get_response()
        assert response.id == "r1"
        final = response.parameters["triton_final_response"].bool_param
        found.append((final, outputs(response)))
        if final:
            quiet_s = 0.5  # whatever came after the final response would come now
    client.stop_stream()
    client.close()
    return found


def official_array(text: str) -> Any:
    return np.array([text.encode()], dtype=np.object_)


@pytest.mark.parametrize("empty_final", [True, False])
@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("max_tokens", [1, 6])
def test_exactly_one_response_is_final_and_it_is_the_last(
    empty_final: bool, stream: bool, max_tokens: int, server: Server
) -> None:
    found = official_responses(
        server,
        empty_final,
        text_input="The capital of France is",
        stream=("BOOL", np.array([stream])),
        max_tokens=("INT32", np.array([max_tokens], dtype=np.int32)),
    )
    finals = [final for final, _ in found]
    assert finals == [False] * (len(found) - 1) + [True]
    assert found[-1][1], "the final flag rides on a response with text: no empty one follows"
    assert len(found) == (1 if not stream else max_tokens)


def test_an_error_is_final_too(grpc: GrpcClient) -> None:
    pending = grpc.start("x", max_tokens=-1)
    with pytest.raises(Exception, match="max_tokens"):
        pending.result()
    time.sleep(0.3)
    assert pending.finals == 1


def test_an_empty_answer_still_ends(grpc: GrpcClient) -> None:
    """A stop string right at the beginning leaves nothing to say but the end."""
    first = grpc.generate("The capital of France is", max_tokens=1).text
    stop = first.strip()[0]
    answer = grpc.generate("The capital of France is", max_tokens=8, stop_words=[" " + stop], return_finish_reason=True)
    assert answer.text == ""
    assert answer.finish_reason == "stop"
    assert answer.finals == 1
    unary = grpc.start("The capital of France is", stream=False, max_tokens=8, stop_words=[" " + stop]).result()
    assert unary.responses[0].outputs["text_output"] == [b""]
