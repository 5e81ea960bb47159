"""The model's tokenizer (tokenizer.json) with the few rules that serving adds."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

from tokenizers import Tokenizer

from inflight.errors import LoadError, first_line, invalid
from inflight.model.files import special_tokens

# A batch is tokenized by the thread that asks. Threads of the library's own would be shared by all, small and large.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


@dataclasses.dataclass(frozen=True, slots=True)
class SpecialToken:
    """Where a special token stands in a text: characters `start` to `end`."""

    token_id: int
    start: int
    end: int


class TextTokenizer:
    """Text to token ids. Thread-safe: `tokenizers` keeps no state per call.

    Everything that takes time as long as a prompt goes through the library's batches: they alone release the
    interpreter lock, and whoever holds it stops every other thread, those that send tokens too.
    """

    def __init__(self, folder: Path) -> None:
        """Read `tokenizer.json` (and where special tokens are named, if anywhere) from `folder`; raises `LoadError`."""
        try:
            self.library = Tokenizer.from_buffer((folder / "tokenizer.json").read_bytes())
        except OSError as error:
            raise LoadError(
                f"cannot read tokenizer.json of the engine directory ({error.strerror}); build the engine again."
            ) from None
        except Exception as error:  # noqa: BLE001 — the library raises nothing narrower
            raise LoadError(
                f"tokenizer.json of the engine directory is no tokenizer ({first_line(error)}); build the engine again."
            ) from None
        self.library.no_truncation()
        self.library.no_padding()
        self.special_tokens = special_tokens(folder)
        bos = self.special_tokens.get("bos_token")
        bos_id = self.library.token_to_id(bos) if bos else None
        self._special = {
            token_id: token.content
            for token_id, token in self.library.get_added_tokens_decoder().items()
            if token.special
        }
        self.longest_token = _longest_token(self.library)
        added = self.library.encode("", add_special_tokens=True).ids
        self._added_bos: int | None = added[0] if added and bos_id in (None, added[0]) else None

    @property
    def special_ids(self) -> dict[str, int]:
        """Special tokens: their ids by their text."""
        return {content: token_id for token_id, content in self._special.items()}

    def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        """Token ids of `text`. A text that begins with the BOS that would be added does not get a second one."""
        (encoding,) = self.library.encode_batch_fast([text], add_special_tokens=add_special_tokens)
        ids: list[int] = encoding.ids
        doubled = add_special_tokens and self._added_bos is not None and ids[:2] == [self._added_bos] * 2
        return ids[1:] if doubled else ids

    def count(self, text: str) -> int:
        """How many tokens `text` has, without special ones."""
        (encoding,) = self.library.encode_batch_fast([text], add_special_tokens=False)
        return len(encoding)

    def decode(self, token_ids: list[int], skip_special_tokens: bool) -> str:
        """Text of whole `token_ids`; used for prompts given as ids and for the tokens in log-probabilities."""
        return str(self.library.decode_batch([token_ids], skip_special_tokens=skip_special_tokens)[0])

    def special_tokens_in(self, text: str) -> list[SpecialToken]:
        """The special tokens that the tokenizer reads in `text`, in their order."""
        (encoding,) = self.library.encode_batch([text], add_special_tokens=False)
        found = []
        for token_id, (start, end) in zip(encoding.ids, encoding.offsets, strict=True):
            content = self._special.get(token_id)
            if content is not None:
                place = text.find(content, start, end)  # some tokens swallow the spaces around them
                if place >= 0:
                    found.append(SpecialToken(token_id, place, place + len(content)))
        return found

    def check_text_ids(self, name: str, token_ids: list[int], vocab_size: int) -> None:
        """Raises INVALID_ARG naming the text `name` when the tokenizer makes a token of it that the model lacks."""
        most = max(token_ids)
        if most >= vocab_size:
            token = self.library.id_to_token(most)
            raise invalid(
                name,
                f"holds {token!r}, a token (id {most}) that this model's vocabulary of {vocab_size} lacks; remove it",
            )

    def tokens_beyond(self, vocab_size: int) -> list[str]:
        """Tokens that the model has no row for."""
        vocabulary = self.library.get_vocab(with_added_tokens=True)
        return sorted(token for token, token_id in vocabulary.items() if token_id >= vocab_size)

    def check_ids(self, token_ids: list[int], vocab_size: int) -> None:
        """Raises INVALID_ARG when an id is outside the model's vocabulary."""
        least, most = min(token_ids), max(token_ids)
        if least < 0 or most >= vocab_size:
            wrong = least if least < 0 else most
            raise invalid("input_ids", f"holds {wrong}, but token ids of this model go from 0 to {vocab_size - 1}")


def _longest_token(library: Tokenizer) -> int:
    """Bytes of text that the vocabulary's longest token stands for, or a few more."""
    added = {token.content for token in library.get_added_tokens_decoder().values()}
    pieces = library.get_vocab(with_added_tokens=True).keys() - added
    byte_level = library.decoder is not None and b"ByteLevel" in library.decoder.__getstate__()
    size = len if byte_level else _utf8_bytes  # a byte-level piece has a character for each byte
    return max(max(map(size, pieces), default=1), max(map(_utf8_bytes, added), default=1))


def _utf8_bytes(text: str) -> int:
    return len(text.encode("utf-8", "replace"))
