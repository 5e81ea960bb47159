"""What ends an answer besides its length: stop tokens, and stop strings, in which special tokens may stand.

Special tokens are left out of the text unless the client wants them, so a stop string that names one would never be
found there. One that is nothing but a special token ends the answer as a stop token. One in which a special token
stands beside other text is looked for in a text that has a mark in that token's place; marks are never sent.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from inflight.engines.base import EngineInfo
from inflight.errors import invalid
from inflight.request.parse import GenerationRequest
from inflight.request.tokenizer import TextTokenizer


@dataclasses.dataclass(frozen=True, slots=True)
class Stops:
    """`strings` are found in the text of tokens after the first `min_tokens`, in which each token of `marks` leaves its
    mark: surrogates, which no decoded text has. `words` says what the client wrote for a string with marks. `token_ids`
    are sorted; `reasons` says what the client gave for one: a word, or the id itself; nothing for the model's own.
    `included`: what ends the answer stays in it.
    """

    token_ids: tuple[int, ...]
    strings: tuple[str, ...] = ()
    marks: Mapping[int, str] = dataclasses.field(default_factory=dict)
    min_tokens: int = 0
    words: Mapping[str, str] = dataclasses.field(default_factory=dict)
    reasons: Mapping[int, str] = dataclasses.field(default_factory=dict)
    included: bool = False


def stops_of(request: GenerationRequest, info: EngineInfo, tokenizer: TextTokenizer) -> Stops:
    """Raises INVALID_ARG for a stop token outside the vocabulary."""
    ids = _stop_token_ids(request, info)
    strings = list(request.stops)
    marks: dict[int, str] = {}
    words: dict[str, str] = {}
    reasons = {token_id: str(token_id) for token_id in request.stop_token_ids}
    if request.end_id is not None:
        reasons[request.end_id] = str(request.end_id)
    for word in request.stops:
        found = [
            place for place in tokenizer.special_tokens_in(word) if place.token_id < info.vocab_size
        ]  # of a larger one the model makes none
        if not found:
            continue
        if len(found) == 1 and (found[0].start, found[0].end) == (0, len(word)):
            ids.add(found[0].token_id)
            reasons[found[0].token_id] = word
        elif request.skip_special_tokens:
            marked, end = "", 0
            for place in found:
                marks[place.token_id] = _mark(place.token_id)
                marked += word[end : place.start] + marks[place.token_id]
                end = place.end
            strings.append(marked + word[end:])
            words[strings[-1]] = word
    return Stops(tuple(sorted(ids)), tuple(strings), marks, request.min_tokens, words, reasons, request.include_stop)


def _mark(token_id: int) -> str:
    """A high surrogate and a low one, so that no mark begins inside another."""
    return chr(0xD800 + (token_id >> 10)) + chr(0xDC00 + (token_id & 0x3FF))


def _stop_token_ids(request: GenerationRequest, info: EngineInfo) -> set[int]:
    ids = set(request.stop_token_ids)
    if not request.ignore_eos:
        own = request.end_id is not None and request.end_id >= 0  # -1 is TensorRT-LLM's "none of mine"
        ids |= {request.end_id} if own and request.end_id is not None else set(info.stop_token_ids)
    for token_id in ids:
        if not 0 <= token_id < info.vocab_size:
            name = "end_id" if token_id == request.end_id else "stop_token_ids"
            raise invalid(name, f"is {token_id}, but token ids of this model go from 0 to {info.vocab_size - 1}")
    return ids
