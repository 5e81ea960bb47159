"""What a tool parser makes of a model's text, and what all parsers share.

A parser is fed the text of one sequence in pieces of any size and gives events. The events joined do not depend on how
the text was cut. Nothing is lost or doubled: text that turns out to be no call comes out as text, byte for byte. Only
what belongs to the form of a call goes: its markers, its keys, and white space that stands between or after calls.

What a piece costs follows from its length: every character is looked at a bounded number of times. What is held back is
bounded too (`MAX_HELD`): a longer beginning of a call is no call.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable, Sequence
from typing import TypeAlias

MAX_HELD = 64 << 10  # characters of something that may still become a call
MAX_GAP = 256  # characters of white space that may still lie between two calls
MAX_NAME = 256
SPACE = " \t\r\n"


@dataclasses.dataclass(frozen=True, slots=True)
class Text:
    """Text that belongs to no call."""

    text: str


@dataclasses.dataclass(frozen=True, slots=True)
class CallStart:
    """Call number `index` (from 0) of the tool `name`."""

    index: int
    name: str


@dataclasses.dataclass(frozen=True, slots=True)
class CallArguments:
    """More of the argument text of call `index`: a JSON object, once all of it is joined and the call is whole."""

    index: int
    text: str


@dataclasses.dataclass(frozen=True, slots=True)
class CallEnd:
    """The end of call `index`; not `whole` when its text breaks off or is malformed."""

    index: int
    whole: bool


ToolEvent: TypeAlias = Text | CallStart | CallArguments | CallEnd


class ToolParser(abc.ABC):
    """A parser of one family of formats, for one sequence."""

    begins = ""  # the character that every marker of the family begins with; empty: calls have none

    def __init__(self, max_calls: int | None = None) -> None:
        """Of more than `max_calls` calls the later ones are left out (parallel_tool_calls false)."""
        self._text = ""  # pushed, not yet used, from `_at` on
        self._at = 0
        self._calls = 0
        self._lead = ""  # used, and given back as text where no call comes of it
        self._open = False  # a call has started and not ended
        self._state: Callable[[], bool] = self._prose
        self._max_calls = max_calls
        self._gap: str | None = None  # white space after a whole call, of which nobody knows yet what follows
        self._events: list[ToolEvent] = []

    @property
    def calls(self) -> int:
        """Calls so far, the one under way among them."""
        return self._calls if self._max_calls is None else min(self._calls, self._max_calls)

    def push(self, text: str) -> list[ToolEvent]:
        """Take further text."""
        if self._at == len(self._text) and self._gap is None and self._is_plain(text):
            return [Text(text)] if text else []
        self._text = self._text[self._at :] + text
        self._at = 0
        while self._at < len(self._text) and self._state():
            pass
        return self._taken()

    def finish(self) -> list[ToolEvent]:
        """The text has ended: what is held back comes out, as what it is without more text."""
        self._end()
        if self._open:
            self._end_call(whole=False)
        self._say(self._text[self._at :])
        self._text, self._at, self._gap = "", 0, None
        return self._taken()

    def _only_text(self) -> bool:
        """A state: whatever comes is text."""
        self._say(self._text[self._at :])
        self._at = len(self._text)
        return True

    def _is_plain(self, text: str) -> bool:
        """Whether nothing in the text can begin a call: what most text is, told in a moment."""
        if self._state == self._only_text:
            return True
        return bool(self.begins) and self._state == self._prose and self.begins not in text

    @abc.abstractmethod
    def _prose(self) -> bool:
        """The first state. A state uses some of the text from `_at` on, which is not empty, and may set `_state` to
        what comes next. False: it needs more text.
        """

    @abc.abstractmethod
    def _end(self) -> None:
        """The text has ended: give out what has been used and may still have become a call."""

    # What parsers say.

    def _say(self, text: str) -> None:
        if self._gap is not None:
            text = self._gap + text
            if len(text) <= MAX_GAP and not text.strip(SPACE):
                self._gap = text
                return
            self._gap = None
        if not text:
            return
        last = self._events[-1] if self._events else None
        if isinstance(last, Text):
            self._events[-1] = Text(last.text + text)
        else:
            self._events.append(Text(text))

    def _start_call(self, name: str) -> None:
        self._calls += 1
        self._open, self._gap = True, None
        self._call_event(CallStart(self._calls - 1, name))

    def _argue(self, text: str) -> None:
        if not text:
            return
        last = self._events[-1] if self._events else None
        if isinstance(last, CallArguments):
            self._events[-1] = CallArguments(last.index, last.text + text)
        else:
            self._call_event(CallArguments(self._calls - 1, text))

    def _end_call(self, whole: bool) -> None:
        self._open, self._gap = False, "" if whole else None
        self._call_event(CallEnd(self._calls - 1, whole))

    def _call_event(self, event: CallStart | CallArguments | CallEnd) -> None:
        if self._max_calls is None or event.index < self._max_calls:
            self._events.append(event)

    def _taken(self) -> list[ToolEvent]:
        events, self._events = self._events, []
        return events

    # How parsers read.

    def _skip_space(self) -> str:
        """White space from here on, used."""
        begin = self._at
        while self._at < len(self._text) and self._text[self._at] in SPACE:
            self._at += 1
        return self._text[begin : self._at]

    def _after_space(self) -> str | None:
        """The character behind white space, which joins `_lead`. None: there is none yet; empty: too much of it."""
        self._lead += self._skip_space()
        if len(self._lead) > MAX_GAP:
            return ""
        return self._text[self._at] if self._at < len(self._text) else None

    def _use(self) -> None:
        """One character more belongs to what is given back."""
        self._lead += self._text[self._at]
        self._at += 1

    def _close_tag(self, tag: str) -> bool:
        """What a state does behind a whole call: white space and its closing tag go, which some models leave out."""
        self._lead += self._skip_space()
        fits = len(self._lead) <= MAX_GAP
        if fits and self._could_be(tag):
            return False
        if fits and self._text.startswith(tag, self._at):
            self._at += len(tag)
        else:
            self._say(self._lead)
        self._lead = ""
        self._state = self._prose
        return True

    def _could_be(self, marker: str) -> bool:
        """Whether the text from here on is a proper beginning of `marker`."""
        left = len(self._text) - self._at
        return left < len(marker) and marker.startswith(self._text[self._at :])

    def _say_until(self, markers: Sequence[str]) -> str | None:
        """Give out text up to the first of `markers`, which is used and returned. None: none is there yet, and what
        may become one is held back.
        """
        found = [(place, marker) for marker in markers if (place := self._text.find(marker, self._at)) >= 0]
        if found:
            place, marker = min(found, key=lambda item: (item[0], -len(item[1])))
            self._say(self._text[self._at : place])
            self._at = place + len(marker)
            return marker
        keep = max(possible_start(self._text, self._at, marker) for marker in markers)
        self._say(self._text[self._at : len(self._text) - keep])
        self._at = len(self._text) - keep
        return None


def possible_start(text: str, start: int, marker: str) -> int:
    """The length of the longest end of text[start:] that is a proper beginning of `marker`."""
    for length in range(min(len(marker) - 1, len(text) - start), 0, -1):
        if text.endswith(marker[:length]):
            return length
    return 0
