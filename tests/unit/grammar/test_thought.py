"""A guide of whatever kind begins behind what its model thinks, and that is free."""

from __future__ import annotations

import json
import random

import pytest

from inflight.grammar.nodes import GrammarError
from inflight.grammar.prepare import network, prepare
from inflight.grammar.thought import Thought
from tests.unit.machines.grammar_walks import accepts, sample, ways

pytestmark = pytest.mark.fast

OPENED = Thought("<think>", "</think>", True)
MAY_THINK = Thought("<think>", "</think>", False)
BRACKETS = Thought("[THINK]", "[/THINK]", False)
SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
TREE = {"$defs": {"t": {"type": "object", "properties": {"next": {"$ref": "#/$defs/t"}}}}, "$ref": "#/$defs/t"}
TOOLS = {"form": "hermes", "tools": [{"type": "function", "function": {"name": "now"}}]}
CALL = '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>'
KINDS: dict[str, tuple[str, str, str]] = {
    "json": ("", '{"a": [1]}', "[1]"),
    "json_schema": (json.dumps(SCHEMA), '{"n": 3}', '{"m": 3}'),
    "regex": ("[a-z]{3}", "abc", "abcd"),
    "choice": (json.dumps(["yes", "<no>"]), "<no>", "no"),
    "ebnf_grammar": ('root ::= "(" root ")" | "x"', "((x))", "((x)"),
    "tools": (json.dumps(TOOLS), CALL, "now"),
}
"""kind → (guide, a text that it allows, one that it does not)."""


@pytest.mark.parametrize("kind", sorted(KINDS))
@pytest.mark.parametrize(
    ("thought", "before", "fits"),
    [
        (OPENED, "hm <, </think, </<</think>\n\n", True),
        (OPENED, "</think>", True),
        (OPENED, '{"n": "no guide here"} </think>\n', True),
        (OPENED, "", False),
        (OPENED, "a</think>b</think>", False),
        (MAY_THINK, "", True),
        (MAY_THINK, "<think>\nso</think>\n", True),
        (MAY_THINK, "so</think>\n", False),
        (BRACKETS, "[THINK]so[/THINK]", True),
        (BRACKETS, "<think>so</think>", False),
        (None, "", True),
        (None, "<think></think>", False),
    ],
)
def test_every_kind_of_guide_begins_behind_the_thought(
    kind: str, thought: Thought | None, before: str, fits: bool
) -> None:
    guide, text, other = KINDS[kind]
    made = network(kind, guide, thought)
    assert accepts(made, before + text) is fits
    assert not accepts(made, before + other)
    assert not fits or ways(made, before + text) == 1
    assert prepare(kind, guide, thought)


@pytest.mark.parametrize(
    ("kind", "guide", "text"),
    [
        ("json_schema", json.dumps(TREE), '{"next": {"next": {}}}'),
        ("json_schema", "true", "[1, {}]"),
        ("regex", "[\\s\\S]*end", "no, the end"),
        ("ebnf_grammar", 'root ::= item\nitem ::= [ \\n]* ("x" | "(" item ")")', "\n( x)"),
        ("ebnf_grammar", 'root ::= tag\ntag ::= "<" [a-z] ">" (tag | "x") "</>"', "<a><b>x</></>"),
    ],
)
@pytest.mark.parametrize("thought", [OPENED, MAY_THINK])
def test_guides_that_begin_as_a_thought_or_what_follows_it(kind: str, guide: str, text: str, thought: Thought) -> None:
    made = network(kind, guide, thought)
    assert accepts(made, ("" if thought.opened else "<think>") + "well</think>" + text)
    assert ways(made, ("" if thought.opened else "<think>") + "well</think>" + text) == 1


@pytest.mark.parametrize("seed", range(20))
def test_behind_a_thought_stands_what_the_guide_allows_alone(seed: int) -> None:
    kind, guide = random.Random(seed).choice([("json_schema", json.dumps(SCHEMA)), ("regex", "a{1,9}(b|c)?")])
    text = sample(network(kind, guide, OPENED), random.Random(seed), 400)
    if text is not None:
        assert accepts(network(kind, guide), text[text.index("</think>") + len("</think>") :].lstrip("\n"))


@pytest.mark.parametrize(
    ("kind", "guide", "words"),
    [
        ("json_schema", '{"type": "string", "format": "binary"}', "binary"),
        ("regex", "a(", "regular expression|bracket|closed"),
        ("choice", "[]", "JSON list"),
        ("ebnf_grammar", "start ::= 'a'", "root|ebnf|line"),
        ("tools", "{}", "no guide of tools"),
    ],
)
def test_what_is_wrong_with_a_guide_is_said_in_the_same_words(kind: str, guide: str, words: str) -> None:
    said = []
    for thought in (None, OPENED, MAY_THINK):
        with pytest.raises(GrammarError, match=words) as caught:
            prepare(kind, guide, thought)
        said.append(str(caught.value))
    assert len(set(said)) == 1
