"""Every limit that a client can meet, for the code that holds it and for docs/requests.md, which shows `limits`."""

from __future__ import annotations

MAX_JSON_BYTES = 1 << 20  # of sampling_parameters
MAX_STOPS = 64  # strings in stop_words, and in bad_words
MAX_STOP_CHARS = 1024  # of each
MAX_SEQUENCES = 128  # num_return_sequences, best_of, beam_width
MAX_LOGPROBS = 100
MAX_TEMPERATURE = 100.0
MAX_REPETITION_PENALTY = 100.0
MAX_PENALTY = 2.0  # presence and frequency, below 0 as well
MAX_PRIORITY = 100  # below 0 as well
MAX_NAME_BYTES = 256  # of lora_name, and of cache_salt
MAX_MESSAGES = 4096
MAX_TOOLS = 128
MAX_TOOL_BYTES = 512 << 10  # of tools, and of documents
MAX_TEMPLATE_KWARGS_BYTES = 64 << 10
RENDER_SECONDS = 2.0  # of a chat template, for one prompt
MAX_GUIDE_BYTES = 64 << 10
MAX_GUIDE_DEPTH = 64  # of a schema's JSON
MAX_GUIDE_VALUES = 20_000  # objects, lists, strings and numbers of a schema
MAX_CHOICES = 1_000


def limits() -> list[tuple[str, str]]:
    """(what is limited, its limit) in words."""
    return [
        ("`text_input`, `messages` and what the chat template makes of them", "model parameter `max_prompt_bytes`"),
        ("`input_ids`", "a quarter of `max_prompt_bytes`, where it is set; else the model's context"),
        ("any prompt", "the model's context less one token"),
        ("`messages`", f"{MAX_MESSAGES:,} messages; {RENDER_SECONDS:g} s for the chat template"),
        ("`tools`", f"{MAX_TOOLS}; {MAX_TOOL_BYTES:,} bytes"),
        ("`documents`", f"{MAX_TOOL_BYTES:,} bytes"),
        ("`chat_template_kwargs`", f"{MAX_TEMPLATE_KWARGS_BYTES:,} bytes"),
        ("`sampling_parameters`", f"{MAX_JSON_BYTES:,} bytes"),
        ("`max_tokens`", "model parameter `max_tokens_limit`, where it is set: cut to it"),
        ("`stop_words`, `bad_words`", f"{MAX_STOPS} strings of {MAX_STOP_CHARS:,} characters each"),
        ("`num_return_sequences`, `best_of`, `beam_width`", f"{MAX_SEQUENCES}, and what the engine runs at once"),
        ("`logprobs`", f"{MAX_LOGPROBS}, and what the engine gives"),
        ("`temperature`", f"0 to {MAX_TEMPERATURE:g}"),
        ("`repetition_penalty`", f"above 0, at most {MAX_REPETITION_PENALTY:g}"),
        ("`presence_penalty`, `frequency_penalty`", f"-{MAX_PENALTY:g} to {MAX_PENALTY:g}"),
        ("`seed`", "64 bits"),
        ("`request_priority`", f"-{MAX_PRIORITY} to {MAX_PRIORITY}"),
        ("`lora_name`, `cache_salt`", f"{MAX_NAME_BYTES} bytes each"),
        ("`guided_decoding_guide`, `structured_outputs`", f"{MAX_GUIDE_BYTES:,} bytes"),
        ("a JSON Schema", f"{MAX_GUIDE_DEPTH} levels, {MAX_GUIDE_VALUES:,} values"),
        ("choices", f"{MAX_CHOICES:,}"),
        ("values of any other list", "twice the model's context, at least 4,096"),
        ("requests that wait", "model parameters `max_queue_size` and `max_queue_tokens`"),
    ]
