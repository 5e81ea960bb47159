"""What the peers' own clients send, and how they read the answer: by index, in their own order, with their defaults.

Written anew from what each client does; the originals run where a checkout is given (tests/integration/
test_peer_suites.py). Clients that only need to be answered are in test_clients.py.
"""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest
import tritonclient.grpc as triton

from inflight_tools.server.server import Server
from tests.contract.test_clients import TRTLLM, VLLM, Received, Tensor, generate, openai_vllm, request, send

pytestmark = pytest.mark.server


def arrays(received: Received, name: str) -> list[Any]:
    """An output of every response as tritonclient gives it: an array, or None."""
    return [triton.InferResult(response).as_numpy(name) for response in received.responses]


# -- NVIDIA's end_to_end_grpc_client.py ------------------------------------------------------------------------------


def end_to_end(stream: bool, **more: Any) -> list[Tensor]:
    """Its inputs, each [1,1], in its order. Flags that are not given on its command line are not sent."""
    values: dict[str, tuple[str, Any]] = {
        "text_input": ("BYTES", "The capital of France is"),
        "max_tokens": ("INT32", 12),
        "stream": ("BOOL", stream),
        "beam_width": ("INT32", 1),
        "temperature": ("FP32", 1.0),
        **more,
        "exclude_input_in_output": ("BOOL", True),
    }
    return [(name, datatype, [1, 1], [value]) for name, (datatype, value) in values.items()]


def reads_like_the_end_to_end_client(received: Received, sequences: int = 1) -> list[str]:
    """It decodes the first text of each response and puts it where `sequence_index[0][0]` says."""
    found = [""] * sequences
    for text, index in zip(arrays(received, "text_output"), arrays(received, "sequence_index"), strict=True):
        found[0 if index is None else index[0][0]] += text[0].decode("utf-8")
    return found


@pytest.mark.parametrize("stream", [True, False])
def test_nvidias_end_to_end_client(stream: bool, server: Server) -> None:
    received = send(server, request(TRTLLM, end_to_end(stream), ["text_output"]))
    (text,) = reads_like_the_end_to_end_client(received)
    assert text == received.text != ""


def test_nvidias_end_to_end_client_with_several_answers(server: Server) -> None:
    tensors = end_to_end(True, num_return_sequences=("INT32", 2), top_k=("INT32", 0), seed=("UINT64", 5))
    received = send(server, request(TRTLLM, tensors, ["text_output", "sequence_index"]))
    first, second = reads_like_the_end_to_end_client(received, 2)
    assert first
    assert second


@pytest.mark.parametrize("stream", [True, False])
def test_nvidias_end_to_end_client_with_log_probabilities(stream: bool, server: Server) -> None:
    tensors = end_to_end(stream, return_log_probs=("BOOL", True))
    named = ["text_output", "cum_log_probs", "output_log_probs"]
    received = send(server, request(TRTLLM, tensors, named))
    assert reads_like_the_end_to_end_client(received) == [received.text]
    assert sum(array.shape[1] for array in arrays(received, "output_log_probs")) == 12


# -- llama-index-llms-nvidia-triton ----------------------------------------------------------------------------------

LLAMA_INDEX: list[Tensor] = [
    ("text_input", "BYTES", [1, 1], ["The capital of France is"]),
    ("max_tokens", "INT32", [1, 1], [8]),
    ("top_k", "INT32", [1, 1], [1]),
    ("top_p", "FP32", [1, 1], [0.0]),
    ("temperature", "FP32", [1, 1], [1.0]),
    ("length_penalty", "FP32", [1, 1], [1.0]),
    ("repetition_penalty", "FP32", [1, 1], [1.0]),
    ("random_seed", "UINT64", [1, 1], [0]),
    ("beam_width", "INT32", [1, 1], [1]),
    ("stream", "BOOL", [1, 1], [True]),
]


def test_llama_index(server: Server) -> None:
    """All its defaults: top_p 0 beside top_k 1, and every element of `text_output` is decoded."""
    received = send(server, request(TRTLLM, LLAMA_INDEX, ["text_output"]))
    text = "".join("".join(token.decode() for token in array) for array in arrays(received, "text_output"))
    plain = [tensor for tensor in LLAMA_INDEX if tensor[0] != "top_p"]
    assert text == send(server, request(TRTLLM, plain)).text != "", "a top_p of 0 is none"


