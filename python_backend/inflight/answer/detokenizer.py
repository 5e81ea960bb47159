"""Token ids to text, incrementally: the same text however the ids are cut into pieces.

For byte-level BPE and for SentencePiece-style tokenizers every token stands for fixed bytes, so a table of bytes and
the standard library's incremental UTF-8 decoder are exact and fast. The table is checked against the tokenizer's own
decoder when it is built; a tokenizer that fails the check is decoded through the library with a sliding window of
tokens instead.

A character split over tokens is whole or absent, never U+FFFD: bytes that are still incomplete when a sequence ends are
dropped. Bytes that are no UTF-8 at all become U+FFFD, as everywhere.
"""

from __future__ import annotations

import codecs
import json
import random
import re
from collections.abc import Sequence
from typing import Any, Protocol

from tokenizers import Tokenizer

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_WINDOW = 6  # tokens of context for the fallback: enough for a 4-byte character and a word piece on either side
_CHECK_TEXTS = (
    "Hello, world! It's 12:34 — naïve café.",
    "Ein Wörterbuch für Übermut\n\n\tif x == 1:\n        return y  # done",
    "日本語のテキスト、한국어 텍스트，Русский текст",
    "🙂👩‍👩‍👧‍👦 e\u0301 flags 🇩🇪",
)

State = Any  # what `snapshot` gives and `restore` takes; opaque to callers


class Detokenizer(Protocol):
    """One sequence's decoder."""

    def push(self, token_ids: Sequence[int]) -> str:
        """The text that is certain after these further tokens."""

    def snapshot(self) -> State:
        """The state now, for `restore`."""

    def restore(self, state: State) -> None:
        """Go back to a snapshot."""


class ByteDetokenizer:
    """Decodes through a table of bytes per token id. With `strip` one space at the very beginning is left out."""

    __slots__ = ("_decoder", "_strip", "_table")

    def __init__(self, table: Sequence[bytes], strip: bool = False) -> None:
        self._table = table
        self._strip = strip
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token_ids: Sequence[int]) -> str:
        text = self._decoder.decode(b"".join(map(self._table.__getitem__, token_ids)))
        if self._strip and text:
            self._strip = False
            return text.removeprefix(" ")
        return text

    def snapshot(self) -> State:
        return self._decoder.getstate(), self._strip

    def restore(self, state: State) -> None:
        decoder_state, self._strip = state
        self._decoder.setstate(decoder_state)


class WindowDetokenizer:
    """Decodes through the library, token by token, with the tokens before as context; for tokenizers without a byte
    table.
    """

    __slots__ = ("_hidden", "_ids", "_skip_special", "_start", "_tokenizer", "_upto")

    def __init__(
        self, tokenizer: Tokenizer, skip_special: bool, context: Sequence[int], hidden: frozenset[int] = frozenset()
    ) -> None:
        """`hidden` tokens have no text, besides the special ones with `skip_special`."""
        self._tokenizer = tokenizer
        self._skip_special = skip_special
        self._hidden = hidden
        self._ids = list(context[-_WINDOW:])
        self._start = 0  # the window begins here
        self._upto = len(self._ids)  # tokens whose text has been given out

    def push(self, token_ids: Sequence[int]) -> str:
        return "".join(self._push_one(token_id) for token_id in token_ids)

    def _push_one(self, token_id: int) -> str:
        if token_id in self._hidden:
            return ""
        self._ids.append(token_id)
        before = self._decode(self._ids[self._start : self._upto])
        after = self._decode(self._ids[self._start :])
        if after == before:
            self._ids.pop()  # a token without text is no context either
            return ""
        if len(after) <= len(before) or after.endswith("\ufffd"):
            return ""
        self._start = max(self._start, self._upto - _WINDOW)
        self._upto = len(self._ids)
        if self._start > 4 * _WINDOW:
            del self._ids[: self._start]
            self._upto -= self._start
            self._start = 0
        return after[len(before) :]

    def _decode(self, token_ids: Sequence[int]) -> str:
        return str(self._tokenizer.decode(list(token_ids), skip_special_tokens=self._skip_special))

    def snapshot(self) -> State:
        return list(self._ids), self._start, self._upto

    def restore(self, state: State) -> None:
        ids, self._start, self._upto = state
        self._ids = list(ids)


