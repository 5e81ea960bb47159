"""What a served engine has to do, asked of a real server: the contract in a few dozen requests, greedy agreement."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from inflight_tools.clients.answer import Answer
from inflight_tools.clients.connection import Value
from inflight_tools.clients.grpc import Connection
from inflight_tools.common.report import Failure

PROMPTS = (
    "The capital of France is",
    "Once upon a time there was",
    "def fibonacci(n):",
    "Water boils at",
    "The opposite of hot is",
    "List three colours:",
)


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was asked for. `note` says what came instead, or which figure."""

    name: str
    ok: bool
    note: str = ""


class Served:
    """A model on a server."""

    def __init__(self, url: str, model: str) -> None:
        self._url, self._model = url, model

    def ask(self, **inputs: Value) -> Answer:
        """One request to its end. Raises `Failure` with the server's sentence."""
        answer = Answer(time.perf_counter())
        with Connection(self._url) as connection:
            for response in connection.stream(self._model, {"return_finish_reason": True, **inputs}, False):
                answer.add(response)
        return answer

    def text(self, **inputs: Value) -> str:
        """The first sequence's text."""
        return self.ask(**inputs).sequences[0].text

    def ids(self, **inputs: Value) -> list[int]:
        """The first sequence's token ids."""
        return [int(item) for item in self.ask(return_token_ids=True, **inputs).sequences[0].outputs["output_ids"]]

    def leave(self, **inputs: Value) -> None:
        """Go away after the first response, as a client does that is closed."""
        with Connection(self._url) as connection:
            next(connection.stream(self._model, inputs, False))


def contract(served: Served, capabilities: frozenset[str]) -> list[Check]:
    """The promises that every engine makes, and those of `capabilities`."""
    checks: dict[str, Callable[[], str]] = {
        "streamed text is the unary text": lambda: _streaming(served),
        "a stop string cuts the text": lambda: _stop(served),
        "the same seed gives the same tokens": lambda: _seed(served),
        "max_tokens is kept": lambda: _length(served),
        "a prompt beyond the context is refused": lambda: _too_long(served),
        "a client that leaves harms nobody": lambda: _leaves(served),
    }
    if "parallel_sampling" in capabilities:
        checks["several sequences differ"] = lambda: _several(served)
    if "logprobs" in capabilities:
        checks["log-probabilities are those of the tokens"] = lambda: _logprobs(served)
    if "bad_words" in capabilities:
        checks["bad words do not appear"] = lambda: _bad_words(served)
    if "guided_json" in capabilities:
        checks["guided decoding follows a schema"] = lambda: _guided(served)
    if "beam_search" in capabilities:
        checks["beams come best first"] = lambda: _beams(served)
    found = []
    for name, check in checks.items():
        try:
            problem = check()
        except Failure as failure:
            problem = str(failure)
        except (KeyError, IndexError, StopIteration) as error:
            problem = f"the answer lacks {error!r}"
        found.append(Check(name, not problem, problem))
    return found


def _streaming(served: Served) -> str:
    for prompt in PROMPTS:
        streamed = served.text(text_input=prompt, max_tokens=48, stream=True)
        unary = served.text(text_input=prompt, max_tokens=48, stream=False)
        if streamed != unary:
            return f"{prompt!r}: {streamed!r} is not {unary!r}"
    return ""


def _stop(served: Served) -> str:
    for prompt in PROMPTS:
        text = served.text(text_input=prompt, max_tokens=48)
        stop = next((text[at : at + 4] for at in range(3, len(text) - 4) if text.count(text[at : at + 4]) == 1), "")
        if stop:
            answer = served.ask(text_input=prompt, max_tokens=48, stop_words=[stop], stream=True).sequences[0]
            right = answer.text == text[: text.index(stop)] and answer.finish_reason == "stop"
            return "" if right else f"{answer.text!r} ({answer.finish_reason})"
    return "no answer has four characters that stand in it once: nothing to stop at"


def _seed(served: Served) -> str:
    first, second, other = (
        served.text(text_input=PROMPTS[1], max_tokens=32, temperature=1.0, seed=seed) for seed in (7, 7, 8)
    )
    if first != second:
        return f"seed 7 gave {first!r} and {second!r}"
    return "another seed gave the same text" if first == other else ""


def _length(served: Served) -> str:
    answer = served.ask(text_input=PROMPTS[0], max_tokens=5, ignore_eos=True, return_num_output_tokens=True).sequences[
        0
    ]
    right = (answer.num_output_tokens, answer.finish_reason) == (5, "length")
    return "" if right else f"{answer.num_output_tokens} tokens, {answer.finish_reason}"


def _too_long(served: Served) -> str:
    try:
        served.text(input_ids=[5] * 200_000, max_tokens=1)
    except Failure:
        return ""
    return "it was answered"


def _leaves(served: Served) -> str:
    for _ in range(4):
        with contextlib.suppress(StopIteration):
            served.leave(text_input=PROMPTS[1], max_tokens=400, ignore_eos=True, stream=True)
    return "" if served.text(text_input=PROMPTS[0], max_tokens=4) else "no answer afterwards"


def _several(served: Served) -> str:
    answer = served.ask(text_input=PROMPTS[1], max_tokens=24, temperature=1.0, seed=5, num_return_sequences=3)
    texts = {sequence.text for sequence in answer.sequences.values()}
    return "" if len(texts) == 3 else f"{len(texts)} different texts of 3"


def _logprobs(served: Served) -> str:
    sequence = served.ask(text_input=PROMPTS[0], max_tokens=8, return_log_probs=True, ignore_eos=True).sequences[0]
    values = [float(value) for value in sequence.outputs["output_log_probs"]]
    if len(values) != len(sequence.outputs["output_ids"]):
        return f"{len(values)} values for {len(sequence.outputs['output_ids'])} tokens"
    return "" if all(value <= 1e-6 for value in values) else f"positive values: {values}"


def _bad_words(served: Served) -> str:
    for prompt in PROMPTS:
        text = served.text(text_input=prompt, max_tokens=24)
        word = next((item for item in text.split() if item.isalpha() and len(item) > 2), "")
        if word:
            without = served.text(text_input=prompt, max_tokens=24, bad_words=[word]).split()
            return f"{word!r} is in the answer" if word in without else ""
    return "no answer has a word of three letters: nothing to forbid"


def _guided(served: Served) -> str:
    schema = '{"type":"object","properties":{"a":{"type":"integer"}},"required":["a"],"additionalProperties":false}'
    guide: Mapping[str, Value] = {"guided_decoding_guide_type": "json_schema", "guided_decoding_guide": schema}
    text = served.text(text_input=PROMPTS[0], max_tokens=64, **guide)
    return "" if text.strip().startswith("{") and '"a"' in text else repr(text)


def _beams(served: Served) -> str:
    answer = served.ask(text_input=PROMPTS[0], max_tokens=8, beam_width=2, num_return_sequences=2, stream=False)
    return "" if len(answer.sequences) == 2 else f"{len(answer.sequences)} sequences"


def greedy_agreement(served: Served, reference: Any, ids: list[int], positions: int) -> tuple[float, int]:
    """Share of positions of the text `ids` where the engine's next greedy token is that of `reference`, a function from
    ids to its greedy next token at every position; and how many were asked.
    """
    likeliest = reference(ids)
    step = max(1, (len(ids) - 1) // positions)
    places = range(8, len(ids) - 1, step)
    agree = sum(
        served.ids(input_ids=ids[: place + 1], max_tokens=1, ignore_eos=True)[:1] == [likeliest[place]]
        for place in places
    )
    return agree / len(places), len(places)
