"""Real English text for calibration and for measuring accuracy, from a package that is always there.

The text is the prose of the Python language reference, which CPython ships as ``pydoc_data.topics`` (PSF-2.0 licence).
Code samples, tables and headings are left out. Calibration and evaluation get different paragraphs, so that a recipe
is never measured on what it was tuned on.
"""

from __future__ import annotations

import hashlib
import platform
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from build_engine.errors import UserMistake

MIN_PARAGRAPH = 100
CALIBRATION_EVERY = 5
"""Every fifth paragraph is for calibration, the others are for evaluation."""


@dataclass(frozen=True, slots=True)
class Corpus:
    """``name`` says package, version and licence; it is recorded beside every figure."""

    name: str
    text: str

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.text.encode()).hexdigest()


def evaluation() -> Corpus:
    return Corpus(_name(), "\n\n".join(p for i, p in enumerate(paragraphs()) if i % CALIBRATION_EVERY))


def calibration() -> Corpus:
    return Corpus(_name(), "\n\n".join(p for i, p in enumerate(paragraphs()) if i % CALIBRATION_EVERY == 0))


def from_file(path: Path) -> Corpus:
    """A text of the user's own."""
    try:
        return Corpus(path.name, path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise UserMistake(f"--text {path} cannot be read as UTF-8 text ({error})") from None


@cache
def paragraphs() -> tuple[str, ...]:
    """Paragraphs of prose, each once, in a fixed order."""
    from pydoc_data.topics import topics

    found: dict[str, None] = {}
    for name in sorted(topics):
        for block in topics[name].split("\n\n"):
            text = " ".join(line.strip() for line in block.splitlines()).removeprefix("* ")
            if is_prose(text):
                found[text] = None
    return tuple(found)


def is_prose(text: str) -> bool:
    """A sentence or more in plain words: code, grammar, tables and headings fail one of these."""
    words = sum(character.isalpha() or character.isspace() for character in text)
    plain = not any(mark in text for mark in (">>>", "::=", "==", "--", "**"))
    return len(text) >= MIN_PARAGRAPH and plain and text[0].isupper() and text[-1] in ".:)" and words >= 0.9 * len(text)


def _name() -> str:
    return f"Python language reference (pydoc_data.topics, CPython {platform.python_version()}, PSF-2.0)"
