"""docs/why.md: each tick names a test that exists, and what is lacking is said."""

from __future__ import annotations

import re

from tests.harness.pages import ROOT

PAGE = ROOT / "docs" / "why.md"


def rows() -> list[list[str]]:
    """Cells of the rows of the two tables of features."""
    text = PAGE.read_text("utf-8")
    features = text[text.index("## What a client can ask") : text.index("## Take something else")]
    lines = [line for line in features.splitlines() if line.startswith("| ") and "`vllm serve`" not in line]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_every_row_has_a_cell_for_each_peer() -> None:
    assert len(rows()) >= 35
    assert [row for row in rows() if len(row) != 6 or not all(row)] == []


def test_ours_is_shown_by_a_test_or_said_to_be_lacking() -> None:
    for feature, ours, *_ in rows():
        if not ours.startswith("✓"):
            assert ours.startswith("**"), feature
            continue
        named = re.findall(r"\[(test_\w+)\]\(\.\./(tests/[\w/]+\.py)\)", ours)
        assert named, f"{feature}: a tick names its test"
        for test, path in named:
            assert f"\ndef {test}(" in (ROOT / path).read_text("utf-8"), f"{feature}: {path} has no {test}"


def test_what_is_lacking_is_there() -> None:
    lacking = {feature for feature, ours, *_ in rows() if "**" in ours}
    assert {"OpenAI's HTTP API", "runs on GPUs", "traces"} <= lacking
