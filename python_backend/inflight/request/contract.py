"""The model's tensors as data: every input and output that clients may rely on (docs/requests.md).

`auto_complete_config`, the request parser, the shipped `config.pbtxt` and `docs/requests.md` all read these two
tables, so that they cannot disagree.
"""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True, slots=True)
class Input:
    """One input tensor. `dims` is 1 for a single value and -1 for a list of any length."""

    name: str
    type: str
    dims: int
    default: str
    note: str
    aliases: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, slots=True)
class Output:
    """One output tensor; `when` says which request makes it appear."""

    name: str
    type: str
    dims: int
    note: str
    when: str = "always"


INPUTS: tuple[Input, ...] = (
    Input("text_input", "STRING", 1, "", "the prompt as it is"),
    Input(
        "messages", "STRING", 1, "", "a JSON string of OpenAI chat messages; the model's own chat template is applied"
    ),
    Input("input_ids", "INT32", -1, "", "prompt token ids"),
    Input(
        "tools", "STRING", 1, "none", "a JSON list of tools in OpenAI's form: the template shows them, calls are read"
    ),
    Input(
        "tool_choice",
        "STRING",
        1,
        "auto with tools",
        "none, auto, required, OpenAI's object as JSON, or the name of a tool",
    ),
    Input("parallel_tool_calls", "BOOL", 1, "true", "false: at most one call"),
    Input("documents", "STRING", 1, "none", "a JSON list of documents for the chat template, where it reads documents"),
    Input(
        "chat_template_kwargs",
        "STRING",
        1,
        "none",
        "a JSON object of further names that the chat template reads, such as enable_thinking",
    ),
    Input("add_generation_prompt", "BOOL", 1, "true", "end the prompt with the beginning of the assistant's turn"),
    Input(
        "continue_final_message",
        "BOOL",
        1,
        "false",
        "the answer goes on with the last message, instead of beginning a turn",
    ),
    Input(
        "reasoning",
        "BOOL",
        1,
        "model parameter default_reasoning",
        "what the model thinks comes as reasoning_output, apart from the answer",
    ),
    Input("stream", "BOOL", 1, "false", "send tokens as they come", ("streaming",)),
    Input("sampling_parameters", "STRING", 1, "", "a JSON object with any of these names; numbers may be strings"),
    Input(
        "max_tokens",
        "INT32",
        1,
        "model parameter default_max_tokens",
        "0: only count the prompt's tokens (return_token_ids: and name them; exclude_input_in_output false: and give "
        "their text); else cut to what the context leaves room for",
    ),
    Input(
        "min_tokens",
        "INT32",
        1,
        "0",
        "no end of sequence, stop token or stop string within this many tokens",
        ("min_length",),
    ),
    Input("ignore_eos", "BOOL", 1, "false", "go on after the end-of-sequence token"),
    Input("end_id", "INT32", 1, "the model's", "the end-of-sequence token id to use instead of the model's"),
    Input("temperature", "FP32", 1, "generation_config.json, else greedy", "0 is greedy"),
    Input(
        "top_p",
        "FP32",
        1,
        "generation_config.json, else 1",
        "above 0, at most 1; in TensorRT-LLM's shape 0 or less is as if not given",
    ),
    Input("top_k", "INT32", 1, "generation_config.json, else all", "0 or -1 is all tokens"),
    Input("min_p", "FP32", 1, "generation_config.json, else 0", "0 to 1"),
    Input("repetition_penalty", "FP32", 1, "generation_config.json, else 1", "above 0"),
    Input("presence_penalty", "FP32", 1, "0", "-2 to 2"),
    Input("frequency_penalty", "FP32", 1, "0", "-2 to 2"),
    Input("length_penalty", "FP32", 1, "1", "needs beam_width above 1"),
    Input(
        "seed",
        "UINT64",
        1,
        "fresh for each request",
        "64 bits; the same seed, alone, gives the same tokens; a negative one (in JSON) is taken modulo 2^64",
        ("random_seed",),
    ),
    Input(
        "stop_words",
        "STRING",
        -1,
        "none",
        "stop strings: matched on text, across tokens, never emitted; special tokens may stand in them",
    ),
    Input(
        "include_stop_str_in_output",
        "BOOL",
        1,
        "false",
        "the stop string, or stop token, that ends an answer stays in its text",
    ),
    Input("bad_words", "STRING", -1, "none", "strings that must not be generated; empty ones are ignored"),
    Input("num_return_sequences", "INT32", 1, "1", "answers to one prompt"),
    Input(
        "beam_width",
        "INT32",
        1,
        "1",
        "above 1 only where the engine has beams; they are not sampled: temperature, top_p, top_k, min_p, seed have no "
        "effect on them",
    ),
    Input(
        "logprobs",
        "INT32",
        1,
        "0",
        "log-probabilities of this many likeliest tokens, unless return_logprobs is false; false is not given",
    ),
    Input(
        "return_log_probs",
        "BOOL",
        1,
        "false",
        "log-probability of each chosen token; each name brings its own backend's outputs",
        ("return_logprobs",),
    ),
    Input(
        "exclude_input_in_output",
        "BOOL",
        1,
        "model parameter of that name",
        "false: a whole answer begins with the prompt; a stream never does (model parameter stream_echo)",
    ),
    Input("return_finish_reason", "BOOL", 1, "false", "send finish_reason"),
    Input("return_cumulative_logprob", "BOOL", 1, "false", "send cumulative_logprob"),
    Input("return_num_input_tokens", "BOOL", 1, "false", "send num_input_tokens"),
    Input("return_num_output_tokens", "BOOL", 1, "false", "send num_output_tokens"),
    Input("return_perf_metrics", "BOOL", 1, "false", "send the request's times with the last response"),
    Input("return_token_ids", "BOOL", 1, "false", "send output_ids"),
    Input("return_model_info", "BOOL", 1, "false", "send model_info; with max_tokens 0 nothing else is done"),
    Input(
        "guided_decoding_guide_type", "STRING", 1, "", "json (any object), json_schema, regex, ebnf_grammar or choice"
    ),
    Input(
        "guided_decoding_guide",
        "STRING",
        1,
        "",
        "the schema (also with type json), pattern, grammar or JSON list of choices",
    ),
    Input("lora_name", "STRING", 1, "", "a LoRA adapter that the engine has"),
    Input("skip_special_tokens", "BOOL", 1, "true", "leave special tokens out of the text"),
    Input("add_special_tokens", "BOOL", 1, "true", "let the tokenizer add its own; never a second BOS"),
    Input("cache_salt", "STRING", 1, "", "reuse cached prefixes only among equal salts"),
    Input("request_priority", "INT32", 1, "0", "-100 to 100, higher first, ageing so that none starves"),
    Input("deadline_ms", "INT32", 1, "model parameter default_deadline_ms", "the answer ends here at the latest"),
    Input("pad_id", "INT32", 1, "", "accepted without effect, for TensorRT-LLM's clients"),
)

