"""The contract's tables against its names, written out here: a lost name or another type breaks clients."""

from __future__ import annotations

import re
from typing import Any

import pytest

from inflight.model.parameters import model_parameters
from inflight.request.contract import INPUTS, JSON_ALIASES, JSON_ONLY, OUTPUTS, RANKS, VLLM_DEFAULTS, declared_inputs
from inflight.triton.config import auto_complete, instance_count, is_whole, tensors
from inflight_tools.common.layout import REPOSITORY

pytestmark = pytest.mark.fast

INPUTS_OF_THE_DESIGN = {
    "text_input": ("STRING", 1),
    "messages": ("STRING", 1),
    "input_ids": ("INT32", -1),
    "tools": ("STRING", 1),
    "tool_choice": ("STRING", 1),
    "parallel_tool_calls": ("BOOL", 1),
    "documents": ("STRING", 1),
    "chat_template_kwargs": ("STRING", 1),
    "add_generation_prompt": ("BOOL", 1),
    "continue_final_message": ("BOOL", 1),
    "reasoning": ("BOOL", 1),
    "include_stop_str_in_output": ("BOOL", 1),
    "stream": ("BOOL", 1),
    "streaming": ("BOOL", 1),
    "sampling_parameters": ("STRING", 1),
    "max_tokens": ("INT32", 1),
    "min_tokens": ("INT32", 1),
    "min_length": ("INT32", 1),
    "ignore_eos": ("BOOL", 1),
    "end_id": ("INT32", 1),
    "temperature": ("FP32", 1),
    "top_p": ("FP32", 1),
    "top_k": ("INT32", 1),
    "min_p": ("FP32", 1),
    "repetition_penalty": ("FP32", 1),
    "presence_penalty": ("FP32", 1),
    "frequency_penalty": ("FP32", 1),
    "length_penalty": ("FP32", 1),
    "seed": ("UINT64", 1),
    "random_seed": ("UINT64", 1),
    "stop_words": ("STRING", -1),
    "bad_words": ("STRING", -1),
    "num_return_sequences": ("INT32", 1),
    "beam_width": ("INT32", 1),
    "logprobs": ("INT32", 1),
    "return_log_probs": ("BOOL", 1),
    "return_logprobs": ("BOOL", 1),
    "exclude_input_in_output": ("BOOL", 1),
    "return_finish_reason": ("BOOL", 1),
    "return_cumulative_logprob": ("BOOL", 1),
    "return_num_input_tokens": ("BOOL", 1),
    "return_num_output_tokens": ("BOOL", 1),
    "return_perf_metrics": ("BOOL", 1),
    "return_token_ids": ("BOOL", 1),
    "return_model_info": ("BOOL", 1),
    "guided_decoding_guide_type": ("STRING", 1),
    "guided_decoding_guide": ("STRING", 1),
    "lora_name": ("STRING", 1),
    "skip_special_tokens": ("BOOL", 1),
    "add_special_tokens": ("BOOL", 1),
    "cache_salt": ("STRING", 1),
    "request_priority": ("INT32", 1),
    "deadline_ms": ("INT32", 1),
    "pad_id": ("INT32", 1),
}
OUTPUTS_OF_THE_DESIGN = {
    "text_output": ("STRING", -1),
    "finish_reason": ("STRING", -1),
    "stop_reason": ("STRING", -1),
    "reasoning_output": ("STRING", -1),
    "tool_calls": ("STRING", -1),
    "num_cached_tokens": ("UINT32", -1),
    "sequence_index": ("INT32", -1),
    "output_ids": ("INT32", -1),
    "cumulative_logprob": ("FP32", -1),
    "cum_log_probs": ("FP32", -1),
    "output_log_probs": ("FP32", -1),
    "logprobs": ("STRING", -1),
    "num_input_tokens": ("UINT32", -1),
    "num_output_tokens": ("UINT32", -1),
    "model_info": ("STRING", 1),
    "arrival_time_ns": ("INT64", 1),
    "first_scheduled_time_ns": ("INT64", 1),
    "first_token_time_ns": ("INT64", 1),
    "last_token_time_ns": ("INT64", 1),
    "kv_cache_reused_block": ("INT32", 1),
}


