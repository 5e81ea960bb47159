"""What the peers' own tests and clients say of a server of ours: the rows of the tables in docs/requests.md, and what
tests/integration/test_peer_suites.py holds against the originals where a checkout of them is given.
"""

from __future__ import annotations

import dataclasses

OPT_WORDS = "expects the words of opt-125m"


@dataclasses.dataclass(frozen=True, slots=True)
class Suite:
    """A file of vllm_backend's `ci/`, and for each of its tests why it fails here; empty: it passes."""

    path: str
    tests: dict[str, str]


VLLM_CI: tuple[Suite, ...] = (
    Suite(
        "L0_backend_vllm/enabled_stream/enabled_stream_test.py",
        {
            "test_vllm_model_enabled_stream": "",
            "test_vllm_model_enabled_stream_exclude_input_in_output_default": OPT_WORDS,
            "test_vllm_model_enabled_stream_exclude_input_in_output_false": "expects the error; see the table above",
        },
    ),
    Suite(
        "L0_backend_vllm/vllm_backend/vllm_backend_test.py",
        {
            "test_vllm_triton_backend": "",
            "test_model_with_invalid_attributes": "",
            "test_vllm_invalid_model_name": "",
            "test_exclude_input_in_output_default": OPT_WORDS,
            "test_exclude_input_in_output_false": OPT_WORDS,
            "test_exclude_input_in_output_true": OPT_WORDS,
        },
    ),
    Suite(
        "L0_backend_vllm/request_cancellation/request_cancellation_test.py",
        {"test_request_cancellation": "is CANCELLED as it expects, then looks for lines of vLLM's log"},
    ),
)


def additional_outputs(engine: str, returns: str, logprobs: str, finish: str, stream: str) -> str:
    """Why a case of vllm_backend's additional_outputs_test.py fails here on an engine (openvino or vllm), by the values
    of its parameters `return_logprobs`, `logprobs`, `return_finish_reason` and `stream`; empty: it passes.
    """
    if engine == "openvino" and logprobs == "2" and returns != "False":
        return "OpenVINO has no likeliest tokens"
    if returns == "None" and logprobs != "None":
        return "`logprobs` without `return_logprobs`"
    if returns == "True" and logprobs == "None":
        return "`return_logprobs` without `logprobs`"
    if finish == "True" and stream == "True":
        return "`finish_reason` before the end of a stream"
    return ""


@dataclasses.dataclass(frozen=True, slots=True)
class Tried:
    """One suite or client: what of it passes, and what does not, with the reason."""

    what: str
    passes: str
    fails: str


def tried() -> list[Tried]:
    """Every row of the table in docs/requests.md."""
    rows = []
    for suite in VLLM_CI:
        failing = [f"`{name}` {why}" for name, why in suite.tests.items() if why]
        passing = sum(not why for why in suite.tests.values())
        what = f"vllm_backend's ci, {suite.path.rsplit('/', 1)[-1].removesuffix('.py')}"
        rows.append(Tried(what, f"{passing} of {len(suite.tests)}", "; ".join(failing)))
    return rows + list(_TRIED)


# Arguments of NVIDIA's end_to_end_grpc_client.py, and what it then prints.
END_TO_END: tuple[tuple[str, str], ...] = (
    ("", r"0: The capital of France is\S* \w+"),
    ("--exclude-input-in-output", r"0: \s*\w+"),
    ("--streaming", r"0 \[b'"),
    ("--streaming --return-log-probs", r"output_log_probs.shape: \(1, \d+\)"),
    ("--return-log-probs", r"output_log_probs.shape: \(1, 8\)"),
    ("--streaming -n 2 --temperature 1.0", r"0 \[b'"),
    ("--stop-words Paris France", r"0: The capital of France is"),
    ("--repetition-penalty 1.2 --presence-penalty 0.1 --frequency-penalty 0.1", r"0: The capital of France is"),
    ("--end-id 2 --pad-id 2", r"0: The capital of France is"),
    ("--bad-words Paris", r"bad_words is not supported"),
    ("--return-context-logits", r"unexpected inference (input|output)"),
    ("--return-kv-cache-reuse-stats", r"unexpected inference (input|output)"),
)


@dataclasses.dataclass(frozen=True, slots=True)
class Difference:
    """One thing that a client meets otherwise than at the peer."""

    what: str
    there: str
    here: str


