"""What an engine's library says against a request, told to the client in our words.

A library speaks of its own parameters, source files and limits. Its words go to the log. The client reads which of its
parameters is at fault, where the words name one.
"""

from __future__ import annotations

import re

from inflight.engines.base import EngineOutput, EngineRefusal, EngineRequest
from inflight.engines.faults import fit_for_clients, sparingly

# What OpenVINO, vLLM and TensorRT-LLM call what a client sends, and what the contract calls it. camelCase is read as
# snake_case; the words of a message are looked up in their order.
_THEIRS = {
    "rng_seed": "seed",
    "max_new_tokens": "max_tokens",
    "min_new_tokens": "min_tokens",
    "min_length": "min_tokens",
    "num_beams": "beam_width",
    "n": "num_return_sequences",
    "best_of": "num_return_sequences",
    "num_sequences": "num_return_sequences",
    "structured_outputs": "guided_decoding_guide",
    "guided_decoding": "guided_decoding_guide",
    "guided_decoding_params": "guided_decoding_guide",
    "lora_request": "lora_name",
    "lora_config": "lora_name",
    "cache_salt_id": "cache_salt",
    "prompt": "input_ids",
    "prompt_token_ids": "input_ids",
    "input_token_ids": "input_ids",
}
_OURS = frozenset(
    {
        "bad_words",
        "beam_width",
        "cache_salt",
        "frequency_penalty",
        "guided_decoding_guide",
        "input_ids",
        "length_penalty",
        "logprobs",
        "lora_name",
        "max_tokens",
        "min_p",
        "min_tokens",
        "num_return_sequences",
        "presence_penalty",
        "repetition_penalty",
        "seed",
        "stop_token_ids",
        "temperature",
        "top_k",
        "top_p",
    }
)
_WORD = re.compile(r"[A-Za-z_][A-Za-z_0-9]*")
_HUMP = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")


def in_our_words(engine: str, error: Exception, request: EngineRequest) -> EngineRefusal:
    """The refusal of `request` that a client may read; `engine` is the engine's name. Logs the library's words."""
    words = str(error)
    blamed = getattr(error, "parameter", None)  # vLLM's errors have it
    name = _named_in(blamed if isinstance(blamed, str) else words)
    kind = f"refused: {name or 'unnamed'}"
    sparingly.warning(kind, "%s refuses request %d: %s", engine, request.request_id, words.strip()[:1000])
    if name is None:
        return EngineRefusal("it does not take these values together; the server's log has the reason")
    if name == "input_ids":
        shown = f"has {len(request.token_ids)} tokens"
    else:
        value = getattr(request.sampling, name, None)
        shown = f"is {value:g}" if isinstance(value, (int, float)) else "has a value"
    return EngineRefusal(f"{shown}, which the {engine} engine does not take in this request; change it", name)


def refused_late(refusal: EngineRefusal, request_id: int, index: int) -> EngineOutput:
    """The end of a sequence whose request the library has taken, and refuses afterwards; the client reads why."""
    what = refusal.parameter or "the engine refuses this request:"
    return EngineOutput(request_id, index, [], error=f"{what} {fit_for_clients(str(refusal))}", refusal=True)


def _named_in(words: str) -> str | None:
    """The first of our parameters that `words` name."""
    for word in _WORD.findall(words):
        name = _HUMP.sub("_", word).lower()
        name = _THEIRS.get(name, name)
        if name in _OURS:
            return name
    return None
