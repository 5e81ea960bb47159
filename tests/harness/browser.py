"""A real browser: Debian's Chromium, driven by Playwright. Both, and the checker axe, are fetched at need.

Playwright brings no browser of its own here. Where one of them cannot be had the test fails for root, who may fetch it,
and is skipped for others.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from inflight_tools.common.layout import CACHE
from inflight_tools.common.pip import run_pip
from inflight_tools.common.report import Failure
from inflight_tools.common.wheels import is_complete, publish, scratch_folder

PACKAGES = {
    "playwright": "1.65.2",
    "greenlet": "3.5.6",
    "axe-playwright-python": "0.1.8",  # brings axe-core 4.12.1 (MPL-2.0)
}
FOLDER = CACHE / "browser"
SERIOUS = ("serious", "critical")


def _lacking(sentence: str) -> None:
    if os.geteuid() == 0:
        pytest.fail(sentence, pytrace=False)
    pytest.skip(sentence)


def program() -> str:
    """Debian's Chromium, installed where that may be done without asking."""
    found = shutil.which("chromium")
    if found is None and os.geteuid() == 0 and shutil.which("apt-get"):
        command = "apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium"
        environment = dict(os.environ, DEBIAN_FRONTEND="noninteractive")
        with contextlib.suppress(subprocess.SubprocessError):
            subprocess.run(["sh", "-c", command], env=environment, check=True, timeout=240, capture_output=True)
        found = shutil.which("chromium")
    if found is None:
        _lacking("chromium is missing: apt-get install chromium")
    return str(found)


def packages() -> None:
    """Playwright and axe on sys.path, out of a folder of their own."""
    stamp = {**PACKAGES, "python": f"{sys.version_info.major}.{sys.version_info.minor}"}
    if not is_complete(FOLDER, stamp):
        with scratch_folder(FOLDER.parent) as scratch:
            made = scratch / "made"
            wanted = [f"{name}=={version}" for name, version in PACKAGES.items()]
            try:
                run_pip(
                    ["install", "--no-deps", "--only-binary", ":all:", "--target", str(made), *wanted], "Playwright"
                )
            except Failure as error:
                _lacking(f"Playwright is missing: {error}")
            publish(made, FOLDER, stamp)
    if str(FOLDER) not in sys.path:
        sys.path.append(str(FOLDER))


@contextlib.contextmanager
def browser() -> Iterator[Any]:
    """A running Chromium (playwright's `Browser`)."""
    chromium = program()
    packages()
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=chromium, args=["--disable-gpu", "--no-sandbox"])
        try:
            yield found
        finally:
            found.close()


def wrong(page: Any) -> list[str]:
    """What axe finds serious or worse in the page as it is now."""
    script = (FOLDER / "axe_playwright_python" / "axe.min.js").read_text(encoding="utf-8")
    page.evaluate(f"() => {{ {script} }}")
    found = page.evaluate("() => axe.run()")
    return [
        f"{one['id']}: {node['html']} {node.get('failureSummary', '')}"
        for one in found["violations"]
        if one["impact"] in SERIOUS
        for node in one["nodes"]
    ]
