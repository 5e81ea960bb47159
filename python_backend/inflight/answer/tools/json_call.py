"""A parser whose calls are JSON objects of a name and arguments."""

from __future__ import annotations

from inflight.answer.tools.events import ToolParser
from inflight.answer.tools.json_text import CallObject


class JsonCallParser(ToolParser):
    """What the formats with such objects share: `lead` is what stands before an object and is given back with it."""

    needs_arguments = False
    keys = ("arguments", "parameters")

    def __init__(self, max_calls: int | None = None) -> None:
        super().__init__(max_calls)
        self._object: CallObject | None = None

    def _accepts(self, name: str) -> bool:
        return bool(name)

    def _before_object(self) -> bool:
        """A state: white space, then an object, or else all of it is text."""
        character = self._after_space()
        if character == "{":
            self._object = CallObject(self._accepts, self.keys, self.needs_arguments)
            self._state = self._in_object
        elif character is not None:
            self._no_call()
        return True

    def _in_object(self) -> bool:
        call = self._object
        assert call is not None
        started = call.started
        self._at = call.feed(self._text, self._at)
        if call.started and not started:
            self._lead = ""
            self._start_call(call.name or "")
        self._argue(call.take())
        if call.broken:
            self._end()
            self._after_broken()
        elif call.done:
            self._object = None
            self._end_call(whole=True)
            self._state = self._after_object
        return True

    def _no_call(self) -> None:
        self._say(self._lead)
        self._lead = ""
        self._after_broken()

    def _after_object(self) -> bool:
        """A state: what follows a whole call."""
        raise NotImplementedError

    def _after_broken(self) -> None:
        """Set the state after something that began like a call and is none, or broke off."""
        self._state = self._prose

    def _end(self) -> None:
        call, self._object = self._object, None
        if call is not None and call.started:
            self._end_call(whole=False)
        else:
            self._say(self._lead + (call.raw if call is not None else ""))
        self._lead = ""
