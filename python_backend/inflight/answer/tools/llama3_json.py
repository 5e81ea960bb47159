"""{"name": …, "parameters": {…}} as the whole answer: Llama 3.1 to 3.3."""

from __future__ import annotations

from collections.abc import Collection

from inflight.answer.tools.json_call import JsonCallParser

TAG = "<|python_tag|>"


class Llama3JsonParser(JsonCallParser):
    """One call, or several with `;` between them, from the first character on; the tag before them is optional.

    JSON is also what a client may have asked for as an answer, so only the name of a tool of this request, with
    arguments, makes a call.
    """

    needs_arguments = True

    def __init__(self, names: Collection[str], max_calls: int | None = None) -> None:
        super().__init__(max_calls)
        self._names = frozenset(names)

    def _accepts(self, name: str) -> bool:
        return name in self._names

    def _prose(self) -> bool:
        if self._after_space() is not None:
            if self._could_be(TAG):
                return False
            if self._text.startswith(TAG, self._at):
                self._at += len(TAG)
                self._lead += TAG
            self._state = self._before_object
        return True

    def _after_object(self) -> bool:
        character = self._after_space()
        if character == ";":
            self._use()
            self._state = self._before_object
        elif character is not None:
            self._no_call()
        return True

    def _after_broken(self) -> None:
        self._state = self._only_text