def test_the_stop_signal_of_llama_index_harms_nothing(server: Server) -> None:
    """It ends each answer with inputs of NVIDIA's inner model; core refuses them, and the client does not look."""
    stop: list[Tensor] = [
        ("input_ids", "INT32", [1, 1], [0]),
        ("input_lengths", "INT32", [1, 1], [0]),
        ("request_output_len", "UINT32", [1, 1], [0]),
        ("stop", "BOOL", [1, 1], [True]),
    ]
    with pytest.raises(RuntimeError, match="unexpected inference input"):
        send(server, request(TRTLLM, stop))
    assert send(server, request(TRTLLM, LLAMA_INDEX)).text


@pytest.mark.parametrize("model", [VLLM, TRTLLM])
def test_top_p_of_nothing_belongs_to_tensorrt_llms_shape(model: str, server: Server) -> None:
    """vLLM's backend refuses it, and so do we in its shape."""
    shape = [1] if model == VLLM else [1, 1]
    tensors: list[Tensor] = [("text_input", "BYTES", shape, ["Hi"]), ("top_p", "FP32", shape, [0.0])]
    if model == TRTLLM:
        assert send(server, request(model, tensors)).text
        return
    with pytest.raises(RuntimeError, match="top_p must be above 0"):
        send(server, request(model, tensors))


# -- Triton's OpenAI front end ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("seed", [7, -7])
def test_a_chat_of_the_openai_front_end_of_24_11_to_25_11(stream: bool, seed: int, server: Server) -> None:
    """Its schema's `logprobs: false` goes along with every chat, and OpenAI's seeds may be negative."""
    sampling = {"temperature": 0.7, "max_tokens": 12, "seed": seed, "n": 1, "logprobs": False}
    received = send(server, request(VLLM, openai_vllm(stream, **sampling)))
    assert received.text
    assert received.column("logprobs") == []
    again = send(server, request(VLLM, openai_vllm(not stream, **sampling)))
    assert again.text == received.text, "a negative seed is a seed"


@pytest.mark.parametrize(("name", "private"), [("structured_outputs", "_backend"), ("guided_decoding", "backend")])
def test_a_named_tool_of_the_openai_front_end_is_understood(name: str, private: str, server: Server) -> None:
    """A string with every field of vLLM's dataclass. The engine of this server has no guides and says so by the name
    that was sent; tests/integration/test_guided.py sees the same string obeyed.
    """
    unset = {"regex": None, "choice": None, "grammar": None, "json_object": None, "disable_fallback": False}
    unset |= {"disable_any_whitespace": False, "whitespace_pattern": None, "structural_tag": None, private: None}
    guide = json.dumps({"json": {"type": "object", "properties": {"city": {"type": "string"}}}, **unset})
    with pytest.raises(RuntimeError, match=f"^{name} is not supported: the simulated engine"):
        send(server, request(VLLM, openai_vllm(False, max_tokens=8, **{name: guide})))


# -- vllm_backend ----------------------------------------------------------------------------------------------------

PROMPT = "In this example,"


def vllm_backend(stream: bool, sampling: dict[str, Any], **flags: bool | None) -> list[Tensor]:
    tensors: list[Tensor] = [
        ("text_input", "BYTES", [1], [PROMPT]),
        ("stream", "BOOL", [1], [stream]),
        ("sampling_parameters", "BYTES", [1], [json.dumps(sampling)]),
    ]
    return tensors + [(name, "BOOL", [1], [value]) for name, value in flags.items() if value is not None]


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("logprobs", [None, 0])
@pytest.mark.parametrize("asked", [None, True, False])
def test_vllm_backends_log_probabilities(
    stream: bool, logprobs: int | None, asked: bool | None, server: Server
) -> None:
    """Of the form that its clients read, and only when asked for; docs/requests.md says where we send more."""
    sampling = {"temperature": "0", "top_p": "1", "max_tokens": 12}
    if logprobs is not None:
        sampling["logprobs"] = logprobs
    tensors = vllm_backend(stream, sampling, return_logprobs=asked, return_num_output_tokens=True)
    received = send(server, request(VLLM, tensors))
    for name in ("output_ids", "output_log_probs", "cum_log_probs"):
        assert received.column(name) == [], "these are TensorRT-LLM's"
    if asked is False or (asked is None and logprobs is None):
        assert received.column("logprobs") == []
        return
    for response, counted in zip(arrays(received, "logprobs"), arrays(received, "num_output_tokens"), strict=True):
        entries = json.loads(response[0].decode("utf-8"))
        assert len(entries) == counted[0]
        for entry in entries:
            ((token_id, value),) = entry.items()
            assert token_id.isdigit()
            assert set(value) - {"bytes"} == {"logprob", "rank", "decoded_token"}
            partial = "\ufffd" in value["decoded_token"]
            assert ("bytes" in value) == (partial or not asked), "vLLM's name brings vLLM's form"
            assert isinstance(value["logprob"], float)
            assert isinstance(value["decoded_token"], str)