FROM_VLLM: tuple[Difference, ...] = (
    Difference(
        "`exclude_input_in_output` left out",
        "whole answers begin with the prompt",
        "as the model parameter of that name says; it is `true` unless set",
    ),
    Difference(
        "`exclude_input_in_output` false, streaming", "an error", "a stream without the prompt (`stream_echo`: with)"
    ),
    Difference("`finish_reason` before the end of a stream", "`None`", "empty"),
    Difference("`finish_reason` at the end", "stop, length", "stop, length, cancelled, deadline"),
    Difference("`logprobs` without `return_logprobs`", "computed and not sent", "sent"),
    Difference(
        "fields of a token in `logprobs`",
        "three, which NVIDIA's test of the backend counts",
        "with `return_logprobs` these, and `bytes` where the text is not all of the token (part of a character); with "
        "`return_log_probs`, or with `logprobs` alone, every token has `bytes`",
    ),
    Difference("`return_logprobs` without `logprobs`", "JSON `null`", "the chosen tokens', as with `logprobs` 0"),
    Difference(
        "`logprobs` above 0", "always", "where the engine has them ([engines.md](engines.md)), else UNSUPPORTED"
    ),
    Difference("`num_input_tokens`", "shape `[]`", "shape `[1]`"),
    Difference("`max_tokens` left out", "16", "model parameter `default_max_tokens`, 256"),
    Difference("`temperature` left out", "1", "the checkpoint's generation_config.json, else greedy"),
    Difference("a stream's responses", "one per step of the engine", "one or more tokens each, merged under load"),
    Difference(
        "keys of SamplingParams without a counterpart here", "act", "taken at vLLM's defaults, else refused by name"
    ),
    Difference("`image`, `embedding_request`", "inputs", "not here: Triton's core refuses them by name"),
    Difference("a request that is wrong", "INTERNAL", "INVALID_ARG or UNSUPPORTED, with the parameter's name"),
    Difference("a whole answer whose client leaves", "what there is, as an answer", "CANCELLED"),
    Difference("names of metrics", "`vllm:…`", "[operating.md](operating.md)"),
)
FROM_TRTLLM: tuple[Difference, ...] = (
    Difference(
        "several sequences, not streaming",
        "a response for each, with its `sequence_index`",
        "one response with all: a client that reads the first element sees the first answer",
    ),
    Difference("`max_tokens` left out", "refused", "model parameter `default_max_tokens`, 256"),
    Difference("several prompts in one request", "a batch", "refused: one request has one prompt"),
    Difference(
        "a step after it in an ensemble",
        "`text_output` `[n]`",
        "the same, so such a step has `max_batch_size: 0` and `dims: [ -1 ]`",
    ),
    Difference(
        "context and generation logits, embedding bias, prompt tables, draft logits, KV reuse counts",
        "inputs and outputs",
        "not here: Triton's core refuses them by name",
    ),
    Difference("UINT32 where others send INT32 (langchain-nvidia-trt)", "by the model's configuration", "core refuses"),
    Difference("the inner models (`preprocessing`, `tensorrt_llm`, `postprocessing`)", "models", "one model"),
    Difference("ending an earlier request by the input `stop`", "acts", "core refuses; end the stream instead"),
)
_TRIED: tuple[Tried, ...] = (
    Tried(
        "vllm_backend's ci, additional_outputs_test, every seventh of 1,458 cases, with 10 tokens",
        "97 of 209",
        "46 ask for likeliest tokens, which OpenVINO lacks; the others meet a row about `logprobs` or `finish_reason`",
    ),
    Tried("vllm_backend's sample client", "streams, whole answers", ""),
    Tried(
        "NVIDIA's end_to_end_grpc_client (v0.18.2), to a model named `ensemble`",
        "whole answers, streams, log-probabilities, several sequences, stop words, penalties, end and pad ids",
        "of several sequences in one answer it shows the first; logits and KV reuse counts are refused by core, "
        "`--bad-words` by OpenVINO",
    ),
    Tried(
        "llama-index-llms-nvidia-triton 0.6.0",
        "complete, chat, stream",
        "it ends after one response less than `max_tokens`, whatever answers",
    ),
    Tried(
        "pytriton 0.7.0's `DecoupledModelClient`",
        "all, with the model parameter `empty_final_response`",
        "without it the last text of a stream is lost, and a whole answer: it drops what comes with the final response",
    ),
    Tried(
        "langchain-nvidia-trt 0.0.1rc0, by hand, with langchain-core below 0.3",
        "",
        "sends UINT32 for INT32, which core refuses",
    ),
    Tried("perf_analyzer 2.51 on both shapes, by hand", "streams at a concurrency", ""),
)
