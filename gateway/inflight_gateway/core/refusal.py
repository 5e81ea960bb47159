"""The sentences in which an Inflight model and Triton refuse a request → what kind of error that is.

Triton carries no status within a stream, unless a header is set that can end Triton 24.10 (docs/operating.md). So the
kind is read off the sentence. `tests/unit/gateway/test_refusal.py` holds this table against every sentence of the
backend.
"""

from __future__ import annotations

import re

from inflight_gateway.core.errors import GatewayError, Kind

# Part of a sentence → its kind; the first that is found counts.
SENTENCES: tuple[tuple[str, Kind], ...] = (
    ("the deadline passed", Kind.DEADLINE),
    ("was cancelled", Kind.CANCELLED),
    ("internal error while handling", Kind.INTERNAL),
    ("is draining", Kind.DRAINING),
    ("is being unloaded", Kind.DRAINING),
    ("is restarting", Kind.RESTARTING),
    ("is being restarted", Kind.RESTARTING),
    ("has not started again", Kind.RESTARTING),
    ("queue is full", Kind.OVERLOADED),
    ("new guides are", Kind.OVERLOADED),
    ("too busy to check", Kind.OVERLOADED),
    ("could not be checked", Kind.OVERLOADED),
    ("try again in a moment", Kind.OVERLOADED),
    ("Request for unknown model", Kind.NO_MODEL),
)
# The model's own name of a parameter → OpenAI's.
NAMES = {
    "text_input": "prompt",
    "input_ids": "prompt",
    "num_return_sequences": "n",
    "stop_words": "stop",
    "request_priority": "priority",
    "lora_name": "model",
    "return_log_probs": "logprobs",
    "guided_decoding_guide": "response_format",
    "guided_decoding_guide_type": "response_format",
    "beam_width": "use_beam_search",
}
_PARAMETER = re.compile(r"([a-z][a-z0-9]*(?:_[a-z0-9]+)*)(?= |\[)")
_WORDS = frozenset(("the", "a", "an", "request", "inference", "unexpected", "failed", "in", "for", "expected", "model"))


def refusal(sentence: str, parameters: frozenset[str]) -> GatewayError:
    """What an error within a stream means. `parameters` are the names of the model's inputs."""
    for part, kind in SENTENCES:
        if part in sentence:
            return GatewayError(kind, sentence)
    found = _PARAMETER.match(sentence)
    name = found[1] if found else ""
    if name and name not in _WORDS and (name in parameters or name in NAMES):
        named = NAMES.get(name, name)
        sentence = named + sentence[len(name) :]
        if "the context holds" in sentence:
            return GatewayError(Kind.TOO_LONG, sentence, named)
        kind = Kind.UNSUPPORTED if "not supported" in sentence else Kind.INVALID
        return GatewayError(kind, sentence, named)
    if sentence.startswith("the engine refuses this request"):
        return GatewayError(Kind.INVALID, sentence)
    if "the engine" in sentence:  # it could not be started again, or its directory holds another
        return GatewayError(Kind.DOWN, sentence)
    return GatewayError(Kind.INTERNAL, "the model's server failed; its log has the reason")