# Names that only `sampling_parameters` (JSON) knows, and the input whose value each one stands for.
JSON_ALIASES: dict[str, str] = {
    "n": "num_return_sequences",
    "stop": "stop_words",
    "guided_decoding": "structured_outputs",
}
JSON_ONLY: tuple[str, ...] = ("stop_token_ids", "best_of", "structured_outputs")

# What other servers and libraries call these, for hints. None of them is taken.
ELSEWHERE: dict[str, str] = {
    "bad_words_list": "bad_words",
    "eos_token_id": "end_id",
    "max_completion_tokens": "max_tokens",
    "max_new_tokens": "max_tokens",
    "min_new_tokens": "min_tokens",
    "num_beams": "beam_width",
    "pad_token_id": "pad_id",
    "priority": "request_priority",
    "prompt": "text_input",
    "prompt_token_ids": "input_ids",
    "request_output_len": "max_tokens",
    "runtime_top_k": "top_k",
    "runtime_top_p": "top_p",
    "stop_sequences": "stop_words",
    "stop_strings": "stop_words",
    "top_logprobs": "logprobs",
    "top_n_tokens": "logprobs",
}

# Keys of vLLM's SamplingParams that have no counterpart here, each with the default at which it asks for
# nothing. There, or null, they are taken; any other value is refused by its name.
VLLM_DEFAULTS: dict[str, bool | int | None] = {
    "allowed_token_ids": None,
    "detokenize": True,
    "early_stopping": False,
    "extra_args": None,
    "flat_logprobs": False,
    "logit_bias": None,
    "logits_processors": None,
    "output_kind": 0,
    "prompt_logprobs": None,
    "skip_clone": False,
    "skip_reading_prefix_cache": None,
    "spaces_between_special_tokens": True,
    "stream_interval": None,
    "thinking_token_budget": None,
    "truncate_prompt_tokens": None,
    "use_beam_search": False,
}