FLAGS = ("return_finish_reason", "return_cumulative_logprob", "return_num_input_tokens", "return_num_output_tokens")


@pytest.mark.parametrize("stream", [True, False])
def test_vllm_backends_flags_decide_which_outputs_are_there(stream: bool, server: Server) -> None:
    sampling = {"temperature": "0", "top_p": "1", "max_tokens": 12}
    for chosen in itertools.product([None, True, False], repeat=len(FLAGS)):
        flags = dict(zip(FLAGS, chosen, strict=True))
        received = send(server, request(VLLM, vllm_backend(stream, sampling, **flags)))
        for flag, value in flags.items():
            found = arrays(received, flag.removeprefix("return_"))
            assert all((array is not None) is (value is True) for array in found), flag
        if flags["return_finish_reason"]:
            reasons = [array[0] for array in arrays(received, "finish_reason")]
            assert reasons == [b""] * (len(reasons) - 1) + [b"length"]


def test_vllms_keys_at_their_defaults(server: Server) -> None:
    """What a client sends that fills in all of vLLM's SamplingParams."""
    sampling = {
        "n": 1,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "repetition_penalty": 1.0,
        "temperature": 0.0,
        "top_p": 1.0,
        "top_k": 0,
        "min_p": 0.0,
        "seed": None,
        "stop": None,
        "stop_token_ids": None,
        "bad_words": None,
        "include_stop_str_in_output": False,
        "ignore_eos": False,
        "max_tokens": 12,
        "min_tokens": 0,
        "logprobs": None,
        "prompt_logprobs": None,
        "detokenize": True,
        "skip_special_tokens": True,
        "spaces_between_special_tokens": True,
        "logits_processors": None,
        "truncate_prompt_tokens": None,
        "structured_outputs": None,
        "logit_bias": None,
        "allowed_token_ids": None,
        "extra_args": None,
    }
    received = send(server, request(VLLM, vllm_backend(False, sampling)))
    assert received.text == send(server, request(VLLM, vllm_backend(False, {"max_tokens": 12}))).text
    with pytest.raises(RuntimeError, match="logit_bias is not supported by this model"):
        send(server, request(VLLM, vllm_backend(False, {**sampling, "logit_bias": {"5": 1.0}})))


@pytest.mark.parametrize("model", [VLLM, TRTLLM])
def test_no_stream_begins_with_the_prompt(model: str, server: Server) -> None:
    """vLLM's backend refuses to, TensorRT-LLM's takes no notice; a whole answer begins with it in both."""
    shape = [1] if model == VLLM else [1, 1]
    for stream in (True, False):
        tensors: list[Tensor] = [
            ("text_input", "BYTES", shape, ["The most dangerous animal is"]),
            ("stream", "BOOL", shape, [stream]),
            ("max_tokens", "INT32", shape, [6]),
            ("exclude_input_in_output", "BOOL", shape, [False]),
        ]
        text = send(server, request(model, tensors)).text
        assert text.startswith("The most dangerous animal is") is not stream


def test_the_readme_of_vllm_backend_through_http(server: Server) -> None:
    body = {"text_input": "What is Triton?", "parameters": {"exclude_input_in_output": False, "max_tokens": 4}}
    assert generate(server, body)["text_output"].startswith("What is Triton?")
