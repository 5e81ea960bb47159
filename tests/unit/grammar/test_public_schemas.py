"""Fifty schemas as public tools send them, written by hand after them (public_schemas.json): what is kept, what is left
out, what a strict tool is refused for. The independent judge is the package jsonschema.
"""

from __future__ import annotations

import json
import random
import time
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from inflight.grammar.loosen import loosen
from inflight.grammar.nodes import GrammarError
from inflight.grammar.prepare import network, prepare
from inflight.grammar.tools import relaxations
from tests.unit.machines.grammar_walks import accepts, sample

pytestmark = pytest.mark.fast

CASES = json.loads(Path(__file__).with_name("public_schemas.json").read_text(encoding="utf-8"))
BY_NAME = pytest.mark.parametrize("case", CASES, ids=[case["name"] for case in CASES])
SECONDS = 2.0  # of processor time for one set of tools


def tool(case: dict[str, Any], strict: bool) -> dict[str, Any]:
    function = {"name": case["name"], "parameters": case["schema"], **({"strict": True} if strict else {})}
    return {"type": "function", "function": function}


def guide(case: dict[str, Any], strict: bool = False) -> str:
    return json.dumps({"form": "json_list", "tools": [tool(case, strict)], "parallel": False})


def judge(case: dict[str, Any]) -> Any:
    """jsonschema's validator of what the schema means: OpenAPI's and other dialects have that beside them."""
    schema = case.get("meant", case["schema"])
    kind = jsonschema.validators.validator_for(schema, default=jsonschema.Draft202012Validator)
    return kind(schema, format_checker=kind.FORMAT_CHECKER)


def call(case: dict[str, Any], arguments: object) -> str:
    return f'[{{"name": "{case["name"]}", "arguments": {json.dumps(arguments, ensure_ascii=False)}}}]'


def excused(error: Any, keywords: set[str]) -> bool:
    """Whether what was left out explains that a value does not fit."""
    if keywords.intersection(error.schema_path):
        return True
    ways: dict[Any, list[Any]] = {}
    for inner in error.context or []:
        ways.setdefault(inner.schema_path[0], []).append(inner)
    return any(all(excused(inner, keywords) for inner in way) for way in ways.values())


def test_there_are_fifty() -> None:
    assert len({case["name"] for case in CASES}) == 50


@BY_NAME
def test_it_compiles_within_the_limits_and_says_what_it_leaves_out(case: dict[str, Any]) -> None:
    began = time.process_time()
    assert prepare("tools", guide(case))
    assert time.process_time() - began < SECONDS
    said = [note.removeprefix(case["name"]) for note in relaxations([tool(case, False)])]
    assert sorted(said) == sorted(case.get("relaxed", []))


@BY_NAME
def test_what_is_valid_is_accepted_and_what_is_not_is_not(case: dict[str, Any]) -> None:
    automata, validator = network("tools", guide(case)), judge(case)
    for value in case["valid"]:
        validator.validate(value)
        assert accepts(automata, call(case, value)), value
    for value in case["invalid"]:
        assert not validator.is_valid(value), value
        assert not accepts(automata, call(case, value)), value


@BY_NAME
def test_what_the_guide_writes_validates(case: dict[str, Any]) -> None:
    automata, validator = network("tools", guide(case)), judge(case)
    left_out = {note.rpartition(": ")[2] for note in case.get("relaxed", [])}
    whole = 0
    for seed in range(30):
        text = sample(automata, random.Random(seed), 400)
        if text is None:  # it grew too long
            continue
        whole += 1
        (written,) = json.loads(text)
        for error in validator.iter_errors(written["arguments"]):
            assert excused(error, left_out), (text, error.message)
    assert whole


@BY_NAME
def test_a_strict_tool_is_kept_exactly_or_refused_by_keyword(case: dict[str, Any]) -> None:
    if "strict_refused" in case:
        with pytest.raises(GrammarError, match=case["strict_refused"]):
            network("tools", guide(case, strict=True))
        return
    automata = network("tools", guide(case, strict=True))
    for value in case["valid"]:
        assert accepts(automata, call(case, value)), value
    for value in case["invalid"]:
        assert not accepts(automata, call(case, value)), value


def test_a_loosened_schema_is_loosened_no_further() -> None:
    for case in CASES:
        once, _ = loosen(case["schema"])
        assert loosen(once) == (once, []), case["name"]


def test_the_table_in_the_docs_says_what_is_tested() -> None:
    page = (Path(__file__).parents[3] / "docs/chat.md").read_text(encoding="utf-8")
    for case in CASES:
        left_out = ", ".join(sorted({note.rpartition(": ")[2] for note in case.get("relaxed", [])}))
        kept = f"without {left_out}" if left_out else "exact"
        strict = "refused" if "strict_refused" in case else "exact"
        assert f"| {case['origin']} | {kept} | {strict} |" in page, case["origin"]
