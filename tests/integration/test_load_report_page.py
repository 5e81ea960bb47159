"""The report of two real load tests in a real browser: as wide as a desk or a phone, light and dark, and printed.

Too long for every change: Debian's Chromium and Playwright take a minute to install.
"""

from __future__ import annotations

import base64
import hashlib
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from inflight_tools.common.layout import REPOSITORY
from inflight_tools.server.server import Server
from tests.harness import browser as browsers

pytestmark = [pytest.mark.server, pytest.mark.full]

SCRIPT = [sys.executable, str(REPOSITORY / "scripts" / "load_test.py")]
WIDE, PHONE = {"width": 1280, "height": 860}, {"width": 390, "height": 844}
PAPER = {"width": 718, "height": 1000}  # A4 within margins of 1 cm
PICTURES = os.environ.get("INFLIGHT_PICTURES", "")  # a folder: the picture of docs/pictures is made anew there
LEAST_LETTERS_PX = 9  # of a chart on a phone
ADDRESS = "http://report.test/report.html"


@pytest.fixture(scope="module")
def report(server: Server, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The page of a test that is compared with another one."""
    folder = tmp_path_factory.mktemp("load")
    common = ("--url", server.grpc_url, "--concurrency", "1,2,4,8", "--runs", "3", "--max-tokens", "32")
    limits = ("--slo", "ttft=150", "--slo", "tpot=40", "--price-per-hour", "0.2")
    tests = {
        "greedy": ("--requests", "8"),
        "sampled": ("--requests", "8", "--parameter", "temperature=0.8", *limits),
    }
    for number, (name, more) in enumerate(tests.items()):
        against = ("--compare", str(folder / "greedy" / "results.json")) if number else ()
        line = [*SCRIPT, *common, *more, *against, "--seed", str(number), "--output", str(folder / name)]
        done = subprocess.run(line, capture_output=True, text=True, timeout=400)
        assert done.returncode == 0, done.stderr
    return (folder / "sampled" / "report.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with browsers.browser() as found:
        yield found


def opened(browser: Any, report: str, **settings: Any) -> tuple[Any, list[str]]:
    """(the page as a server with a strict policy gives it, what the browser complained of or asked for besides)."""
    (style,) = re.findall(r"<style>(.*?)</style>", report, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    headers = {"Content-Security-Policy": f"default-src 'none'; style-src 'sha256-{digest}'"}
    page, complaints = browser.new_context(**settings).new_page(), []

    def answer(route: Any) -> None:
        if route.request.url == ADDRESS:
            route.fulfill(status=200, headers=headers, content_type="text/html; charset=utf-8", body=report)
        else:
            complaints.append(route.request.url)
            route.abort()

    page.route("**/*", answer)
    page.on("console", lambda said: complaints.append(said.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.goto(ADDRESS)
    return page, complaints


@pytest.mark.parametrize("size", [WIDE, PHONE], ids=["desk", "phone"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_anybody_can_read_it(browser: Any, report: str, size: dict[str, int], scheme: str) -> None:
    page, complaints = opened(browser, report, viewport=size, color_scheme=scheme)
    assert not complaints  # nothing is fetched, and the policy has nothing against any style
    assert page.locator("figure svg").count() == 4
    page.evaluate("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
    assert not browsers.wrong(page)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    letters = page.evaluate(
        "Math.min(...[...document.querySelectorAll('figure svg text')].map((one) => "
        "parseFloat(getComputedStyle(one).fontSize) * one.ownerSVGElement.getBoundingClientRect().width / "
        "one.ownerSVGElement.viewBox.baseVal.width))"
    )
    assert letters >= LEAST_LETTERS_PX
    over = page.evaluate(  # texts of charts that are cut off at an edge
        "[...document.querySelectorAll('figure svg')].flatMap((chart) => { const all = chart.getBoundingClientRect();"
        "return [...chart.querySelectorAll('text')].filter((one) => { const box = one.getBoundingClientRect();"
        "return box.left < all.left - 1 || box.right > all.right + 1 || box.bottom > all.bottom + 1; })"
        ".map((one) => one.textContent); })"
    )
    assert not over
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (ground == "rgb(13, 16, 20)") == (scheme == "dark")
    bars = page.evaluate(
        "[...document.querySelectorAll('.track .bar')].map((one) => one.getBoundingClientRect().width)"
    )
    assert len(bars) == 20
    assert all(wide > 0 for wide in bars)
    if PICTURES and size is WIDE and scheme == "light":
        page.evaluate("document.querySelectorAll('details').forEach((one) => { one.open = false; })")
        page.set_viewport_size({"width": 1180, "height": 1500})
        page.screenshot(path=Path(PICTURES) / "load-test-report.png")


def test_what_scrolls_can_be_scrolled_by_the_keyboard(browser: Any, report: str) -> None:
    page, _ = opened(browser, report, viewport=PHONE)
    region = page.locator(".scroll").first
    region.focus()
    page.keyboard.press("ArrowRight")
    page.wait_for_timeout(400)
    assert region.evaluate("(one) => one.scrollLeft") > 0
    assert region.evaluate("(one) => getComputedStyle(one).outlineStyle") != "none"
    summary = page.locator("summary").first
    summary.focus()
    page.keyboard.press("Enter")
    assert page.locator("details").first.evaluate("(one) => one.open")


def test_on_paper_it_is_light_and_shows_the_tables_too(browser: Any, report: str) -> None:
    page, _ = opened(browser, report, viewport=PAPER, color_scheme="dark")
    page.emulate_media(media="print")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    heights = page.evaluate(
        "[...document.querySelectorAll('details table')].map((one) => one.getBoundingClientRect().height)"
    )
    assert len(heights) == 4
    assert all(height > 20 for height in heights)
    assert page.pdf(format="A4").startswith(b"%PDF")
