"""Any kind of guide → the EBNF that the engine gets."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from typing import Any

from inflight.grammar import json_values as values
from inflight.grammar.ebnf import parse_ebnf
from inflight.grammar.json_schema import schema_grammar
from inflight.grammar.network import Conflict, Network
from inflight.grammar.nodes import Grammar, GrammarError, alt, literal
from inflight.grammar.regex import parse_regex
from inflight.grammar.thought import Thought, behind
from inflight.grammar.tools import any_values, tools_grammar

log = logging.getLogger("inflight.guides")


def prepare(kind: str, text: str, thought: Thought | None = None) -> str:
    """EBNF for a guide of kind json, json_schema, regex, ebnf_grammar, choice or tools, behind a thought.

    Raises `GrammarError` whose message completes the sentence "guided_decoding_guide …". May take long for a hostile
    guide: call it where it can be killed.
    """
    return network(kind, text, thought).print()


def network(kind: str, text: str, thought: Thought | None = None) -> Network:
    """The automata behind `prepare`."""
    try:
        return _network(kind, _reader(kind, text), thought)
    except Conflict as conflict:
        opened = _with_opened(text) if kind == "tools" else None
        if opened is None:
            raise
        log.warning("tools are guided without the values of %s (%s)", ", ".join(opened[1])[:200], conflict)
        return _network(kind, lambda share: tools_grammar(opened[0], share), thought)


def _network(kind: str, make: Callable[[bool], Grammar], thought: Thought | None) -> Network:
    conflict: Conflict | None = None
    for share in (True, False) if kind in _SHARING else (True,):
        grammar = make(share)
        for form in [grammar] if thought is None else behind(thought, grammar):
            try:
                return Network(form)
            except Conflict as error:
                conflict = error
    assert conflict is not None
    raise conflict


def _with_opened(text: str) -> tuple[object, list[str]] | None:
    """A guide of tools in which those that are not strict, and can be read in two ways, keep the names of their
    parameters and take any values; and which they are. None: there are none, or the tools conflict with each other.
    """
    guide: Any = parse_json(text)
    tools, names = [], []
    for tool in guide["tools"]:
        function = tool["function"]
        if function.get("strict") is not True and _conflicts({**guide, "tools": [tool]}):
            names.append(function["name"])
            tool = {**tool, "function": {**function, "parameters": any_values(function["parameters"])}}
        tools.append(tool)
    return ({**guide, "tools": tools}, names) if names else None


def _conflicts(guide: object) -> bool:
    try:
        _network("tools", lambda share: tools_grammar(guide, share), None)
    except Conflict:
        return True
    return False


_SHARING = frozenset({"json_schema", "tools"})


def _reader(kind: str, text: str) -> Callable[[bool], Grammar]:
    """Makes the grammar, from a text that is read once; what it takes says whether parts are shared."""
    if kind == "json":
        opaque = frozenset({"white", "string", "value"})
        return lambda _: Grammar({**values.RULES, "root": values.ANY_OBJECT}, opaque)
    if kind == "json_schema":
        schema = parse_json(text)
        return lambda share: schema_grammar(schema, share)
    if kind == "tools":
        tools = parse_json(text)
        return lambda share: tools_grammar(tools, share)
    if kind == "regex":
        return lambda _: Grammar({"root": parse_regex(text)})
    if kind == "choice":
        return lambda _: Grammar({"root": alt(literal(choice) for choice in parse_choices(text))})
    if kind == "ebnf_grammar":
        return lambda _: parse_ebnf(text)
    raise GrammarError(f"is of the unknown type {kind!r}")


def parse_json(text: str) -> object:
    """The value of a JSON text. Raises `GrammarError`."""
    try:
        return json.loads(text, parse_constant=_no_constant)
    except RecursionError:
        raise GrammarError("is nested too deeply") from None
    except ValueError as error:
        raise GrammarError(f"is not JSON: {error}") from None


def _no_constant(name: str) -> object:
    raise ValueError(f"{name} is no JSON value")


def parse_choices(text: str) -> list[str]:
    """The strings of a choice, a JSON list. Raises `GrammarError`."""
    choices = parse_json(text)
    if not isinstance(choices, list) or not choices:
        raise GrammarError("must be a JSON list with at least one string")
    for choice in choices:
        if not isinstance(choice, str) or not choice:
            raise GrammarError("has a choice that is not a string with at least one character")
    return choices
