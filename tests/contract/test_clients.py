"""Replays of what existing clients send: the exact names, types and shapes, and a look at what each client then reads.

Built by hand from the protocol, not with this repository's own request builder: a client does not know our contract.
"""

from __future__ import annotations

import dataclasses
import http.client
import json
from collections.abc import Sequence
from typing import Any

import grpc as grpc_library
import pytest
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc

from inflight_tools.server.server import Server
from tests.harness.tensors import decode, encode

pytestmark = pytest.mark.server

Tensor = tuple[str, str, Sequence[int], Sequence[Any]]  # name, type, shape, values
VLLM, TRTLLM = "llm", "llm_batched"  # the model of each client's shape


def request(
    model: str, tensors: Sequence[Tensor], outputs: Sequence[str] = (), request_id: str = "1"
) -> pb.ModelInferRequest:
    made = pb.ModelInferRequest(model_name=model, id=request_id)
    for name, datatype, shape, values in tensors:
        tensor = made.inputs.add(name=name, datatype=datatype)
        tensor.shape.extend(shape)
        made.raw_input_contents.append(encode(values, datatype))
    for name in outputs:
        made.outputs.add(name=name)
    return made


@dataclasses.dataclass
class Received:
    """The responses of one request as a client's library gives them."""

    responses: list[pb.ModelInferResponse]

    def column(self, name: str) -> list[list[Any]]:
        """An output of every response that has it."""
        found = []
        for response in self.responses:
            for place, output in enumerate(response.outputs):
                if output.name == name:
                    found.append(decode(response.raw_output_contents[place], output.datatype))
        return found

    @property
    def text(self) -> str:
        """The texts joined, as every streaming client does."""
        return b"".join(values[0] for values in self.column("text_output")).decode()

    def type_of(self, name: str) -> str:
        return next(output.datatype for output in self.responses[0].outputs if output.name == name)


def send(server: Server, made: pb.ModelInferRequest, empty_final: bool = False) -> Received:
    """One request on a stream of its own; an error is raised with its text."""
    if empty_final:
        made.parameters["triton_enable_empty_final_response"].bool_param = True
    with grpc_library.insecure_channel(server.grpc_url) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        found = []
        for message in stub.ModelStreamInfer(iter([made]), timeout=30):
            if message.error_message:
                raise RuntimeError(message.error_message)
            found.append(message.infer_response)
    assert [response.parameters["triton_final_response"].bool_param for response in found] == (
        [False] * (len(found) - 1) + [True]
    )
    return Received(found)


def post(server: Server, path: str, body: dict[str, Any]) -> tuple[int, str]:
    connection = http.client.HTTPConnection(server.http_url, timeout=30)
    try:
        connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()


def generate(server: Server, body: dict[str, Any], model: str = VLLM) -> dict[str, Any]:
    status, text = post(server, f"/v2/models/{model}/generate", body)
    assert status == 200, text
    answer = json.loads(text)
    assert isinstance(answer["text_output"], str)
    assert isinstance(answer, dict)
    return answer


