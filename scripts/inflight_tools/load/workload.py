"""The requests of a load test: seeded prompts of wanted lengths, answers of wanted lengths, all else equal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice

from inflight_tools.clients.answer import Response
from inflight_tools.clients.connection import Value
from inflight_tools.clients.grpc import Connection, parse_value
from inflight_tools.common.report import Failure
from inflight_tools.load.lengths import Lengths
from inflight_tools.load.perf_analyzer import Inputs
from inflight_tools.load.prompts import prompts

_PROBE_WORDS = 200
PROBE = next(prompts("probe", _PROBE_WORDS))
"""Its tokens tell how many of our words make one."""


class Workload:
    """Makes requests. Equal seeds give equal requests; no two levels or runs share a prompt."""

    def __init__(
        self,
        prompt: Lengths,
        answer: Lengths,
        words_per_token: float,
        seed: int,
        stop_at_eos: bool = False,
        parameters: Mapping[str, Value] | None = None,
    ) -> None:
        """`words_per_token`: of the prompts, at this model's tokenizer. `parameters` are sent with every request."""
        self._prompt = prompt
        self._answer = answer
        self._words_per_token = words_per_token
        self._seed = seed
        self._common: dict[str, Value] = {
            "stream": True,
            "ignore_eos": not stop_at_eos,
            "return_num_input_tokens": True,
            "return_num_output_tokens": True,
            **(parameters or {}),
        }

    def requests(self, part: str, count: int) -> list[Inputs]:
        """`count` requests; `part` names the level and run that they are for."""
        seed = f"{self._seed} {part}"
        lengths = zip(self._prompt.draws(f"prompt {seed}"), self._answer.draws(f"answer {seed}"), strict=False)
        longest = max(1, round(self._prompt.high * self._words_per_token))
        texts: Iterator[str] = prompts(seed, longest)
        made: list[Inputs] = []
        for text, (prompt, answer) in zip(texts, islice(lengths, count), strict=False):
            words = text.split(" ")[: max(1, round(prompt * self._words_per_token))]
            values: dict[str, Value] = {"text_input": " ".join(words), "max_tokens": answer, **self._common}
            made.append({name: _listed(value) for name, value in values.items()})
        return made


def parse_parameters(texts: Sequence[str]) -> dict[str, Value]:
    """NAME=VALUE pairs as values of the inputs they name. Raises `Failure`."""
    found: dict[str, Value] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals:
            raise Failure(f"--parameter must be NAME=VALUE, but is {text!r}.")
        found[name] = parse_value(name, value)
    return found


def words_per_token(connection: Connection, model: str, batched: bool) -> float:
    """How many of our words make one prompt token at this model: one request tells. Raises `Failure`."""
    probe: dict[str, Value] = {
        "text_input": PROBE,
        "max_tokens": 1,
        "return_num_input_tokens": True,
    }
    answers: list[Response] = list(connection.stream(model, probe, batched))
    counts = answers[-1].outputs.get("num_input_tokens")
    if not counts:
        raise Failure(f"the model {model!r} does not tell its num_input_tokens: a model of this backend is needed.")
    return ratio_of_probe(int(counts[0]))


def ratio_of_probe(tokens: int) -> float:
    """Words that make one prompt token at a model where `PROBE` has that many."""
    return _PROBE_WORDS / tokens


def _listed(value: Value) -> Sequence[str | int | float | bool]:
    if isinstance(value, bytes):
        return [value.decode()]
    return [value] if isinstance(value, (str, int, float)) else list(value)
