"""The runbook in docs/operating.md: every alert has its section, every sentence that it explains is really said."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest
import yaml

from tests.unit.docs.test_links import slugs

ROOT = Path(__file__).resolve().parents[3]
PAGE = ROOT / "docs" / "operating.md"
PARTS = ("python_backend", "scripts/inflight_tools", "gateway")


def alerts() -> list[dict[str, str]]:
    groups = yaml.safe_load((ROOT / "deploy" / "observability" / "rules.yml").read_text("utf-8"))["groups"]
    return [
        rule["annotations"] | {"alert": rule["alert"]} for group in groups for rule in group["rules"] if "alert" in rule
    ]


@pytest.mark.parametrize("alert", alerts(), ids=lambda each: each["alert"])
def test_every_alert_leads_to_its_section(alert: dict[str, str]) -> None:
    page, _, anchor = alert["runbook"].partition("#")
    assert anchor in slugs(ROOT / page)


def test_no_section_is_of_an_alert_that_is_gone() -> None:
    headed = re.findall(r"^### (Inflight\w+)$", PAGE.read_text("utf-8"), re.MULTILINE)
    assert headed == [each["alert"] for each in alerts()]


@cache
def said() -> tuple[str, ...]:
    """Every text of the product, with … for what is filled in."""
    found = []
    for part in PARTS:
        for path in (ROOT / part).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text("utf-8"))):
                if isinstance(node, ast.JoinedStr):
                    pieces = [piece.value if isinstance(piece, ast.Constant) else "…" for piece in node.values]
                    found.append("".join(map(str, pieces)))
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    found.append(re.sub(r"%(\.\d)?[sdrf]", "…", node.value))
    return tuple(found)


def sentences() -> list[str]:
    """The first cells of the tables of “What it says”."""
    part = PAGE.read_text("utf-8").partition("\n## What it says\n")[2].partition("\n## ")[0]
    return re.findall(r"^\| `([^`]+)` \|", part, re.MULTILINE)


def test_there_are_sentences() -> None:
    assert len(sentences()) > 20


@pytest.mark.parametrize("sentence", sentences())
def test_every_sentence_that_it_explains_is_said(sentence: str) -> None:
    assert any(sentence in text for text in said())


def test_what_nobody_says_is_found() -> None:
    assert not any("the queue is full of … requests" in text for text in said())
