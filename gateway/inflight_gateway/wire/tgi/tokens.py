"""A text that arrives in pieces, given back token by token."""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from typing import Any

import msgspec

from inflight_gateway.core.events import Event
from inflight_gateway.wire.openai import LEAST_LOGPROB


class Token(msgspec.Struct):
    """A token as TGI names it. `special`: it is no part of the text."""

    id: int
    text: str
    logprob: float
    special: bool = False


class TokenTexts:
    """Gives every token its own part of the text.

    The model merges tokens into one response, and holds text back that may turn out to be a stop string. A token is
    given out when the text has come that it stands for; the last byte of a character brings all of it. A token whose
    text the answer does not have is a special one.
    """

    def __init__(self, top: bool) -> None:
        self._top = top
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._text = ""  # that has come, and that no token has yet
        self._waiting: list[tuple[Token, list[Token]]] = []
        self._first = True

    def push(self, event: Event) -> Iterator[tuple[Token, list[Token]]]:
        """The tokens that are complete now, each with the likeliest ones beside it."""
        self._text += event.text
        for token_id, said in zip(event.token_ids, event.logprobs, strict=False):
            chosen = said.get(str(token_id), {})
            token = Token(token_id, self._decoder.decode(_bytes(chosen)), _logprob(chosen))
            others = [Token(int(other), one.get("decoded_token") or "", _logprob(one)) for other, one in said.items()]
            self._waiting.append((token, others if self._top else []))
        place = 0
        for token, others in self._waiting:
            if not self._takes(token, over=bool(event.finish)):
                break
            place += 1
            if event.finish and place == len(self._waiting) and self._text:
                token.text, token.special, self._text = token.text + self._text, False, ""
            yield token, others
        del self._waiting[:place]

    def _takes(self, token: Token, over: bool) -> bool:
        """Whether the token's own text is there, or will never be."""
        shown = token.text.lstrip(" ") if self._first and not self._text.startswith(" ") else token.text
        if shown and self._text.startswith(shown):
            self._text, token.text, self._first = self._text[len(shown) :], shown, False
            return True
        if not token.text:  # a part of a character
            return True
        if not over and shown.startswith(self._text):
            return False
        token.special = True
        return True


def _bytes(said: dict[str, Any]) -> bytes:
    known = said.get("bytes")
    return bytes(known) if known is not None else (said.get("decoded_token") or "").encode()


def _logprob(said: dict[str, Any]) -> float:
    number = said.get("logprob")
    return LEAST_LOGPROB if number is None else max(float(number), LEAST_LOGPROB)
