"""What a cell of the capability table of docs/engines.md promises, asked of an engine.

A request with the parameter goes the way that the backend sends it: parsed, checked against the engine's capabilities,
made into ids, added to the engine and stepped to its end. "yes": it ends well and shows its effect. "refused": it is
answered UNSUPPORTED, and the parameter named. "config": refused by the engine as it is, honoured by one that was made
with the model parameter. Capabilities that no request asks for are looked for in what the engine does.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from inflight.engines.base import Capability, Engine, EngineOutput, EngineRefusal, FinishReason
from inflight.errors import ErrorCode, RequestError
from inflight.request.prompt import PromptBuilder, check_capabilities, engine_request
from inflight.request.stop_words import stops_of
from inflight.request.tokenizer import TextTokenizer
from tests.doubles.stand_in import collect, ids
from tests.doubles.tables import DOCUMENTS, PROPERTIES, between
from tests.unit.machines.strategies import request

SCHEMA = '{"type": "object", "properties": {"a": {"enum": ["x"]}}, "required": ["a"], "additionalProperties": false}'
Sequences = Sequence[list[EngineOutput]]


@dataclasses.dataclass(frozen=True)
class Asked:
    """A capability that requests ask for: with which inputs, which parameter is named in a refusal, and what shows that
    it was honoured (a function of the engine's outputs by sequence and of the text of the first; true is good).
    """

    parameter: str
    inputs: dict[str, Any]
    honoured: Callable[[Sequences, str], bool]


def guided(kind: str, guide: str, pattern: str) -> Asked:
    inputs = {"guided_decoding_guide_type": kind, "guided_decoding_guide": guide, "max_tokens": 60}
    return Asked("guided_decoding_guide_type", inputs, lambda _, text: re.fullmatch(pattern, text.strip()) is not None)


def each_token(outputs: list[EngineOutput], values: Callable[[EngineOutput], Any]) -> bool:
    return all(len(values(output) or ()) == len(output.token_ids) for output in outputs)


SAMPLED = {"temperature": 1.0, "seed": 3}
ASKED = {
    Capability.STREAMING: Asked("stream", {"stream": True}, lambda found, _: len(found[0]) > 1),
    Capability.LOGPROBS: Asked(
        "return_log_probs", {"return_log_probs": True}, lambda found, _: each_token(found[0], lambda out: out.logprobs)
    ),
    Capability.TOP_LOGPROBS: Asked(
        "logprobs", {"logprobs": 2}, lambda found, _: each_token(found[0], lambda out: out.top_logprobs)
    ),
    Capability.PARALLEL_SAMPLING: Asked(
        "num_return_sequences",
        {"num_return_sequences": 2, **SAMPLED},
        lambda found, _: len(found) == 2 and ids(found[0]) != ids(found[1]),
    ),
    Capability.BEAM_SEARCH: Asked(
        "beam_width",
        {"beam_width": 2, "num_return_sequences": 2},
        lambda found, _: len(found) == 2 and ids(found[0]) != ids(found[1]),
    ),
    Capability.GUIDED_JSON: guided("json_schema", SCHEMA, r'\{\s*"a"\s*:\s*"x"\s*\}'),
    Capability.GUIDED_REGEX: guided("regex", "[a-z]{3}", "[a-z]{3}"),
    Capability.GUIDED_EBNF: guided("ebnf_grammar", 'root ::= "yes" | "no"', "yes|no"),
    Capability.GUIDED_CHOICE: guided("choice", '["maybe", "no"]', "maybe|no"),
    Capability.LORA: Asked("lora_name", {"lora_name": "red"}, lambda found, _: len(ids(found[0])) > 0),
    Capability.BAD_WORDS: Asked("bad_words", {"bad_words": ["FORBIDDEN"]}, lambda _, text: "FORBIDDEN" not in text),
    Capability.CACHE_SALT: Asked("cache_salt", {"cache_salt": "a"}, lambda found, _: len(ids(found[0])) > 0),
    Capability.MIN_P: Asked("min_p", {"min_p": 0.05, **SAMPLED}, lambda found, _: len(ids(found[0])) > 0),
}


def cells() -> dict[str, dict[Capability, str]]:
    """The table of docs/engines.md: column → capability → cell."""
    text = DOCUMENTS["capabilities"].read_text(encoding="utf-8")
    begin, end = between(text, "capabilities")
    head, _, *rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text[begin:end].splitlines() if line]
    known = {capability.value: capability for capability in Capability}
    table = {row[0]: dict(zip(head[1:], row[1:], strict=True)) for row in rows}
    return {column: {known[name]: row[column] for name, row in table.items() if name in known} for column in head[1:]}


class Asker:
    """Asks engines over one tokenizer."""

    def __init__(self, folder: Path) -> None:
        self._builder = PromptBuilder(TextTokenizer(folder), None, 10_000)
        self._next_id = 0

    def plain(self, engine: Engine) -> list[int]:
        """Ids of the greedy answer to a request without any parameter."""
        (found,) = self.run(engine, {})
        return ids(found)

    def run(self, engine: Engine, inputs: dict[str, Any]) -> Sequences:
        """The outputs of each sequence. Raises `RequestError` when the request is refused."""
        self._next_id += 1
        parsed = request(**{"text_input": "The quick brown fox", "max_tokens": 8, **inputs})
        check_capabilities(parsed, engine.info)
        prompt, tokenizer = self._builder.build(parsed, engine.info), self._builder.tokenizer
        stops = stops_of(parsed, engine.info, tokenizer)
        made = engine_request(self._next_id, parsed, prompt, stops, engine.info, tokenizer)
        engine.add(made)
        found = collect(engine, {(made.request_id, index) for index in range(made.sampling.num_sequences)}, 60.0)
        assert all(outputs[-1].finish in (FinishReason.STOP, FinishReason.LENGTH) for outputs in found.values()), found
        return [found[place] for place in sorted(found)]

    def refused(self, engine: Engine, capability: Capability) -> None:
        """UNSUPPORTED, and the parameter by its name."""
        asked = ASKED[capability]
        with pytest.raises(RequestError) as refusal:
            self.run(engine, asked.inputs)
        assert refusal.value.code is ErrorCode.UNSUPPORTED
        assert refusal.value.parameter == asked.parameter
        assert refusal.value.message.startswith(f"{asked.parameter} is not supported")

    def honoured(self, engine: Engine, capability: Capability) -> None:
        """The request ends well and shows its effect."""
        asked = ASKED[capability]
        inputs = dict(asked.inputs)
        word = ""
        if capability is Capability.BAD_WORDS:
            word = self._a_word(engine)
            inputs["bad_words"] = [word]
        found = self.run(engine, inputs)
        text = self._builder.tokenizer.decode(ids(found[0]), skip_special_tokens=True)
        assert asked.honoured(found, text), (capability, text, found)
        assert not word or word not in text, (word, text)
        assert capability is not Capability.LORA or ids(found[0]) != self.plain(engine), "the adapter changes nothing"

    def _a_word(self, engine: Engine) -> str:
        """Part of the plain answer that is one token by itself."""
        tokenizer = self._builder.tokenizer
        texts = [(token, tokenizer.decode([token], skip_special_tokens=False)) for token in self.plain(engine)]
        return next(text for token, text in texts if text.strip() == text and tokenizer.encode(text, False) == [token])


def check_column(
    column: str,
    asker: Asker,
    plain: Engine,
    configured: Callable[[Capability], Engine],
    property_holds: Callable[[Capability, Engine], bool],
) -> list[str]:
    """What of a column does not hold; nothing is right. `configured` makes the engine with the model parameter;
    `property_holds` says whether an engine does what no request asks for.
    """
    wrong = []
    for capability, cell in cells()[column].items():
        try:
            if capability in PROPERTIES:
                assert cell in ("yes", "no", "config"), cell
                assert property_holds(capability, plain) == (cell == "yes")
                assert cell != "config" or property_holds(capability, configured(capability))
            elif cell == "yes":
                asker.honoured(plain, capability)
            else:
                assert cell in ("refused", "config"), cell
                asker.refused(plain, capability)
                if cell == "config":
                    asker.honoured(configured(capability), capability)
        except (AssertionError, EngineRefusal, RequestError, pytest.fail.Exception) as error:
            wrong.append(f"{capability.value} {cell}: {error!r}")
    return wrong
