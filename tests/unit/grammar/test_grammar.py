"""Regular expressions, choices and EBNF as networks: they allow what the standard library and plain reading allow, and
one way to read at a time.
"""

from __future__ import annotations

import json
import random
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inflight.grammar.ebnf import parse_ebnf
from inflight.grammar.network import Conflict, Network
from inflight.grammar.nodes import GrammarError
from inflight.grammar.prepare import network, prepare
from tests.unit.machines.grammar_walks import accepts, sample, ways
from tests.unit.machines.strategies import budget

LITERAL = st.sampled_from(["a", "b", "c", r"\.", "é", r"\d", r"\w", ".", "[ab]", "[^a]", "[a-c]", r"[\d.]", r"\n"])
PATTERNS = st.recursive(
    LITERAL,
    lambda inner: st.one_of(
        st.lists(inner, min_size=1, max_size=3).map("".join),
        st.lists(inner, min_size=2, max_size=3).map(lambda parts: "(?:" + "|".join(parts) + ")"),
        st.tuples(inner, st.sampled_from(["*", "+", "?", "{2}", "{0,2}", "{1,3}", "{2,}", "*?", "+?"])).map(
            lambda parts: f"({parts[0]}){parts[1]}"
        ),
    ),
    max_leaves=8,
)
TEXTS = st.text("abcdé.1\n_", max_size=8)


@given(PATTERNS, TEXTS)
@budget(500)
def test_a_pattern_allows_what_fullmatch_allows(pattern: str, text: str) -> None:
    try:
        net = network("regex", pattern)
    except GrammarError as error:
        assert "allows no text" in str(error)  # noqa: PT017
        return
    assert accepts(net, text) == bool(re.fullmatch(pattern, text, re.ASCII))


@given(PATTERNS, st.integers(0, 2**32))
@budget(300)
def test_what_a_pattern_writes_matches_it(pattern: str, seed: int) -> None:
    text = sample(network("regex", pattern), random.Random(seed))
    if text is not None:
        assert re.fullmatch(pattern, text, re.ASCII), text


@given(PATTERNS, TEXTS)
@budget(200)
def test_one_way_to_read_at_a_time(pattern: str, text: str) -> None:
    assert ways(network("regex", pattern), text) <= 1


@pytest.mark.parametrize("pattern", ["^abc$", r"\Aabc\Z", "(^abc|^d)$", "^(?P<n>abc)$", "^(abc|d$)"])
def test_anchors_at_the_ends_change_nothing(pattern: str) -> None:
    assert accepts(network("regex", pattern), "abc")


@pytest.mark.parametrize(
    ("pattern", "words"),
    [
        ("((((", "missing )"),
        ("a(?=b)", "look-around"),
        ("(?<!a)b", "look-around"),
        (r"(a)\1", "back-reference"),
        (r"a\bb", "anchor"),
        ("a^b", "anchor"),
        ("(?i)a", "flags"),
        ("(?i:a)", "flags"),
        (r"\p{L}", "bad escape"),
        ("a{5,2}", "min repeat"),
        ("a{20000}", "20,000 times"),
        ("a{99999999999}", "beyond any bound"),
        ("\0", "NUL"),
        (r"\x00", "NUL"),
        ("(" * 5000 + ")" * 5000, "too deeply"),
        ("(a{1,1000}){1,1000}", "too large"),
        (".{0,9000}.{0,9000}", "too large"),
        ("[^\\x01-\\U0010FFFF]", "no text"),
        ("*a", "nothing to repeat"),
    ],
)
def test_patterns_that_are_refused(pattern: str, words: str) -> None:
    with pytest.raises(GrammarError, match=re.escape(words)):
        prepare("regex", pattern)


def test_an_ambiguous_pattern_becomes_the_same_as_a_plain_one() -> None:
    assert prepare("regex", "(a|aa)+") == prepare("regex", "a+") == 'root ::= "a" s1\ns1 ::= "" | [a] s1\n'
    assert prepare("regex", "(([a-z]*)*)*") == prepare("regex", "[a-z]*")


@given(st.lists(st.text(st.characters(min_codepoint=1, exclude_categories=["Cs"]), min_size=1, max_size=6), min_size=1))
@budget(150)
def test_choices_are_allowed_and_nothing_else(choices: list[str]) -> None:
    net = network("choice", json.dumps(choices))
    assert all(accepts(net, choice) for choice in choices)
    assert not accepts(net, choices[0] + "§§") or choices[0] + "§§" in choices
    for seed in range(3):
        assert sample(net, random.Random(seed)) in choices


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[]", "at least one string"),
        ("{}", "at least one string"),
        ('["a", 1]', "not a string"),
        ('[""]', "at least one character"),
        ('["a"', "not JSON"),
        ('["a\\u0000"]', "NUL"),
    ],
)
def test_choices_that_are_refused(text: str, words: str) -> None:
    with pytest.raises(GrammarError, match=words):
        prepare("choice", text)


