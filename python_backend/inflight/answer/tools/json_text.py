"""JSON that arrives in pieces: where a value ends, and the name and the arguments of a call."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Final

from inflight.answer.tools.events import MAX_HELD, SPACE

MAX_DEPTH: Final = 128
_CLOSER: Final = {"{": "}", "[": "]"}
_AFTER_SCALAR: Final = frozenset(",}]" + SPACE)


class JsonValue:
    """Finds the end of one JSON value by its strings and brackets. It does not look whether a number or word is one."""

    __slots__ = ("_closers", "_escaped", "_in_scalar", "_in_string", "begun", "broken", "done")

    def __init__(self) -> None:
        self.done = False
        self.broken = False
        self.begun = False
        self._closers: list[str] = []
        self._in_string = False
        self._in_scalar = False
        self._escaped = False

    def feed(self, text: str, at: int) -> int:
        """Read on from text[at]; the position behind what belongs to the value. `done` or `broken` say whether to go
        on; a broken value's position is that of the character that does not fit.
        """
        while at < len(text) and not self.done:
            if self._in_string:
                at = self._string(text, at)
                continue
            character = text[at]
            if self._in_scalar:
                if character in _AFTER_SCALAR:
                    self.done = True
                    return at
            elif not self._begin(character):
                self.broken = True
                return at
            at += 1
        return at

    def end(self) -> None:
        """The text has ended: a number or word ends with it."""
        self.done = self.done or self._in_scalar

    def _begin(self, character: str) -> bool:
        """Take a character outside of strings; whether it fits."""
        if character == '"':
            self.begun = self._in_string = True
        elif character in _CLOSER:
            self.begun = True
            self._closers.append(_CLOSER[character])
            return len(self._closers) <= MAX_DEPTH
        elif self._closers:
            if character in "}]":
                if self._closers.pop() != character:
                    return False
                self.done = not self._closers
        elif character in ",:}]" or character in SPACE:
            return False
        else:
            self.begun = self._in_scalar = True
        return True

    def _string(self, text: str, at: int) -> int:
        if self._escaped:
            self._escaped = False
            return at + 1
        quote = text.find('"', at)
        end = len(text) if quote < 0 else quote
        slash = text.find("\\", at, end)
        if slash >= 0:
            self._escaped = True
            return slash + 1
        if quote < 0:
            return end
        self._in_string = False
        self.done = not self._closers
        return quote + 1


class CallObject:
    """One JSON object of a name and arguments, as it arrives.

    It is taken for a call once its name is known and its arguments begin (or it ends without any). Argument text then
    leaves as it comes, from `take`. Until then all of it is kept in `raw`, to be given back.
    """

    def __init__(self, accepts: Callable[[str], bool], keys: Sequence[str], needs_arguments: bool) -> None:
        """`accepts` a name or not; `keys` that arguments may stand under; `needs_arguments`: without them it is no
        call.
        """
        self.name: str | None = None
        self.started = False
        self.done = False
        self.broken = False
        self._accepts = accepts
        self._keys = keys
        self._needs_arguments = needs_arguments
        self._raw: list[str] = []
        self._held = 0
        self._arguments: list[str] = []
        self._has_arguments = False
        self._expect = "{"
        self._key = ""
        self._value = JsonValue()
        self._piece: list[str] = []
        self._streams = False  # the value under way is an object of arguments

    @property
    def raw(self) -> str:
        """All of it so far, while it has not started."""
        return "".join(self._raw)

    def take(self) -> str:
        """Argument text that is new, once it has started."""
        if not self.started:
            return ""
        text = "".join(self._arguments)
        self._arguments.clear()
        return text

    def feed(self, text: str, at: int) -> int:
        """Read on from text[at]; the position behind what belongs to the object (of a broken one: of what does not
        fit).
        """
        begin = at
        while at < len(text) and not self.done and not self.broken:
            room = len(text) if self.started else begin + MAX_HELD - self._held
            if at >= room:
                self.broken = True
                break
            at = self._step(text if room >= len(text) else text[:room], at)
        if not self.started:
            self._raw.append(text[begin:at])
            self._held += at - begin
        return at

    def _step(self, text: str, at: int) -> int:
        if self._expect in ("key", "value"):
            return self._read(text, at)
        character = text[at]
        if character in SPACE:
            return at + 1
        if self._expect == "{" and character == "{":
            self._expect = "first"
        elif self._expect in ("first", "next") and character == '"':
            self._begin_value("key")
            return at
        elif self._expect == ":" and character == ":":
            self._expect = "begin"
        elif self._expect == "begin":
            self._begin_value("value")
            self._streams = character == "{" and self._key in self._keys and not self._has_arguments
            if self._streams:
                self._has_arguments = True
                self._start()
            return at
        elif self._expect in (",", "first") and character == "}":
            self._finish()
        elif self._expect == "," and character == ",":
            self._expect = "next"
        else:
            self.broken = True
            return at
        return at + 1

    def _begin_value(self, expect: str) -> None:
        self._expect = expect
        self._value = JsonValue()
        self._piece.clear()

    def _read(self, text: str, at: int) -> int:
        end = self._value.feed(text, at)
        if self._streams:
            self._arguments.append(text[at:end])
        elif not self.started:  # later, nothing but the end of the object matters
            self._piece.append(text[at:end])
        if self._value.broken:
            self.broken = True
        elif self._value.done:
            self._complete("".join(self._piece))
        return end

    def _complete(self, raw: str) -> None:
        if self._expect == "key":
            key = _decoded(raw)
            self._key, self._expect = key if isinstance(key, str) else "", ":"
            return
        self._expect = ","
        if self._streams or self.started:
            self._streams = False
        elif self._key == "name" and self.name is None:
            name = _decoded(raw)
            if isinstance(name, str) and self._accepts(name):
                self.name = name
                if self._has_arguments:
                    self._start()
            else:
                self.broken = True
        elif self._key in self._keys and not self._has_arguments:
            self._has_arguments = True
            self._arguments.append(_as_object(raw))
            self._start()

    def _start(self) -> None:
        if self.name is not None:
            self.started = True

    def _finish(self) -> None:
        if self.name is None or (self._needs_arguments and not self._has_arguments):
            self.broken = True
            return
        if not self._has_arguments:
            self._arguments.append("{}")
        self.started = self.done = True


def _as_object(raw: str) -> str:
    """Arguments that are no object: none at all, or an object within a string, as some models write it."""
    value = _decoded(raw)
    if value is None and raw.strip() == "null":
        return "{}"
    if isinstance(value, str):
        if not value.strip():
            return "{}"
        if isinstance(_decoded(value), dict):
            return value
    return raw


def _decoded(raw: str) -> object:
    """The value of a JSON text; None also where it is none."""
    try:
        return json.loads(raw)
    except (ValueError, RecursionError):
        return None