class DetokenizerFactory:
    """Makes a decoder per sequence; owns the byte tables of one tokenizer.

    `vocab_size` is the engine's: models often have more rows than the tokenizer has tokens, and those decode to
    nothing.
    """

    def __init__(self, tokenizer: Tokenizer, vocab_size: int) -> None:
        self._tokenizer = tokenizer
        self.special_ids = frozenset(
            token_id for token_id, token in tokenizer.get_added_tokens_decoder().items() if token.special
        )
        table = _byte_table(tokenizer, vocab_size)
        self.exact = table is not None and _agrees(tokenizer, table, self.special_ids)
        self._with_special = table if table is not None and self.exact else []
        # SentencePiece-style decoders drop the first space of a whole text: ours only of a text that nothing precedes.
        spaced = next((token_id for token_id, data in enumerate(self._with_special) if data[:1] == b" "), None)
        self._strips = spaced is not None and not str(tokenizer.decode([spaced])).startswith(" ")
        self._shown: tuple[frozenset[int], list[bytes]] = (frozenset(), [])
        self._without_special = [
            b"" if token_id in self.special_ids else data for token_id, data in enumerate(self._with_special)
        ]

    def make(self, skip_special: bool, context: Sequence[int], shown: frozenset[int] = frozenset()) -> Detokenizer:
        """A decoder for tokens that follow `context` (the prompt's ids). Special tokens that are `shown` have text even
        with `skip_special`.
        """
        if self.exact:
            strip = self._strips and not any(map(self._without_special.__getitem__, context))
            table = self._table(shown) if skip_special else self._with_special
            return ByteDetokenizer(table, strip)
        if skip_special and shown:
            return WindowDetokenizer(self._tokenizer, False, context, self.special_ids - shown)
        return WindowDetokenizer(self._tokenizer, skip_special, context)

    def token_bytes(self, token_id: int) -> bytes:
        """What a token stands for; where no table says so, its text."""
        if self.exact:
            return self._with_special[token_id] if token_id < len(self._with_special) else b""
        return str(self._tokenizer.decode([token_id], skip_special_tokens=False)).encode()

    def _table(self, shown: frozenset[int]) -> list[bytes]:
        if not shown:
            return self._without_special
        if self._shown[0] != shown:  # a model has one set of them
            table = list(self._without_special)
            for token_id in shown:
                table[token_id] = self._with_special[token_id]
            self._shown = (shown, table)
        return self._shown[1]


def _decoder_steps(tokenizer: Tokenizer) -> list[dict[str, Any]]:
    decoder = json.loads(tokenizer.to_str()).get("decoder")
    if decoder is None:
        return []
    return list(decoder["decoders"]) if decoder["type"] == "Sequence" else [decoder]


def _byte_table(tokenizer: Tokenizer, vocab_size: int) -> list[bytes] | None:
    """Bytes of every token id, or None when the decoder is of another kind."""
    steps = _decoder_steps(tokenizer)
    kinds = {step["type"] for step in steps}
    if "ByteLevel" in kinds:
        to_byte = {char: byte for byte, char in _byte_level_alphabet().items()}

        def piece_bytes(piece: str) -> bytes:
            try:
                return bytes([to_byte[char] for char in piece])
            except KeyError:  # an added token that is no byte-level text, such as one with a space in it
                return piece.encode()

    elif kinds & {"ByteFallback", "Metaspace"} or "Replace" in kinds:
        spaces = [step["replacement"] for step in steps if step["type"] == "Metaspace"]
        replaced = [
            (step["pattern"]["String"], step["content"])
            for step in steps
            if step["type"] == "Replace" and "String" in step["pattern"]
        ]
        replaced += [(space, " ") for space in spaces]
        fallback = "ByteFallback" in kinds

        def piece_bytes(piece: str) -> bytes:
            byte = _BYTE_TOKEN.fullmatch(piece) if fallback else None
            if byte:
                return bytes([int(byte[1], 16)])
            for old, new in replaced:
                piece = piece.replace(old, new)
            return piece.encode()

    else:
        return None
    table = [b""] * max(vocab_size, tokenizer.get_vocab_size(with_added_tokens=True))
    for piece, token_id in tokenizer.get_vocab(with_added_tokens=True).items():
        if token_id < len(table):
            table[token_id] = piece_bytes(piece)
    return table


def _byte_level_alphabet() -> dict[int, str]:
    """GPT-2's printable stand-in for each byte: itself where printable, else the next code point from 256 on."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + place) for place, byte in enumerate(others)}


def _agrees(tokenizer: Tokenizer, table: Sequence[bytes], special_ids: frozenset[int]) -> bool:
    """Whether the table decodes like the library: on real text and on random runs of whole-character tokens.

    An anchor token before each sample takes the effect that some decoders have on the very first token (a stripped
    space).
    """
    anchor = tokenizer.encode("a", add_special_tokens=False).ids
    before = tokenizer.decode(anchor, skip_special_tokens=False)
    samples = [tokenizer.encode(text, add_special_tokens=False).ids for text in _CHECK_TEXTS]
    whole = [i for i, data in enumerate(table) if data and i not in special_ids and _is_whole_text(data)]
    chooser = random.Random(0)
    if whole:
        samples += [[chooser.choice(whole) for _ in range(40)] for _ in range(25)]
    for ids in samples:
        theirs = tokenizer.decode([*anchor, *ids], skip_special_tokens=False)
        if not theirs.startswith(before) or theirs[len(before) :] != ByteDetokenizer(table).push(ids):
            return False
    return True


def _is_whole_text(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True
