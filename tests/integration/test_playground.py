"""The playground in a real browser, before the real gateway, server and model.

Too long for every change: Debian's Chromium and Playwright take a minute to install. Ran on 2026-11-29 (Chromium 156,
Playwright 1.65, axe 4.12) with SmolLM2 on two cores: 139 s.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from inflight_tools.common.layout import REPOSITORY
from inflight_tools.server.server import Server
from tests.harness import browser as browsers
from tests.harness.gateway import Gateway, running
from tests.harness.http_client import wait_for_metric

pytestmark = [pytest.mark.server, pytest.mark.full]

KEY = "open sesame"
ANSWER_MS = 60_000
WIDE = {"width": 1280, "height": 860}
PHONE = {"width": 390, "height": 844}
LONG = "Tell me a very long story about a pilot."
PICTURES = os.environ.get("INFLIGHT_PICTURES", "")  # a folder: the pictures of docs/pictures are made anew there


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with browsers.browser() as found:
        yield found


@pytest.fixture(scope="module")
def gateway(server: Server) -> Iterator[Gateway]:
    with running(server.grpc_url, keys=KEY) as found:
        found.wait_ready()
        yield found


class Visit:
    """The page in a window of its own, and what it asked for and complained of meanwhile."""

    def __init__(self, context: Any, url: str) -> None:
        self.asked: list[str] = []
        self.complaints: list[str] = []
        self.page = context.new_page()
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("console", lambda said: said.type == "error" and self.complaints.append(said.text))
        self.page.set_default_timeout(ANSWER_MS)
        self.page.goto(url)

    def set(self, **fields: str) -> None:
        for name, value in fields.items():
            self.page.locator(f"#{name}").fill(value)
            self.page.locator(f"#{name}").dispatch_event("change")

    def send(self, text: str) -> None:
        self.page.locator("#prompt").fill(text)
        self.page.locator("#prompt").press("Enter")

    def until(self, condition: str) -> None:
        """Playwright's own waiting evaluates a string, which the page's policy forbids."""
        end = time.monotonic() + ANSWER_MS / 1000
        while not self.page.evaluate(condition):
            assert time.monotonic() < end, condition
            time.sleep(0.02)

    def answered(self, number: int = 1) -> Any:
        """The `number`th answer, when it is whole."""
        found = self.page.locator(".answered").nth(number - 1)
        found.locator("xpath=self::*[@aria-busy='false']").wait_for()
        return found


@pytest.fixture
def visit(browser: Any, gateway: Gateway, request: pytest.FixtureRequest) -> Iterator[Visit]:
    options = getattr(request, "param", {})
    context = browser.new_context(**{"viewport": WIDE, "permissions": ["clipboard-read", "clipboard-write"]} | options)
    found = Visit(context, f"{gateway.url}/")
    if "is_mobile" in options:
        found.page.locator("#open-settings").click()
    found.set(key=KEY)
    if "is_mobile" in options:
        found.page.locator("#close-settings").click()
    found.page.locator("#model option[value=llm]").wait_for(state="attached")
    yield found
    assert {url.split("/", 3)[2] for url in found.asked if not url.startswith("data:")} == {f"127.0.0.1:{gateway.port}"}
    assert not [one for one in found.complaints if "Failed to load resource" not in one]  # its own word for a refusal
    context.close()


def shot(visit: Visit, name: str) -> None:
    if PICTURES:
        visit.page.screenshot(path=str(Path(PICTURES) / name))


def figures(answer: Any) -> dict[str, str]:
    return dict(zip(answer.locator("dt").all_inner_texts(), answer.locator("dd").all_inner_texts(), strict=True))


def words(text: str) -> str:
    """Without white space, and without the marks that the page shows as what they mean."""
    return re.sub(r"[*`\s]+", "", text)


def test_tokens_come_one_after_the_other_and_their_figures_are_right(visit: Visit, gateway: Gateway) -> None:
    visit.set(temperature="0", max_tokens="48")
    visit.send("What is the capital of France? Explain.")
    visit.until("document.querySelector('.going .text')?.textContent.length > 5")
    text = visit.page.locator(".answered .text")
    early = text.inner_text()
    answer = visit.answered()
    whole = text.inner_text()
    assert whole.startswith(early)
    assert len(whole) > len(early)
    asked = {"model": "llm", "temperature": 0, "max_tokens": 48}
    asked |= {"messages": [{"role": "user", "content": "What is the capital of France? Explain."}]}
    _, _, said = gateway.call("POST", "/v1/chat/completions", asked, Authorization=f"Bearer {KEY}")
    direct = json.loads(said)
    assert words(whole) == words(direct["choices"][0]["message"]["content"])
    shown = figures(answer)
    assert int(shown["Tokens"]) == direct["usage"]["completion_tokens"]
    assert float(shown["Tokens/s"]) > 0
    assert shown["End"] in ("complete", "out of tokens")
    assert answer.locator(".trace-line").get_attribute("d").count("L") > 5
    assert "tokens per second" in str(answer.locator("svg").get_attribute("aria-label"))
    assert "The answer is there." in visit.page.locator("#status").inner_text()
    assert not browsers.wrong(visit.page)


def test_an_answer_is_stopped_in_the_engine_too(visit: Visit, server: Server) -> None:
    visit.send(LONG)
    visit.until("document.querySelector('.going .text')?.textContent.length > 20")
    visit.page.locator("#stop").click()
    answer = visit.answered()
    assert figures(answer)["End"] == "stopped by you"
    wait_for_metric(server.metrics_url, 0, "inflight_requests_running")
    visit.set(max_tokens="8")
    visit.send("Thank you.")
    assert visit.answered(2).locator(".text").inner_text()


def test_parameters_and_the_model_act(visit: Visit, gateway: Gateway) -> None:
    visit.set(
        system="Answer in one word.", temperature="0.7", top_p="0.9", max_tokens="9", seed="7", stop_words="END\n\nSTOP"
    )
    with visit.page.expect_request("**/v1/chat/completions") as request:
        visit.send("Say a colour.")
    body = request.value.post_data_json
    assert body["messages"][0] == {"role": "system", "content": "Answer in one word."}
    wanted = {"temperature": 0.7, "top_p": 0.9, "max_tokens": 9, "seed": 7, "stop": ["END", "STOP"]}
    assert {name: body[name] for name in wanted} == wanted
    first = visit.answered().locator(".text").inner_text()
    visit.page.locator("#new").click()
    visit.send("Say a colour.")
    assert visit.answered().locator(".text").inner_text() == first  # the seed
    visit.page.route("**/v1/models", lambda route: route.fulfill(json={"data": [{"id": "llm"}, {"id": "other"}]}))
    visit.set(key="")
    visit.page.locator("#model option[value=other]").wait_for(state="attached")
    visit.set(key=KEY)
    visit.page.locator("#model").select_option("other")
    visit.page.locator("#new").click()
    visit.send("Hello")
    answer = visit.answered()
    assert "'other' is not served here" in answer.locator("[role=alert]").inner_text()
    visit.page.unroute("**/v1/models")
    visit.page.locator("#model").select_option("llm")
    answer.locator("text=Try again").click()
    assert visit.answered(2).locator(".text").inner_text()


def test_settings_stay_and_the_key_does_not_outlive_the_tab(visit: Visit, browser: Any) -> None:
    visit.set(system="Be brief.", temperature="0.5")
    visit.page.reload()
    assert visit.page.locator("#system").input_value() == "Be brief."
    assert visit.page.locator("#key").input_value() == KEY
    kept = visit.page.evaluate("JSON.stringify(localStorage)")
    assert "Be brief." in kept
    assert KEY not in kept
    visit.page.locator("#defaults").click()
    assert [visit.page.locator(f"#{name}").input_value() for name in ("system", "temperature")] == ["", ""]
    assert visit.page.locator("#key").input_value() == KEY


def test_a_json_schema_holds(visit: Visit) -> None:
    visit.page.locator("[data-example=schema]").click()
    answer = visit.answered()
    said = json.loads(answer.locator("pre").inner_text())
    assert len(said["cities"]) == 3
    visit.page.locator("[value=json_schema]").check()
    visit.set(schema="{ no json")
    assert "is no JSON" in visit.page.locator("#schema-problem").inner_text()
    visit.send("Again")
    assert "The schema is no JSON" in visit.page.locator("#notice").inner_text()
    assert visit.page.locator("#prompt").input_value() == "Again"  # nothing typed is lost
    assert visit.page.evaluate("document.activeElement.id") == "schema"


def test_a_tool_is_called_and_its_result_goes_back(visit: Visit) -> None:
    visit.page.locator("[data-example=tool]").click()
    answer = visit.answered()
    assert figures(answer)["End"] == "calls a tool"
    assert answer.locator(".call").inner_text() == "get_weather"
    assert set(json.loads(answer.locator(".arguments").inner_text())) == {"city", "unit"}
    visit.page.locator("#tool_choice").select_option("none")
    visit.set(max_tokens="16")
    answer.locator(".result").fill('{"celsius": 18}')
    assert not browsers.wrong(visit.page)
    with visit.page.expect_request("**/v1/chat/completions") as request:
        answer.locator("text=Send result").click()
    called, result = request.value.post_data_json["messages"][-2:]
    assert result == {"role": "tool", "tool_call_id": called["tool_calls"][0]["id"], "content": '{"celsius": 18}'}
    visit.answered(2)


def broken_off(body: str) -> Callable[[Any], None]:
    return lambda route: route.fulfill(body=body, content_type="text/event-stream")


def test_errors_are_said_in_a_sentence_of_their_own(visit: Visit) -> None:
    def said(number: int) -> str:
        return str(visit.answered(number).locator("[role=alert]").inner_text())

    visit.set(temperature="9")
    visit.send("Hello")
    assert visit.page.locator("#notice").inner_text() == "Temperature must be a number from 0 to 2."
    visit.set(temperature="", tools='{"name": "not a name"}')
    visit.send("Hello")
    assert said(1).startswith("tools")
    visit.set(tools="", key="wrong")
    visit.send("Hello")
    assert said(2) == "This gateway wants an API key. Type one under Settings, Key."
    assert visit.page.evaluate("document.activeElement.id") == "key"
    visit.set(key=KEY)
    begun = 'data: {"choices":[{"index":0,"delta":{"content":"So far"}}],"usage":{"completion_tokens":2}}\n\n'
    for number, (rest, sentence) in enumerate(
        (
            ('data: {"error":{"message":"the engine died; try again","code":null}}\n\n', "The engine died; try again."),
            ("", "The answer ended before it was whole. What came so far is above."),
        ),
        start=3,
    ):
        visit.page.route("**/v1/chat/completions", broken_off(begun + rest))
        visit.send("Hello")
        assert said(number) == sentence
        assert visit.answered(number).locator(".text").inner_text() == "So far"
    visit.page.route("**/v1/chat/completions", lambda route: route.abort())
    visit.send("Hello")
    assert said(5) == "The gateway cannot be reached. Is it still running?"
    assert not browsers.wrong(visit.page)


def test_what_a_model_says_never_becomes_part_of_the_page(visit: Visit) -> None:
    evil = "<img src=x onerror=alert(1)><script>alert(2)</script> **<b>b</b>** `<i>`\n```\n<svg onload=alert(3)>\n```"
    delta = {"content": evil, "reasoning_content": evil}
    call = {"index": 0, "id": '"><img src=x>', "function": {"name": "<b>f</b>", "arguments": "<u>1</u>"}}
    chunks = [
        {"choices": [{"index": 0, "delta": delta}], "usage": {"completion_tokens": 2}},
        {"choices": [{"index": 0, "delta": {"tool_calls": [call]}, "finish_reason": "tool_calls"}]},
    ]
    stream = "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks) + "data: [DONE]\n\n"
    visit.page.route(
        "**/v1/chat/completions", lambda route: route.fulfill(body=stream, content_type="text/event-stream")
    )
    dialogs: list[Any] = []
    visit.page.on("dialog", lambda one: (dialogs.append(one), one.dismiss()))
    visit.send("Hello")
    answer = visit.answered()
    assert "<img src=x onerror=alert(1)>" in answer.inner_text()
    for name in ("img", "script", "b b", "i", "u", ".text svg"):
        assert answer.locator(name).count() == 0, name
    assert not dialogs


def test_the_keyboard_alone_will_do(visit: Visit) -> None:
    page = visit.page
    page.reload()
    page.locator("#model option[value=llm]").wait_for(state="attached")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")  # skip to the prompt
    assert page.evaluate("document.activeElement.id") == "prompt"
    page.keyboard.type("One")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type(LONG)
    page.keyboard.press("Enter")
    visit.until("document.querySelector('.going .text')?.textContent.length > 5")
    assert visit.page.locator(".asked .text").inner_text() == f"One\n{LONG}"
    page.keyboard.press("Escape")
    assert figures(visit.answered())["End"] == "stopped by you"
    seen: list[str] = []
    for _ in range(60):  # everything can be reached, and focus is visible wherever it is
        page.keyboard.press("Tab")
        seen.append(page.evaluate("document.activeElement.id || document.activeElement.textContent.trim()"))
        if seen.count(seen[0]) > 1:
            break
        outline = page.evaluate(
            "(() => { const at = document.activeElement;"
            "const box = at.matches('[type=radio]') ? at.closest('label') : at;"
            "return document.activeElement === document.body || getComputedStyle(box).outlineStyle !== 'none'; })()"
        )
        assert outline, seen[-1]
    wanted = {"model", "new", "theme", "system", "temperature", "top_p", "max_tokens", "seed", "stop_words", "tools"}
    assert wanted | {"tool_choice", "key", "defaults", "prompt", "Copy as curl / Python"} <= set(seen)


@pytest.mark.parametrize("visit", [{"viewport": PHONE, "has_touch": True, "is_mobile": True}], indirect=True)
def test_a_phone_shows_it_whole(visit: Visit) -> None:
    page = visit.page
    shot(visit, "playground-phone-empty.png")
    page.locator("#open-settings").click()
    assert page.evaluate("document.activeElement.id") == "system"
    assert not browsers.wrong(page)
    visit.set(max_tokens="40", temperature="0")
    shot(visit, "playground-phone-settings.png")
    page.locator("#close-settings").click()
    assert page.locator("#open-settings").get_attribute("aria-expanded") == "false"
    visit.send("Why do planes fly?")
    visit.answered()
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    small = page.evaluate(
        "[...document.querySelectorAll('button, select, input')].filter((one) => one.offsetParent && "
        "one.getBoundingClientRect().height < 24).map((one) => one.id)"
    )
    assert not [one for one in small if one]
    assert not browsers.wrong(page)
    shot(visit, "playground-phone.png")


@pytest.mark.parametrize(
    "visit", [{"color_scheme": "dark"}, {"color_scheme": "light"}], indirect=True, ids=["dark", "light"]
)
def test_light_and_dark(visit: Visit, request: pytest.FixtureRequest) -> None:
    page = visit.page
    name = request.node.callspec.id
    ground = "getComputedStyle(document.body).backgroundColor"
    shot(visit, f"playground-{name}-empty.png")
    assert not browsers.wrong(page)
    as_system = page.evaluate(ground)
    page.locator("#theme").click()
    light = page.evaluate(ground)
    page.locator("#theme").click()
    dark = page.evaluate(ground)
    assert light != dark
    assert as_system == (dark if name == "dark" else light)
    page.reload()
    assert page.evaluate(ground) == dark
    page.locator("#theme").click()
    visit.set(temperature="0", max_tokens="160")
    visit.send("Why do planes fly? Answer in a few sentences.")
    visit.answered()
    page.locator("[data-example=schema]").evaluate("(button) => button.click()")
    visit.answered(2)
    assert not browsers.wrong(page)
    shot(visit, f"playground-{name}.png")


def test_the_request_runs_elsewhere_as_it_is_copied(visit: Visit, gateway: Gateway) -> None:
    visit.set(system='It\'s "quoted" $HOME `id` \\ back', max_tokens="6", temperature="0")
    visit.page.locator("#tools").fill('{"name": "look", "strict": true, "parameters": {"type": "object"}}')
    visit.page.locator("#tool_choice").select_option("none")
    visit.send("What's new, 'friend'? é ☕")
    answer = visit.answered()
    text = answer.locator(".text").inner_text()
    answer.locator("text=Copy as curl / Python").click()
    assert not browsers.wrong(visit.page)
    environment = dict(os.environ, INFLIGHT_KEY=KEY)
    for language, command in (("curl", ["bash"]), ("python", [sys.executable, "-"])):
        visit.page.locator(f"[data-language={language}]").click()
        visit.page.locator("#code-copy").click()
        visit.page.locator("#code-copy:text('Copied')").wait_for()
        program = visit.page.evaluate("navigator.clipboard.readText()")
        assert KEY not in program
        run = subprocess.run(
            command, input=program, env=environment, capture_output=True, text=True, timeout=60, cwd=REPOSITORY
        )
        assert run.returncode == 0, run.stderr
        if language == "python":
            assert words(run.stdout) == words(text)
        else:
            assert "[DONE]" in run.stdout
        visit.page.locator("#code-copy:text('Copy')").wait_for()
    shot(visit, "playground-code.png")
    visit.page.keyboard.press("Escape")
    assert not visit.page.locator("#code").is_visible()
