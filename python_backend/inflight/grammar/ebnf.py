"""A client's own grammar (GBNF: `name ::= …`, "literals", [classes], groups, `|`, `*`, `+`, `?`, `{m,n}`, # comments)
→ `nodes`. A rule goes on over line breaks until the next `name ::=`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from inflight.grammar import chars
from inflight.grammar.chars import CharSet
from inflight.grammar.nodes import Alt, Call, Chars, Grammar, GrammarError, Node, Repeat, Seq, literal
from inflight.grammar.regex import MAX_REPEAT

MAX_DEPTH = 64
MAX_RULES = 2_000

_TOKEN = re.compile(
    r"""(?P<space>\s+|\#[^\n]*)
    |(?P<define>[A-Za-z_][\w.-]*\s*::=)
    |(?P<name>[A-Za-z_][\w.-]*)
    |(?P<text>"(?:[^"\\\n]|\\.)*")
    |(?P<chars>\[(?:[^\]\\\n]|\\.)*\])
    |(?P<count>\{\s*\d+\s*(?:,\s*\d*\s*)?\})
    |(?P<sign>[()|*+?])""",
    re.VERBOSE | re.ASCII,
)
_PLAIN = {"n": "\n", "r": "\r", "t": "\t", "f": "\f", "v": "\v", "a": "\a", "b": "\b", "e": "\x1b"}
_ESCAPE = re.compile(r"\\(?:x([0-9A-Fa-f]{2})|u([0-9A-Fa-f]{4})|U([0-9A-Fa-f]{8})|(.))|([^\\])", re.DOTALL)


def parse_ebnf(text: str) -> Grammar:
    """Raises `GrammarError` with line and column for a grammar that is broken."""
    parser = _Parser(text)
    return Grammar(parser.rules())


class _Parser:
    def __init__(self, text: str) -> None:
        self._text = text
        self._tokens = list(self._split())
        self._next = 0
        self._depth = 0

    def _split(self) -> Iterator[tuple[str, str, int]]:
        place = 0
        while place < len(self._text):
            match = _TOKEN.match(self._text, place)
            if match is None:
                raise self._error(place, f"{self._text[place]!r} is not expected here")
            kind = match.lastgroup or ""
            if kind != "space":
                yield kind, match.group(), place
            place = match.end()

    def _error(self, place: int, problem: str) -> GrammarError:
        line = self._text.count("\n", 0, place) + 1
        column = place - self._text.rfind("\n", 0, place)
        return GrammarError(f"is not a grammar: line {line}, column {column}: {problem}")

    def _peek(self) -> tuple[str, str, int]:
        return self._tokens[self._next] if self._next < len(self._tokens) else ("end", "", len(self._text))

    def rules(self) -> dict[str, Node]:
        found: dict[str, Node] = {}
        while self._peek()[0] != "end":
            kind, token, place = self._peek()
            if kind != "define":
                raise self._error(place, "a rule (name ::= …) is expected here")
            self._next += 1
            name = token.split("::=")[0].strip()
            if name in found:
                raise self._error(place, f"the rule {name!r} is defined twice")
            found[name] = self._choice()
            if len(found) > MAX_RULES:
                raise GrammarError(f"has more than {MAX_RULES:,} rules")
            kind, token, place = self._peek()
            if kind not in ("define", "end"):
                raise self._error(place, f"{token!r} is not expected here")
        return found

    def _choice(self) -> Node:
        options = [self._sequence()]
        while self._peek()[1] == "|":
            self._next += 1
            options.append(self._sequence())
        return options[0] if len(options) == 1 else Alt(tuple(options))

    def _sequence(self) -> Node:
        parts: list[Node] = []
        while True:
            kind, token, _ = self._peek()
            if kind in ("define", "end") or token in ("|", ")"):
                return parts[0] if len(parts) == 1 else Seq(tuple(parts))
            parts.append(self._repeated(self._element()))

    def _element(self) -> Node:
        kind, token, place = self._peek()
        self._next += 1
        if kind == "name":
            return Call(token)
        if kind == "text":
            return literal("".join(self._characters(token[1:-1], place)))
        if kind == "chars":
            return Chars(self._class(token[1:-1], place))
        if token == "(":
            self._depth += 1
            if self._depth > MAX_DEPTH:
                raise self._error(place, f"more than {MAX_DEPTH} groups inside each other")
            node = self._choice()
            if self._peek()[1] != ")":
                raise self._error(place, "this group is not closed")
            self._next += 1
            self._depth -= 1
            return node
        raise self._error(place, f"{token!r} is not expected here")

    def _repeated(self, node: Node) -> Node:
        kind, token, place = self._peek()
        if kind == "count":
            least, most = self._counts(token, place)
        elif token in ("*", "+", "?"):
            least, most = {"*": (0, None), "+": (1, None), "?": (0, 1)}[token]
        else:
            return node
        self._next += 1
        if self._peek()[0] == "count" or self._peek()[1] in ("*", "+", "?"):
            raise self._error(place, "two repetitions of the same thing; put the first in a group")
        return Repeat(node, least, most)

    def _counts(self, token: str, place: int) -> tuple[int, int | None]:
        low, comma, high = token[1:-1].partition(",")
        if max(len(low.strip()), len(high.strip())) > 9:
            raise self._error(place, f"at most {MAX_REPEAT:,} repetitions are allowed")
        least = int(low)
        most = least if not comma else int(high) if high.strip() else None
        if most is not None and most < least:
            raise self._error(place, f"the least count ({least}) is more than the most ({most})")
        if max(least, most or 0) > MAX_REPEAT:
            raise self._error(place, f"at most {MAX_REPEAT:,} repetitions are allowed")
        return least, most

    def _characters(self, inside: str, place: int) -> Iterator[str]:
        for match in _ESCAPE.finditer(inside):
            short, four, eight, escaped, plain = match.groups()
            if plain is not None:
                yield plain
            elif escaped is not None:
                if escaped.isalnum() and escaped not in _PLAIN:
                    raise self._error(place, f"the escape \\{escaped} is not known")
                yield _PLAIN.get(escaped, escaped)
            else:
                code = int(short or four or eight, 16)
                if code > 0x10FFFF or 0xD800 <= code <= 0xDFFF or code == 0:
                    raise self._error(place, f"U+{code:04X} is no character that a model can write")
                yield chr(code)

    def _class(self, inside: str, place: int) -> CharSet:
        negated = inside.startswith("^")
        pieces = [(match.group(), match.end()) for match in _ESCAPE.finditer(inside, int(negated))]
        codes = [ord(char) for char in self._characters(inside[int(negated) :], place)]
        ranges: list[tuple[int, int]] = []
        step = 0
        while step < len(codes):
            if step + 2 < len(codes) and pieces[step + 1][0] == "-":
                if codes[step + 2] < codes[step]:
                    raise self._error(place, "a range of characters runs backwards")
                ranges.append((codes[step], codes[step + 2]))
                step += 3
            else:
                ranges.append((codes[step], codes[step]))
                step += 1
        found = chars.charset(ranges)
        if not negated and not found:
            raise self._error(place, "this class of characters is empty")
        return chars.complement(found) if negated else found