class FakeConfig:
    """Triton's ModelConfig, as far as auto-completion uses it."""

    def __init__(self) -> None:
        self.inputs: list[dict[str, Any]] = []
        self.outputs: list[dict[str, Any]] = []
        self.policy: dict[str, Any] = {}

    def add_input(self, value: dict[str, Any]) -> None:
        self.inputs.append(value)

    def add_output(self, value: dict[str, Any]) -> None:
        self.outputs.append(value)

    def set_model_transaction_policy(self, value: dict[str, Any]) -> None:
        self.policy = value


def test_the_inputs_are_the_designs() -> None:
    assert {name: (type_, dims) for name, type_, dims in declared_inputs()} == INPUTS_OF_THE_DESIGN


def test_the_outputs_are_the_designs() -> None:
    assert {item.name: (item.type, item.dims) for item in OUTPUTS} == OUTPUTS_OF_THE_DESIGN


def test_no_name_is_declared_twice() -> None:
    names = [name for name, _, _ in declared_inputs()]
    assert len(names) == len(set(names))
    assert not set(JSON_ALIASES) & set(names)
    assert not set(JSON_ONLY) & set(names)
    assert not set(VLLM_DEFAULTS) & (set(names) | set(JSON_ONLY) | set(JSON_ALIASES))


def test_the_names_that_only_json_knows() -> None:
    assert JSON_ALIASES == {
        "n": "num_return_sequences",
        "stop": "stop_words",
        "guided_decoding": "structured_outputs",
    }
    assert set(JSON_ONLY) == {"stop_token_ids", "best_of", "structured_outputs"}


def test_every_row_says_what_it_is() -> None:
    assert all(item.note for item in INPUTS)
    assert all(item.note and item.when for item in OUTPUTS)


def test_auto_completion_fills_everything() -> None:
    config = auto_complete(FakeConfig())
    assert {
        item["name"]: (item["data_type"].removeprefix("TYPE_"), *item["dims"]) for item in config.inputs
    } == INPUTS_OF_THE_DESIGN
    assert all(item["optional"] is True for item in config.inputs)
    assert {
        item["name"]: (item["data_type"].removeprefix("TYPE_"), *item["dims"]) for item in config.outputs
    } == OUTPUTS_OF_THE_DESIGN
    assert config.policy == {"decoupled": True}


@pytest.mark.parametrize(
    ("groups", "count"),
    [
        ([], 0),
        ([{"count": 1, "kind": "KIND_MODEL"}], 1),
        ([{"kind": "KIND_CPU"}], 1),
        ([{"count": 2, "kind": "KIND_CPU"}], 2),
        ([{"count": 1, "kind": "KIND_GPU", "gpus": [0, 1]}], 2),
        ([{"count": 1, "kind": "KIND_GPU", "gpus": []}], 1),
        ([{"count": 1, "kind": "KIND_CPU"}, {"count": 1, "kind": "KIND_MODEL"}], 2),
    ],
)
def test_instances_are_counted_over_all_groups(groups: list[dict[str, Any]], count: int) -> None:
    assert instance_count({"instance_group": groups}) == count


def test_the_shipped_configurations_name_a_kind_that_every_client_knows() -> None:
    """pytriton's client reads the configuration before its first request and dies of any other kind."""
    for model in ("llm", "llm_batched"):
        text = (REPOSITORY / "model_repository" / model / "config.pbtxt").read_text(encoding="utf-8")
        (kind,) = re.findall(r"^instance_group .*kind: (\w+)", text, re.MULTILINE)
        assert kind in ("KIND_AUTO", "KIND_CPU", "KIND_GPU")


def test_every_engine_says_which_ranks_it_tells() -> None:
    assert {*RANKS, "auto"} == set(model_parameters()["engine"].choices)


def test_a_whole_configuration_is_known_as_one() -> None:
    """The shipped ones are, what `inflight serve` writes is, and one that leaves anything to Triton is not."""
    for name in ("llm", "llm_batched"):
        assert is_whole((REPOSITORY / "model_repository" / name / "config.pbtxt").read_text(encoding="utf-8"))
    head = 'backend: "inflight"\nmodel_transaction_policy { decoupled: true }\n'
    assert is_whole(head + tensors())
    assert not is_whole(head)
    assert not is_whole(tensors())
    last = tensors().splitlines()[-1]
    assert not is_whole(head + tensors().replace(last, f"# {last}"))
