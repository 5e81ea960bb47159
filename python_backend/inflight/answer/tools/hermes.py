"""<tool_call> {"name": …, "arguments": {…}} </tool_call>: Hermes, Qwen2.5, Qwen3, SmolLM3 and many fine-tunes."""

from __future__ import annotations

from inflight.answer.tools.json_call import JsonCallParser

OPEN = "<tool_call>"
CLOSE = "</tool_call>"


class HermesParser(JsonCallParser):
    """Text and calls in any order. A call without its closing tag counts: some models leave it out."""

    begins = "<"

    def _prose(self) -> bool:
        if self._say_until([OPEN]) is None:
            return False
        self._lead = OPEN
        self._state = self._before_object
        return True

    def _after_object(self) -> bool:
        return self._close_tag(CLOSE)
