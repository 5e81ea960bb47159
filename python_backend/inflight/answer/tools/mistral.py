"""[TOOL_CALLS] and a JSON list of calls, or [TOOL_CALLS]name[ARGS]{…} (tokenizers from v11 on): Mistral."""

from __future__ import annotations

from inflight.answer.tools.events import MAX_NAME
from inflight.answer.tools.json_call import JsonCallParser
from inflight.answer.tools.json_text import JsonValue

MARK = "[TOOL_CALLS]"
ARGUMENTS = "[ARGS]"
CALL_ID = "[CALL_ID]"
_NAME = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-.")


class JsonListParser(JsonCallParser):
    """A JSON list of calls as the whole answer, which is also what a guide makes where a model has no form of its
    own.
    """

    def _prose(self) -> bool:
        character = self._after_space()
        if character == "[":
            self._use()
            self._state = self._before_object
        elif character is not None:
            self._no_call()
        return True

    def _after_object(self) -> bool:
        character = self._after_space()
        if character == ",":
            self._use()
            self._state = self._before_object
        elif character == "]":
            self._at += 1
            self._lead = ""
            self._after_list()
        elif character is not None:
            self._no_call()
        return True

    def _after_list(self) -> None:
        self._state = self._only_text

    def _after_broken(self) -> None:
        self._state = self._only_text


class MistralParser(JsonListParser):
    """Text, and after the mark calls in either form."""

    begins = "["

    def __init__(self, max_calls: int | None = None) -> None:
        super().__init__(max_calls)
        self._value: JsonValue | None = None

    def _prose(self) -> bool:
        if self._say_until([MARK]) is None:
            return False
        self._lead = MARK
        self._state = self._marked
        return True

    def _marked(self) -> bool:
        character = self._after_space()
        if character == "[":
            self._use()
            self._state = self._before_object
        elif character and character in _NAME:
            self._state = self._name
        elif character is not None:
            self._no_call()
        return True

    def _name(self) -> bool:
        head = _read_head(self._text, self._at)
        if head is None:
            return False
        name, self._at = head[0], head[1]
        if not name:
            self._no_call()
            return True
        self._lead = ""
        self._start_call(name)
        self._value = JsonValue()
        self._state = self._arguments
        return True

    def _arguments(self) -> bool:
        value, begin = self._value, self._at
        assert value is not None
        if self._text[begin] != "{" and not value.begun:
            if not self._skip_space():
                self._break_off()
            return True
        self._at = value.feed(self._text, begin)
        self._argue(self._text[begin : self._at])
        if value.broken:
            self._break_off()
        elif value.done:
            self._value = None
            self._end_call(whole=True)
            self._state = self._prose
        return True

    def _break_off(self) -> None:
        self._value = None
        self._end_call(whole=False)
        self._state = self._prose

    def _after_list(self) -> None:
        self._state = self._prose

    def _after_broken(self) -> None:
        self._state = self._prose


def _read_head(text: str, at: int) -> tuple[str, int] | None:
    """name, optionally [CALL_ID]id, [ARGS]: (name, the position behind it). An empty name, at `at`, where it is no such
    thing; None where that needs more text.
    """
    end = _word(text, at)
    name = text[at:end]
    expected = [CALL_ID, ARGUMENTS]
    if text.startswith(CALL_ID, end):
        end = _word(text, end + len(CALL_ID))
        expected = [ARGUMENTS]
    if end - at > 2 * MAX_NAME:
        return "", at
    if text.startswith(ARGUMENTS, end):
        return name, end + len(ARGUMENTS)
    rest = text[end : end + len(CALL_ID)]
    return None if any(marker.startswith(rest) for marker in expected) else ("", at)


def _word(text: str, at: int) -> int:
    end = at
    while end < len(text) and text[end] in _NAME and end - at <= 2 * MAX_NAME:
        end += 1
    return end
