"""Control tokens in what a client writes are text.

A chat template puts control tokens such as <|im_end|> between the messages. The same characters within a message would
become the same tokens, and whoever writes a message could end it and begin another one in somebody else's name. So what
a message has of them is marked before the template sees it, and encoded as the plain characters that it is.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

from tokenizers import Tokenizer

from inflight.errors import invalid
from inflight.request.chat import ChatOptions
from inflight.request.messages import Message

Marks: TypeAlias = tuple[str, str]

_MARKS = [(chr(code), chr(code + 1)) for code in range(0xFDD0, 0xFDF0, 2)]  # no characters, for use within a process
_MARK = re.compile("[\ufdd0-\ufdef]")


class ControlTokens:
    """The tokens of one model that are not for clients to write. Thread-safe.

    Those are the special tokens and the other added ones that the chat template itself writes, such as <tool_response>.
    What an assistant said may hold the latter: they are what it is meant to write.
    """

    def __init__(self, library: Tokenizer, template_words: Iterable[str] = ()) -> None:
        added = library.get_added_tokens_decoder()
        words = [word for word in template_words if word]
        ids = {token.content: token_id for token_id, token in added.items() if token.content.strip() and token.special}
        self._special = _pattern(ids)
        for token_id, token in added.items():
            if token.content.strip() and any(token.content in word for word in words):
                ids[token.content] = token_id
        self._ids = ids
        self._guarded = frozenset(ids.values())
        self._pattern = _pattern(ids)
        # For text that begins a prompt, and for text that does not. Made here, so that the first such message holds
        # nobody up and takes no memory.
        self._libraries = _without(library, ids) if ids else (library, library)

    def mark(self, messages: list[Message], chat: ChatOptions) -> tuple[list[Message], ChatOptions, Marks | None]:
        """The messages and options with marks around control tokens, and the marks; None: there are none."""
        if self._pattern is None:
            return messages, chat, None
        others = {"tools": chat.tools, "documents": chat.documents, "kwargs": chat.template_kwargs}
        if not any(self._pattern.search(text) for text in _texts([messages, others])):
            return messages, chat, None
        used = {character for text in _texts([messages, others]) for character in text if _MARK.match(character)}
        marks = next((pair for pair in _MARKS if not used.intersection(pair)), None)
        if marks is None:
            raise invalid("messages", "hold code points from U+FDD0 to U+FDEF, which are no characters; remove them")
        marked = [
            _changed(message, self._special if message["role"] == "assistant" else self._pattern, marks)
            for message in messages
        ]
        changed = _changed(others, self._pattern, marks)
        if marked == messages and changed == others:
            return messages, chat, None
        options = dataclasses.replace(
            chat, tools=changed["tools"], documents=changed["documents"], template_kwargs=changed["kwargs"]
        )
        return marked, options, marks

    def encode(self, text: str, marks: Marks) -> tuple[str, list[int]]:
        """(the text without marks, its token ids): control tokens between marks are text, others are themselves."""
        pattern = self._pattern
        assert pattern is not None
        opening, closing = marks
        for mark in marks:  # as JSON within a prompt may have it
            text = text.replace(json.dumps(mark)[1:-1], mark)
        clean, segment = "", ""
        ids: list[int] = []
        at = 0
        for found in re.finditer(f"{opening}({pattern.pattern}){closing}|{pattern.pattern}", text):
            segment += _bare(text[at : found.start()], marks)
            at = found.end()
            if found[1] is not None:
                segment += found[1]
                continue
            ids += self._plain(segment, first=not clean)
            ids.append(self._ids[found[0]])
            clean += segment + found[0]
            segment = ""
        segment += _bare(text[at:], marks)
        ids += self._plain(segment, first=not clean)
        return clean + segment, ids

    def _plain(self, text: str, first: bool) -> list[int]:
        """Token ids of text in which nothing is a control token."""
        begins, goes_on = self._libraries
        ids = _encode(begins if first else goes_on, text)
        if self._guarded.isdisjoint(ids):
            return ids
        # The vocabulary itself has such a piece: cut it after its first character, so that it is not read as one.
        ids, at = [], 0
        pieces = []
        for found in self._pattern.finditer(text) if self._pattern is not None else ():
            pieces.append(text[at : found.start() + 1])
            at = found.start() + 1
        for place, piece in enumerate([*pieces, text[at:]]):
            ids += _encode(begins if first and not place else goes_on, piece)
        return [token_id for token_id in ids if token_id not in self._guarded]


def _encode(library: Tokenizer, text: str) -> list[int]:
    if not text:
        return []
    (encoding,) = library.encode_batch_fast([text], add_special_tokens=False)
    ids: list[int] = encoding.ids
    return ids


def _bare(text: str, marks: Marks) -> str:
    return text.replace(marks[0], "").replace(marks[1], "")


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _texts(key)
            yield from _texts(inner)
    elif isinstance(value, Sequence):
        for inner in value:
            yield from _texts(inner)


def _changed(value: Any, pattern: re.Pattern[str] | None, marks: Marks) -> Any:
    if pattern is None:
        return value
    if isinstance(value, str):
        return pattern.sub(lambda found: marks[0] + found[0] + marks[1], value)
    if isinstance(value, Mapping):
        return {key: _changed(inner, pattern, marks) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_changed(inner, pattern, marks) for inner in value)
    return value


def _pattern(tokens: Iterable[str]) -> re.Pattern[str] | None:
    names = sorted(tokens, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, names))) if names else None


def _without(library: Tokenizer, tokens: Mapping[str, int]) -> tuple[Tokenizer, Tokenizer]:
    """The tokenizer without these added tokens, for text that begins a prompt, and for text that does not: some put a
    blank before the first alone. Mostly both are the same.

    The vocabulary is not read here: as Python's objects it would take ten times the memory, and hold everybody up.
    """
    text = library.to_str()
    added = _member(text, "added_tokens")
    text = added.replaced([token for token in added.value if token["content"] not in tokens])
    text = _member(text, "post_processor").replaced(None)
    step = _member(text, "pre_tokenizer")
    first = _made(text)
    return first, _made(step.replaced(step.value)) if _never_first(step.value) else first


@dataclasses.dataclass(frozen=True, slots=True)
class _Member:
    """A member of the tokenizer's JSON: its value is text[start:end]."""

    text: str
    start: int
    end: int
    value: Any

    def replaced(self, value: Any) -> str:
        return self.text[: self.start] + json.dumps(value, ensure_ascii=False) + self.text[self.end :]


def _member(text: str, name: str) -> _Member:
    key = f'"{name}":'
    start = text.index(key) + len(key)  # within strings quotation marks are escaped, so this is none
    value, end = json.JSONDecoder().raw_decode(text, start)
    return _Member(text, start, end, value)


def _made(text: str) -> Tokenizer:
    plain = Tokenizer.from_str(text)
    plain.no_truncation()
    plain.no_padding()
    return plain


def _never_first(step: Any) -> bool:
    """Change it such that no text counts as the first; whether there was anything to change."""
    if not isinstance(step, dict):
        return False
    changed = step.get("type") == "Metaspace" and step.get("prepend_scheme") == "first"
    if changed:
        step["prepend_scheme"] = "never"
    return any([changed, *map(_never_first, step.get("pretokenizers", []))])