def events(server: Server, body: dict[str, Any], model: str = VLLM) -> list[dict[str, Any]]:
    status, text = post(server, f"/v2/models/{model}/generate_stream", body)
    assert status == 200, text
    return [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: ")]


# -- Triton's OpenAI front end ---------------------------------------------------------------------------------------


def openai_vllm(stream: bool, **sampling: Any) -> list[Tensor]:
    return [
        ("text_input", "BYTES", [1], ["<|user|>Hi<|assistant|>"]),
        ("stream", "BOOL", [1], [stream]),
        ("sampling_parameters", "BYTES", [1], [json.dumps(sampling)]),
        ("exclude_input_in_output", "BOOL", [1], [True]),
        ("return_logprobs", "BOOL", [1], [False]),
        ("return_num_input_tokens", "BOOL", [1], [True]),
        ("return_num_output_tokens", "BOOL", [1], [True]),
    ]


SAMPLING = {
    "temperature": 0.7,
    "top_p": 0.9,
    "frequency_penalty": 0.1,
    "presence_penalty": 0.2,
    "n": 1,
    "seed": 7,
    "stop": ["<|end|>", "###"],
    "min_tokens": 1,
    "ignore_eos": False,
    "max_tokens": 12,
}


def reads_like_the_openai_front_end(received: Received, stream: bool) -> None:
    """It takes one element of each text, the first num_input_tokens and the sum of the num_output_tokens."""
    assert all(len(values) == 1 for values in received.column("text_output"))
    assert "\0" not in received.text
    assert received.type_of("num_input_tokens") in ("UINT32", "INT32")
    assert received.type_of("num_output_tokens") in ("UINT32", "INT32")
    assert received.column("num_input_tokens")[0][0] > 0
    assert sum(values[0] for values in received.column("num_output_tokens")) == 12
    assert stream or len(received.responses) == 1


@pytest.mark.parametrize("stream", [True, False])
def test_openai_front_end_with_the_vllm_profile(stream: bool, server: Server) -> None:
    received = send(server, request(VLLM, openai_vllm(stream, **SAMPLING)))
    reads_like_the_openai_front_end(received, stream)
    whole = send(server, request(VLLM, openai_vllm(False, **SAMPLING)))
    assert received.text == whole.text


def test_openai_front_end_with_the_vllm_profile_and_one_stop_string(server: Server) -> None:
    sampling = {**SAMPLING, "stop": "###"}
    assert send(server, request(VLLM, openai_vllm(False, **sampling))).text


@pytest.mark.parametrize("stream", [True, False])
def test_openai_front_end_with_the_tensorrt_llm_profile(stream: bool, server: Server) -> None:
    """What a backend of any other name than vllm is sent."""
    tensors: list[Tensor] = [
        ("text_input", "BYTES", [1, 1], ["<|user|>Hi<|assistant|>"]),
        ("stream", "BOOL", [1, 1], [stream]),
        ("max_tokens", "INT32", [1, 1], [12]),
        ("stop_words", "BYTES", [1, 2], ["<|end|>", "###"]),
        ("top_p", "FP32", [1, 1], [0.9]),
        ("temperature", "FP32", [1, 1], [0.7]),
        ("frequency_penalty", "FP32", [1, 1], [0.1]),
        ("presence_penalty", "FP32", [1, 1], [0.2]),
        ("seed", "UINT64", [1, 1], [7]),
        ("return_num_input_tokens", "BOOL", [1, 1], [True]),
        ("return_num_output_tokens", "BOOL", [1, 1], [True]),
    ]
    received = send(server, request(TRTLLM, tensors))
    reads_like_the_openai_front_end(received, stream)


def test_openai_front_end_with_echo(server: Server) -> None:
    tensors: list[Tensor] = [
        ("text_input", "BYTES", [1, 1], ["Say this"]),
        ("stream", "BOOL", [1, 1], [False]),
        ("max_tokens", "INT32", [1, 1], [4]),
        ("exclude_input_in_output", "BOOL", [1, 1], [False]),
    ]
    assert send(server, request(TRTLLM, tensors)).text.startswith("Say this")


def test_openai_front_end_with_a_named_tool_is_refused_by_name_where_no_guide_is(server: Server) -> None:
    tensors: list[Tensor] = [
        ("text_input", "BYTES", [1, 1], ["Hi"]),
        ("stream", "BOOL", [1, 1], [False]),
        ("max_tokens", "INT32", [1, 1], [4]),
        ("guided_decoding_guide_type", "BYTES", [1, 1], ["json_schema"]),
        ("guided_decoding_guide", "BYTES", [1, 1], ['{"type": "object"}']),
    ]
    with pytest.raises(RuntimeError, match="guided_decoding_guide_type is not supported"):
        send(server, request(TRTLLM, tensors))


# -- vllm_backend ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [True, False])
def test_the_client_of_vllm_backend_with_numbers_as_strings(stream: bool, server: Server) -> None:
    tensors: list[Tensor] = [
        ("text_input", "BYTES", [1], ["Hello, my name is"]),
        ("stream", "BOOL", [1], [stream]),
        ("sampling_parameters", "BYTES", [1], ['{"temperature": "0.1", "top_p": "0.95", "max_tokens": "10"}']),
        ("exclude_input_in_output", "BOOL", [1], [False]),
    ]
    received = send(server, request(VLLM, tensors, ["text_output"]), empty_final=True)
    assert received.text.startswith("Hello, my name is") is not stream, "no peer puts the prompt into a stream"
    assert [output.name for output in received.responses[0].outputs] == ["text_output"]


def test_vllm_backends_additional_outputs(server: Server) -> None:
    flags = ["finish_reason", "cumulative_logprob", "logprobs", "num_input_tokens", "num_output_tokens"]
    tensors: list[Tensor] = [
        ("text_input", "BYTES", [1], ["The future of AI is"]),
        ("stream", "BOOL", [1], [True]),
        ("sampling_parameters", "BYTES", [1], ['{"max_tokens": 6, "logprobs": 0}']),
        *(("return_" + name, "BOOL", [1], [True]) for name in flags),
    ]
    received = send(server, request(VLLM, tensors))
    for name in flags:
        assert len(received.column(name)) == len(received.responses)
    assert received.column("finish_reason")[-1] == [b"length"]
    assert sum(values[0] for values in received.column("num_output_tokens")) == 6


@pytest.mark.parametrize(
    "body",
    [
        {"text_input": "What is Triton?", "parameters": {"stream": False, "temperature": 0}},
        {
            "text_input": "What is Triton?",
            "parameters": {"stream": False, "temperature": 0, "exclude_input_in_output": True},
        },
        {
            "text_input": "What is Triton?",
            "stream": False,
            "sampling_parameters": '{"temperature": 0, "max_tokens": 8}',
        },
    ],
)
def test_vllm_backends_generate_examples(body: dict[str, Any], server: Server) -> None:
    answer = generate(server, body)
    assert answer["model_name"] == "llm"
    streamed = json.loads(json.dumps(body))
    streamed.get("parameters", streamed)["stream"] = True
    assert "".join(event["text_output"] for event in events(server, streamed)) == answer["text_output"]


# -- TensorRT-LLM's ensemble and BLS model ---------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("without", [None, "min_tokens"], ids=["every input", "without min_tokens"])
def test_a_client_of_the_tensorrt_llm_ensemble(without: str | None, stream: bool, server: Server) -> None:
    tensors: list[Tensor] = [
        ("text_input", "BYTES", [1, 1], ["Born in north-east France, Soyer trained as a"]),
        ("max_tokens", "INT32", [1, 1], [9]),
        ("bad_words", "BYTES", [1, 1], [""]),
        ("stop_words", "BYTES", [1, 1], [""]),
        ("stream", "BOOL", [1, 1], [stream]),
        ("beam_width", "INT32", [1, 1], [1]),
        ("end_id", "INT32", [1, 1], [-1]),
        ("pad_id", "INT32", [1, 1], [-1]),
        ("top_k", "INT32", [1, 1], [1]),
        ("top_p", "FP32", [1, 1], [1.0]),
        ("temperature", "FP32", [1, 1], [1.0]),
        ("length_penalty", "FP32", [1, 1], [1.0]),
        ("repetition_penalty", "FP32", [1, 1], [1.0]),
        ("presence_penalty", "FP32", [1, 1], [0.0]),
        ("frequency_penalty", "FP32", [1, 1], [0.0]),
        ("min_tokens", "INT32", [1, 1], [1]),
        ("seed", "UINT64", [1, 1], [42]),
        ("num_return_sequences", "INT32", [1, 1], [1]),
        ("return_log_probs", "BOOL", [1, 1], [True]),
        ("exclude_input_in_output", "BOOL", [1, 1], [True]),
    ]
    received = send(server, request(TRTLLM, [tensor for tensor in tensors if tensor[0] != without]))
    assert received.text
    assert sum(len(values) for values in received.column("output_log_probs")) == 9
    assert received.type_of("cum_log_probs") == "FP32"
    assert all(output.shape[0] == 1 for response in received.responses for output in response.outputs)


@pytest.mark.parametrize("model", [VLLM, TRTLLM])
def test_generate_as_the_tensorrt_llm_readme_writes_it(model: str, server: Server) -> None:
    body = {"text_input": "What is machine learning?", "max_tokens": 9, "bad_words": "", "stop_words": ""}
    plain = generate(server, body, model)
    assert generate(server, {**body, "pad_id": 2, "end_id": -1}, model)["text_output"] == plain["text_output"]
    assert generate(server, {**body, "parameters": {"top_k": 1}}, model)["text_output"] == plain["text_output"]


# -- genai-perf and perf_analyzer ------------------------------------------------------------------------------------


def test_genai_perf_with_the_tensorrt_llm_converter(server: Server) -> None:
    tensors: list[Tensor] = [
        ("text_input", "BYTES", [1, 1], ["synthetic prompt"]),
        ("exclude_input_in_output", "BOOL", [1, 1], [True]),
        ("stream", "BOOL", [1, 1], [True]),
        ("max_tokens", "INT32", [1, 1], [16]),
        ("min_length", "INT32", [1, 1], [16]),
    ]
    received = send(server, request(TRTLLM, tensors), empty_final=True)
    assert all(values[0] for values in received.column("text_output")), "it drops empty responses"
    flat: list[Tensor] = [(name, datatype, [1], values) for name, datatype, _, values in tensors]
    assert send(server, request(VLLM, flat), empty_final=True).text == received.text


def test_genai_perf_with_the_vllm_converter(server: Server) -> None:
    tensors: list[Tensor] = [
        ("text_input", "BYTES", [1], ["synthetic prompt"]),
        ("exclude_input_in_output", "BOOL", [1], [True]),
        ("stream", "BOOL", [1], [True]),
        ("sampling_parameters", "BYTES", [1], ['{"max_tokens": "16", "min_tokens": "16"}']),
    ]
    assert send(server, request(VLLM, tensors), empty_final=True).text


def test_genai_perf_with_triton_generate(server: Server) -> None:
    found = events(server, {"text_input": "synthetic prompt", "stream": True, "max_tokens": 16})
    assert "".join(event["text_output"] for event in found)


# -- LiteLLM, llama-index, openai_trtllm, Dify, KServe and Dynamo ----------------------------------------------------


@pytest.mark.parametrize("model", [VLLM, TRTLLM])
def test_litellm(model: str, server: Server) -> None:
    parameters = {"max_tokens": 20, "bad_words": [""], "stop_words": [""], "temperature": 0.5, "top_p": 0.9}
    body = {"text_input": "user: Hi", "parameters": parameters, "stream": False}
    assert generate(server, body, model)["text_output"]
    found = events(server, {**body, "stream": True}, model)
    assert all(isinstance(event["text_output"], str) for event in found)


def test_openai_trtllm_proxy(server: Server) -> None:
    tensors: list[Tensor] = [
        ("text_input", "BYTES", [1, 1], ["Hello"]),
        ("max_tokens", "INT32", [1, 1], [10]),
        ("bad_words", "BYTES", [1, 1], [""]),
        ("stop_words", "BYTES", [1, 1], ["</s>"]),
        ("top_p", "FP32", [1, 1], [1.0]),
        ("temperature", "FP32", [1, 1], [1.0]),
        ("presence_penalty", "FP32", [1, 1], [0.0]),
        ("beam_width", "INT32", [1, 1], [1]),
        ("stream", "BOOL", [1, 1], [True]),
        ("random_seed", "UINT64", [1, 1], [3]),
    ]
    assert send(server, request(TRTLLM, tensors)).text


@pytest.mark.parametrize("model", [VLLM, TRTLLM])
def test_dify(model: str, server: Server) -> None:
    parameters = {
        "stream": False,
        "temperature": 0.7,
        "top_p": 0.9,
        "top_k": 40,
        "presence_penalty": 0.1,
        "frequency_penalty": 0.1,
    }
    assert generate(server, {"text_input": "Hi", "max_tokens": 10, "parameters": parameters}, model)["text_output"]


@pytest.mark.parametrize("streaming", [True, False])
def test_kserve_front_end_of_dynamo(streaming: bool, server: Server) -> None:
    tensors: list[Tensor] = [("text_input", "BYTES", [1], ["Hello"]), ("streaming", "BOOL", [1], [streaming])]
    received = send(server, request(VLLM, tensors))
    assert received.text
    assert streaming or len(received.responses) == 1
    named = send(server, request(VLLM, tensors, ["text_output", "finish_reason"]))
    assert named.text == received.text


def test_langchain_nvidia_trts_unsigned_numbers_are_refused_by_core(server: Server) -> None:
    """Documented: its UINT32 cannot be served beside everybody else's INT32."""
    tensors: list[Tensor] = [("text_input", "BYTES", [1, 1], ["Hello"]), ("max_tokens", "UINT32", [1, 1], [10])]
    with pytest.raises(RuntimeError, match=r"max_tokens.*UINT32.*INT32"):
        send(server, request(TRTLLM, tensors))


def test_a_unary_kserve_client_is_told_why_it_cannot(server: Server) -> None:
    body = {"inputs": [{"name": "text_input", "datatype": "BYTES", "shape": [1], "data": ["Hi"]}]}
    status, text = post(server, "/v2/models/llm/infer", body)
    assert status in (400, 501)
    assert "decoupled" in text


def test_a_request_id_and_headers_come_through(server: Server) -> None:
    answer = generate(
        server, {"text_input": "Hi", "id": "mine-7", "max_tokens": 2, "priority": 1, "timeout": 30_000_000}
    )
    assert answer.get("id", "mine-7") == "mine-7"
