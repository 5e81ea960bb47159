"""<tool_call> <function=name> <parameter=key> value </parameter> </function> </tool_call>: Qwen3-Coder, Qwen3.5.

Values stand as they are, without quotes: their type in the tool's schema says what they are.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Mapping
from typing import Final

from inflight.answer.tools.events import MAX_GAP, MAX_HELD, MAX_NAME, ToolParser

OPEN: Final = "<tool_call>"
CLOSE: Final = "</tool_call>"
FUNCTION: Final = "<function="
FUNCTION_END: Final = "</function>"
PARAMETER: Final = "<parameter="
PARAMETER_END: Final = "</parameter>"

Types = Mapping[str, Mapping[str, str]]  # tool → parameter → its one JSON type; what is not there is text


class Qwen3CoderParser(ToolParser):
    """Text and calls in any order. Text values leave as they come, others once they are whole."""

    begins = "<"

    def __init__(self, types: Types, max_calls: int | None = None) -> None:
        super().__init__(max_calls)
        self._types = types
        self._tool = ""
        self._parameters = 0
        self._kind = "string"
        self._value: list[str] = []  # of a value that is not text, or the line break a text may end with
        self._held = 0

    def _prose(self) -> bool:
        marker = self._say_until([OPEN, FUNCTION])
        if marker is None:
            return False
        self._lead = marker
        self._state = self._function if marker == FUNCTION else self._opened
        return True

    def _opened(self) -> bool:
        self._lead += self._skip_space()
        if self._could_be(FUNCTION) and len(self._lead) <= MAX_GAP:
            return False
        if self._text.startswith(FUNCTION, self._at) and len(self._lead) <= MAX_GAP:
            self._at += len(FUNCTION)
            self._lead += FUNCTION
            self._state = self._function
        else:
            self._give_back()
        return True

    def _function(self) -> bool:
        name = self._name()
        if name is None:
            return False
        if not name:
            self._give_back()
            return True
        self._lead = ""
        self._tool, self._parameters = name, 0
        self._start_call(name)
        self._argue("{")
        self._state = self._inside
        return True

    def _name(self) -> str | None:
        """A name up to `>`, used; empty where there is none, None where that needs more text."""
        end = self._text.find(">", self._at, self._at + MAX_NAME + 1)
        if end < 0:
            return None if len(self._text) - self._at <= MAX_NAME else ""
        name = self._text[self._at : end]
        if not name or "<" in name or "\n" in name:
            return ""
        self._at = end + 1
        return name

    def _inside(self) -> bool:
        self._skip_space()
        if self._at == len(self._text):
            return True
        if self._text.startswith(FUNCTION_END, self._at):
            self._at += len(FUNCTION_END)
            self._argue("}")
            self._end_call(whole=True)
            self._state = self._closing
        elif self._text.startswith(PARAMETER, self._at):
            self._at += len(PARAMETER)
            self._state = self._parameter
        elif self._could_be(FUNCTION_END) or self._could_be(PARAMETER):
            return False
        else:
            self._break_off("")
        return True

    def _parameter(self) -> bool:
        key = self._name()
        if key is None:
            return False
        if not key:
            self._break_off(PARAMETER)
            return True
        self._kind = self._types.get(self._tool, {}).get(key, "string")
        self._value, self._held = [], 0
        self._argue((", " if self._parameters else "") + json.dumps(key, ensure_ascii=False) + ": ")
        self._parameters += 1
        if self._kind == "string":
            self._argue('"')
        self._state = self._value_begins
        return True

    def _value_begins(self) -> bool:
        if self._text[self._at] == "\n":
            self._at += 1
        self._state = self._in_value
        return True

    def _in_value(self) -> bool:
        end = self._text.find(PARAMETER_END, self._at)
        stop = end if end >= 0 else len(self._text) - self._kept()
        self._take(self._text[self._at : stop])
        self._at = stop
        if end < 0:
            return False
        self._at += len(PARAMETER_END)
        self._end_value()
        self._state = self._inside
        return True

    def _kept(self) -> int:
        for length in range(min(len(PARAMETER_END) - 1, len(self._text) - self._at), 0, -1):
            if self._text.endswith(PARAMETER_END[:length]):
                return length
        return 0

    def _take(self, text: str) -> None:
        if not text:
            return
        if self._kind != "string":
            self._held += len(text)
            if self._held <= MAX_HELD:
                self._value.append(text)
            return
        text = "".join(self._value) + text
        self._value = ["\n"] if text.endswith("\n") else []
        self._argue(_escaped(text[:-1] if self._value else text))

    def _end_value(self) -> None:
        """The line break before the closing tag belongs to the form."""
        if self._kind == "string":
            self._value = []
            self._argue('"')
        else:
            raw = "".join(self._value)
            self._value = []
            self._argue(_as_json(raw.removesuffix("\n"), self._kind))

    def _closing(self) -> bool:
        return self._close_tag(CLOSE)

    def _give_back(self) -> None:
        self._say(self._lead)
        self._lead = ""
        self._state = self._prose

    def _break_off(self, unused: str) -> None:
        self._end_call(whole=False)
        self._say(unused)
        self._state = self._prose

    def _end(self) -> None:
        self._say(self._lead)
        self._lead = ""
        if self._open:
            if self._state in (self._in_value, self._value_begins) and self._kind != "string":
                self._argue("".join(self._value))
            self._break_off(PARAMETER if self._state == self._parameter else "")


def _escaped(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)[1:-1]


def _no_json(word: str) -> object:
    raise ValueError(word)  # NaN and the infinities, which Python would take


def _as_json(raw: str, kind: str) -> str:
    """A value that its schema says is no text; text after all where it is none of that kind."""
    text = raw.strip()
    try:
        json.loads(text, parse_constant=_no_json)
        return text
    except (ValueError, RecursionError):
        pass
    try:
        return json.dumps(ast.literal_eval(text), ensure_ascii=False, allow_nan=False)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return json.dumps(raw, ensure_ascii=False)