GRAMMARS = [
    ('root ::= "a" | "b"', ["a", "b"], ["", "ab", "c"]),
    ('root ::= "a"{2,3} # twice or more\n', ["aa", "aaa"], ["a", "aaaa"]),
    ('root ::= x+ y?\nx ::= [0-9]\ny ::=\n  "!" |\n  "?"', ["1", "12!", "3?"], ["", "!", "1!?"]),
    ('root ::= "(" root ")" | [a-z]+', ["a", "((ab))"], ["(a", "a)", "()"]),
    ('root ::= sum\nsum ::= t ("+" t)*\nt ::= [0-9]+ | "(" sum ")"', ["1+(2+3)+4", "7"], ["+", "1+", "(1"]),
    ('root ::= [^\\]\\n"]* "\\"" "\\u0041\\x42\\\\"', ['x"AB\\', '"AB\\'], ['"AB', ']"AB\\']),
    ('root ::= list\nlist ::= item | item "," list\nitem ::= [a-c]', ["a", "a,b,c"], ["", "a,", ",a"]),
    ("root ::= | [a-]+", ["", "a-a"], ["b"]),
]


@pytest.mark.parametrize(("grammar", "inside", "outside"), GRAMMARS)
def test_a_grammar_allows_what_it_says(grammar: str, inside: list[str], outside: list[str]) -> None:
    net = network("ebnf_grammar", grammar)
    assert [text for text in inside if not accepts(net, text)] == []
    assert [text for text in outside if accepts(net, text)] == []
    for seed in range(30):
        text = sample(net, random.Random(seed))
        assert text is None or (accepts(net, text) and ways(net, text) <= 1)


@pytest.mark.parametrize(("grammar", "inside", "outside"), GRAMMARS)
def test_what_is_printed_reads_back_the_same(grammar: str, inside: list[str], outside: list[str]) -> None:
    again = network("ebnf_grammar", prepare("ebnf_grammar", grammar))
    assert [text for text in inside if not accepts(again, text)] == []
    assert [text for text in outside if accepts(again, text)] == []


@pytest.mark.parametrize(
    ("grammar", "words"),
    [
        ("", "no rule 'root'"),
        ('start ::= "a"', "no rule 'root'"),
        ("root ::= foo", "'foo'"),
        ("root ::= root", "no text"),
        ('root ::= "a" dead\ndead ::= "x" dead', "no text"),
        ('root ::= "a', "line 1, column 10"),
        ('root ::= ("a"', "not closed"),
        ('root ::= "a")', "not expected"),
        ('root ::= "a"\nroot ::= "b"', "defined twice"),
        ("root ::= [z-a]", "backwards"),
        ("root ::= []", "empty"),
        ('root ::= "a"{3,1}', "least count"),
        ('root ::= "a"{1,20000}', "at most"),
        ('root ::= "a"{1,99999999999999999999}', "at most"),
        ('root ::= "a"**', "two repetitions"),
        ('root ::= "\\q"', "escape"),
        ('root ::= "\\ud800"', "no character"),
        ('root ::= "\\x00"', "no character"),
        ("root ::= " + "(" * 100, "inside each other"),
        ("hello", "a rule"),
        ('root = "a"', "line 1, column 6"),
        ("\n".join(["root ::= r0", *(f"r{i} ::= r{i + 1} r{i + 1}" for i in range(30)), 'r30 ::= "a"']), "too large"),
    ],
)
def test_grammars_that_are_refused(grammar: str, words: str) -> None:
    with pytest.raises(GrammarError, match=re.escape(words)):
        prepare("ebnf_grammar", grammar)


@pytest.mark.parametrize(
    "grammar",
    [
        'root ::= root "a" | "b"',
        'root ::= root root | "a"',
        'root ::= s\ns ::= "a" s | s "a" | "a"',
        'root ::= s\ns ::= s s | "a" | ""',
        'root ::= "a" root "a" | "a"',
        "root ::= x\nx ::= [a-z] x [a-z]* | [a-z]",
        'root ::= "(" x ")" | "(" x "]"\nx ::= "(" x ")" | "(" x "]" | "" | y\ny ::= y "z" | ""',
    ],
)
def test_grammars_with_two_ways_to_read_are_refused(grammar: str) -> None:
    with pytest.raises(Conflict, match="two ways"):
        prepare("ebnf_grammar", grammar)


def test_dead_ends_are_removed() -> None:
    net = Network(parse_ebnf('root ::= "a" "b" | "a" dead | "c"\ndead ::= "x" dead'))
    for seed in range(20):
        assert sample(net, random.Random(seed)) in ("ab", "c")


def test_a_grammar_of_json_as_others_write_it() -> None:
    grammar = r"""
        root ::= object
        value ::= object | array | string | number | ("true" | "false" | "null") ws
        object ::= "{" ws (string ":" ws value ("," ws string ":" ws value)*)? "}" ws
        array ::= "[" ws (value ("," ws value)*)? "]" ws
        string ::= "\"" ([^"\\\x7F\x01-\x1F] | "\\" (["\\bfnrt] | "u" [0-9a-fA-F]{4}))* "\"" ws
        number ::= ("-"? ([0-9] | [1-9] [0-9]{0,15})) ("." [0-9]+)? ([eE] [-+]? [0-9] [1-9]{0,15})? ws
        ws ::= | " " | "\n" [ \t]{0,20}
    """
    net = network("ebnf_grammar", grammar)
    assert accepts(net, '{"a": [1, -2.5e3, {"b": null}], "c": "x\\n"}')
    assert not accepts(net, '{"a": [1,}')