OUTPUTS: tuple[Output, ...] = (
    Output(
        "text_output",
        "STRING",
        -1,
        "streaming: the new text of one sequence; otherwise one text per sequence; [-1] in both shapes",
    ),
    Output(
        "finish_reason",
        "STRING",
        -1,
        "stop, length, tool_calls, cancelled or deadline; empty until the end",
        "return_finish_reason",
    ),
    Output(
        "stop_reason",
        "STRING",
        -1,
        "the stop string, or the id of the stop token, that ended it; empty for the model's own end",
        "return_finish_reason",
    ),
    Output(
        "reasoning_output",
        "STRING",
        -1,
        "what the model thought, as text_output has the answer",
        "reasoning, where the model has a form of thoughts",
    ),
    Output(
        "tool_calls",
        "STRING",
        -1,
        "JSON: streaming, what is new of each call ([{index, id, type, function: {name, arguments}}], id, type and "
        "name once); otherwise whole calls",
        "tools, unless tool_choice is none",
    ),
    Output(
        "sequence_index",
        "INT32",
        -1,
        "which sequences the elements belong to",
        "num_return_sequences or beam_width above 1",
    ),
    Output(
        "output_ids",
        "INT32",
        -1,
        "token ids of this response, one sequence after the other",
        "return_token_ids or return_log_probs",
    ),
    Output(
        "cumulative_logprob", "FP32", -1, "sum of log-probabilities so far, per sequence", "return_cumulative_logprob"
    ),
    Output(
        "cum_log_probs",
        "FP32",
        -1,
        "the same under TensorRT-LLM's name",
        "return_cumulative_logprob or return_log_probs",
    ),
    Output("output_log_probs", "FP32", -1, "log-probability of each of these tokens", "return_log_probs"),
    Output(
        "logprobs",
        "STRING",
        -1,
        "JSON: per token {id: {logprob, rank, decoded_token, bytes}}, with return_logprobs in vLLM's form: bytes only "
        "where the text is not all of the token; rank is null where no engine knows it, see below",
        "return_log_probs, return_logprobs, or logprobs",
    ),
    Output("num_input_tokens", "UINT32", -1, "prompt tokens", "return_num_input_tokens"),
    Output(
        "num_cached_tokens",
        "UINT32",
        -1,
        "prompt tokens that were in the cache, where the engine tells: not OpenVINO",
        "return_num_input_tokens, last response",
    ),
    Output(
        "num_output_tokens",
        "UINT32",
        -1,
        "generated tokens, per sequence; streaming: of this response",
        "return_num_output_tokens; always beside the tokens of several sequences, to tell where each ends",
    ),
    Output(
        "model_info",
        "STRING",
        1,
        "JSON: context, engine, capabilities, formats of tools and thoughts, adapters",
        "return_model_info, last response",
    ),
    Output("arrival_time_ns", "INT64", 1, "monotonic clock", "return_perf_metrics, last response"),
    Output("first_scheduled_time_ns", "INT64", 1, "monotonic clock", "return_perf_metrics, last response"),
    Output("first_token_time_ns", "INT64", 1, "monotonic clock", "return_perf_metrics, last response"),
    Output("last_token_time_ns", "INT64", 1, "monotonic clock", "return_perf_metrics, last response"),
    Output(
        "kv_cache_reused_block",
        "INT32",
        1,
        "KV blocks of the prompt that were in the cache, where the engine tells: not OpenVINO",
        "return_perf_metrics, last response",
    ),
)

# What an engine knows of a token's `rank` in `logprobs`, by the engine's name as model parameter.
RANKS: dict[str, str] = {
    "vllm": "every token's, in the model's own distribution",
    "tensorrt_llm": "through `tensorrt_llm.LLM` the chosen token's, where that gives it; with compiled engines none",
    "openvino": "none: it gives the chosen token's log-probability alone",
    "simulated": "none: its log-probabilities are made up",
}

# What Triton itself, its front ends and proxies add to a request's parameters. They mean nothing to us and are let
# through.
TRITON_PARAMETERS = frozenset(
    {"priority", "timeout", "headers", "binary_data_output", "sequence_id", "sequence_start", "sequence_end", "id"}
)


def declared_inputs() -> list[tuple[str, str, int]]:
    """(name, Triton type, dims) of every input tensor, aliases included."""
    return [(name, item.type, item.dims) for item in INPUTS for name in (item.name, *item.aliases)]
