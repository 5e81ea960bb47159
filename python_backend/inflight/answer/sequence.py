"""One sequence's way from token ids to text that may be sent."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence

from inflight.answer.detokenizer import Detokenizer
from inflight.answer.stops import StopMatcher
from inflight.request.stop_words import Stops


@dataclasses.dataclass(frozen=True, slots=True)
class Pushed:
    """What some further tokens gave: text to send, how many of the tokens were used, and the stop string, as the
    client wrote it, that ended it (empty: none did).
    """

    text: str
    tokens_used: int
    stop: str = ""

    @property
    def stopped(self) -> bool:
        """Whether a stop string ended it."""
        return bool(self.stop)


_MARK = re.compile("[\ud800-\udfff]")


class SequenceText:
    """Detokenizes and looks for stop strings. Gives the same text however the tokens are cut into pieces."""

    __slots__ = ("_detokenizer", "_early", "_includes", "_marks", "_matcher", "_words")

    def __init__(self, detokenizer: Detokenizer, stops: Stops) -> None:
        self._detokenizer = detokenizer
        self._matcher = StopMatcher(stops.strings)
        self._marks = stops.marks
        self._words = stops.words
        self._includes = stops.included
        self._early = stops.min_tokens  # of the tokens to come: no stop string that ends in their text counts

    def push(self, token_ids: Sequence[int]) -> Pushed:
        """Take further tokens. When a stop string is found, tokens after the one that completed it are not used."""
        state, held = self._detokenizer.snapshot(), self._matcher.held
        text, stopped = self._read(token_ids, self._early)
        if not stopped:
            self._early = max(0, self._early - len(token_ids))
            return Pushed(self._shown(text), len(token_ids))
        # Rare (once per sequence at most): go back and walk token by token, to know which one completed the stop
        # string.
        self._detokenizer.restore(state)
        self._matcher.held = held
        text = ""
        for used, token_id in enumerate(token_ids, 1):
            piece, stopped = self._read([token_id], self._early - used + 1)
            text += piece
            if stopped:
                matched = self._matcher.matched
                stop = self._words.get(matched, matched)
                return Pushed(self._shown(text) + (stop if self._includes else ""), used, stop)
        raise AssertionError("a stop string was found in the whole but not token by token")

    def finish(self) -> str:
        """The text held back for a stop string that did not come. Incomplete bytes of a character are dropped."""
        return self._shown(self._matcher.flush())

    def text_of(self, token_id: int) -> str:
        """The text of the token that ended the sequence; after `finish`."""
        return self._detokenizer.push([token_id])

    def _read(self, token_ids: Sequence[int], early: int) -> tuple[str, bool]:
        """(text that may be emitted, marks included; whether a stop string was found) of tokens, `early` of them within
        min_tokens.
        """
        if early <= 0:
            return self._matcher.push(self._decode(token_ids))
        text = self._matcher.pass_over(self._decode(token_ids[:early]))
        if early >= len(token_ids):
            return text, False
        more, stopped = self._matcher.push(self._decode(token_ids[early:]))
        return text + more, stopped

    def _decode(self, token_ids: Sequence[int]) -> str:
        if not self._marks:
            return self._detokenizer.push(token_ids)
        return "".join(self._detokenizer.push([token_id]) + self._marks.get(token_id, "") for token_id in token_ids)

    def _shown(self, text: str) -> str:
        return _MARK.sub("", text) if self._marks else text
