"""[name(a=1, b="x"), other()] as the whole answer: Llama 3.2 and 4, OLMo."""

from __future__ import annotations

import ast
import json
from collections.abc import Collection
from typing import Final

from inflight.answer.tools.events import MAX_GAP, MAX_HELD, MAX_NAME, SPACE, ToolParser

_CLOSER: Final = {"(": ")", "[": "]", "{": "}"}
_MAX_DEPTH: Final = 64


class PythonicParser(ToolParser):
    """Calls of this request's tools with keyword arguments, each of which leaves, as JSON, once it is whole."""

    def __init__(self, names: Collection[str], max_calls: int | None = None) -> None:
        super().__init__(max_calls)
        self._names = frozenset(names)
        self._longest = max(map(len, self._names), default=0)
        self._value = _Literal()
        self._key = ""
        self._keys = 0

    def _prose(self) -> bool:
        character = self._after_space()
        if character == "[":
            self._use()
            self._state = self._name
        elif character is not None:
            self._give_up()
        return True

    def _name(self) -> bool:
        if self._after_space() is None:
            return True
        end = self._text.find("(", self._at, self._at + self._longest + 1)
        head = self._text[self._at :] if end < 0 else self._text[self._at : end]
        if end >= 0 and head in self._names and len(self._lead) <= MAX_GAP:
            self._at = end + 1
            self._lead = ""
            self._keys = 0
            self._start_call(head)
            self._argue("{")
            self._state = self._argument
            return True
        if end < 0 and len(self._lead) <= MAX_GAP and any(name.startswith(head) for name in self._names):
            return False
        self._give_up()
        return True

    def _argument(self) -> bool:
        """The name of an argument, or the end of them."""
        self._skip_space()
        if self._at == len(self._text):
            return True
        if self._text[self._at] == ")":
            self._at += 1
            self._argue("}")
            self._end_call(whole=True)
            self._state = self._after_call
            return True
        end = self._text.find("=", self._at, self._at + MAX_NAME + 1)
        if end < 0 and len(self._text) - self._at <= MAX_NAME and _like_a_key(self._text[self._at :]):
            return False
        if end < 0 or not self._text[self._at : end].strip(SPACE).isidentifier():
            self._break_off()
            return True
        self._key = self._text[self._at : end + 1]
        self._at = end + 1
        self._value = _Literal()
        self._state = self._literal
        return True

    def _literal(self) -> bool:
        value = self._value
        self._at = value.feed(self._text, self._at)
        if value.broken:
            self._break_off(self._key + value.raw)
        elif value.done:
            text = value.as_json()
            if text is None:
                self._break_off(self._key + value.raw)
                return True
            key = json.dumps(self._key[:-1].strip(SPACE), ensure_ascii=False)
            self._argue((", " if self._keys else "") + key + ": " + text)
            self._keys += 1
            if self._text[self._at] == ",":
                self._at += 1
            self._state = self._argument
        return True

    def _after_call(self) -> bool:
        character = self._after_space()
        if character == ",":
            self._use()
            self._state = self._name
        elif character == "]":
            self._at += 1
            self._lead = ""
            self._state = self._only_text
        elif character is not None:
            self._give_up()
        return True

    def _give_up(self) -> None:
        self._end()
        self._state = self._only_text

    def _break_off(self, unused: str = "") -> None:
        """End the call under way at what is no argument; `unused` of it has been read."""
        self._end_call(whole=False)
        self._say(unused)
        self._state = self._only_text

    def _end(self) -> None:
        self._say(self._lead)
        self._lead = ""
        if self._open:
            self._break_off(self._key + self._value.raw if self._state == self._literal else "")


class _Literal:
    """One Python literal as it arrives, up to the comma or bracket behind it."""

    def __init__(self) -> None:
        self.done = False
        self.broken = False
        self._pieces: list[str] = []
        self._length = 0
        self._closers: list[str] = []
        self._quote = ""
        self._escaped = False

    @property
    def raw(self) -> str:
        return "".join(self._pieces)

    def feed(self, text: str, at: int) -> int:
        """Read on from text[at]; the position of what ends the value, which is not used."""
        begin = at
        while at < len(text) and not self.broken:
            if self._length + at - begin >= MAX_HELD:
                self.broken = True
            elif self._take(text[at]):
                at += 1
            else:
                break
        self._pieces.append(text[begin:at])
        self._length += at - begin
        return at

    def _take(self, character: str) -> bool:
        """Whether the character belongs to the value."""
        if self._quote:
            if self._escaped:
                self._escaped = False
            elif character == "\\":
                self._escaped = True
            elif character == self._quote:
                self._quote = ""
            return True
        if character in "'\"":
            self._quote = character
        elif character in _CLOSER:
            self._closers.append(_CLOSER[character])
            self.broken = len(self._closers) > _MAX_DEPTH
        elif self._closers:
            if character in ")]}" and self._closers.pop() != character:
                self.broken = True
        elif character in ",)":
            self.done = True
            return False
        elif character in "]}":
            self.broken = True
        return not self.broken

    def as_json(self) -> str | None:
        """None when it is no literal that JSON has."""
        raw = self.raw.strip(SPACE)
        if raw in ("true", "false", "null"):
            return raw
        try:
            value = ast.literal_eval(raw)
            return json.dumps(value, ensure_ascii=False, allow_nan=False)
        except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
            return None


def _like_a_key(text: str) -> bool:
    name = text.rstrip(SPACE)
    return name.isidentifier()
