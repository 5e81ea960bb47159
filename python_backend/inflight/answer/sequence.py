"""One sequence's way from token ids to text that may be sent."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from inflight.answer.detokenizer import Detokenizer
from inflight.answer.stops import StopMatcher


@dataclasses.dataclass(frozen=True, slots=True)
class Pushed:
    """What some further tokens gave: text to send, how many of the tokens were used, and whether a stop string ended
    it.
    """

    text: str
    tokens_used: int
    stopped: bool


class SequenceText:
    """Detokenizes and looks for stop strings. Gives the same text however the tokens are cut into pieces."""

    __slots__ = ("_detokenizer", "_matcher")

    def __init__(self, detokenizer: Detokenizer, stops: Sequence[str]) -> None:
        self._detokenizer = detokenizer
        self._matcher = StopMatcher(stops)

    def push(self, token_ids: Sequence[int]) -> Pushed:
        """Take further tokens. When a stop string is found, tokens after the one that completed it are not used."""
        state, held = self._detokenizer.snapshot(), self._matcher.held
        text, stopped = self._matcher.push(self._detokenizer.push(token_ids))
        if not stopped:
            return Pushed(text, len(token_ids), False)
        # Rare (once per sequence at most): go back and walk token by token, to know which one completed the stop
        # string.
        self._detokenizer.restore(state)
        self._matcher.held = held
        text = ""
        for used, token_id in enumerate(token_ids, 1):
            piece, stopped = self._matcher.push(self._detokenizer.push([token_id]))
            text += piece
            if stopped:
                return Pushed(text, used, True)
        raise AssertionError("a stop string was found in the whole but not token by token")

    def finish(self) -> str:
        """The text held back for a stop string that did not come. Incomplete bytes of a character are dropped."""
        return self._matcher.flush()
