"""docs/changing.md says where a change goes: what it follows through the code is followed here, too."""

from __future__ import annotations

import re
import subprocess

import pytest

from tests.harness.pages import ROOT

PAGE = (ROOT / "docs" / "changing.md").read_text("utf-8")
PRODUCT = ("python_backend", "build_engine")
FOLLOWED = re.findall(r"^### (.+)\n\nFollowed: `(.+?)`", PAGE, re.MULTILINE)


def section(title: str) -> str:
    return re.split(r"^#{2,3} ", PAGE.split(f"\n### {title}\n")[1], maxsplit=1, flags=re.MULTILINE)[0]


def files_naming(word: str) -> list[str]:
    """Files of the product that name it, as git sees them."""
    done = subprocess.run(
        ["git", "grep", "--untracked", "-lF", "-e", word, "--", *PRODUCT],
        cwd=ROOT, capture_output=True, text=True, timeout=30, check=True,
    )  # fmt: skip
    return done.stdout.splitlines()


def test_there_is_something_to_follow() -> None:
    assert {title for title, _ in FOLLOWED} >= {"A request parameter", "A metric", "An engine", "A recipe"}


@pytest.mark.parametrize(("title", "word"), FOLLOWED)
def test_every_file_that_a_change_touches_is_named(title: str, word: str) -> None:
    named = re.findall(r"`((?:python_backend|build_engine)/[^`]+)`", section(title))
    assert len(named) >= 2
    missing = [
        path for path in files_naming(word) if not any(path == name or path.startswith(f"{name}/") for name in named)
    ]
    assert missing == [], f"add them to docs/changing.md, {title}"


@pytest.mark.parametrize(("title", "word"), FOLLOWED)
def test_the_first_file_named_holds_it(title: str, word: str) -> None:
    first = re.search(r"`((?:python_backend|build_engine)/[^`]+)`", section(title))
    assert first is not None
    assert any(path.startswith(first[1]) for path in files_naming(word))


def test_commits_it_names_are_there_where_history_is() -> None:
    """A shallow clone has no history, and there is nothing to compare then."""
    done = subprocess.run(
        ["git", "rev-parse", "--is-shallow-repository"],
        cwd=ROOT, capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    commits = re.findall(r"Commit ([0-9a-f]{7})", PAGE)
    assert len(commits) == 2
    if done.stdout.strip() == "false":
        for commit in commits:
            subprocess.run(["git", "cat-file", "-e", f"{commit}^{{commit}}"], cwd=ROOT, timeout=30, check=True)
