"""Pages are read by people in a hurry: sentences stay short, and none runs on for ever."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])
MOST_WORDS = 40
MOST_ON_AVERAGE = 20


def sentences(text: str) -> list[str]:
    """Prose alone: no code, no tables, no headings. A link counts by its words; a list's items end their sentences."""
    text = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    blocks: list[list[str]] = [[]]
    for line in text.splitlines():
        item = re.match(r"\s*(?:-|\d+\.) ", line)
        if item or not line.strip() or line.startswith(("|", "#", "<!--", "!")):
            blocks.append([line[item.end() :]] if item else [])
        else:
            blocks[-1].append(line.strip())
    found = []
    for block in blocks:
        prose = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", " ".join(block))
        found += re.split(r"(?<=[.!?:;])[*)]*\s+(?=[A-Z`*(\"\[a-z])", prose)
    return [sentence for sentence in found if sentence.strip()]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_sentences_are_short(page: Path) -> None:
    found = sentences(page.read_text("utf-8"))
    assert [sentence for sentence in found if len(sentence.split()) > MOST_WORDS] == []
    assert sum(len(sentence.split()) for sentence in found) <= MOST_ON_AVERAGE * len(found)


def test_what_a_sentence_is() -> None:
    text = "# A title\n\nOne two. Three\nfour: five;\n\n- six seven\n  eight.\n\n| a | b |\n\n```\nno. no.\n```\n"
    assert sentences(text) == ["One two.", "Three four:", "five;", "six seven eight."]
