"""The page of a load test: what it says of settings, levels and the other test; made-up requests, no browser."""

from __future__ import annotations

import json
import math
import random
import re
from collections.abc import Sequence
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

import pytest

from inflight_tools.common.resources import Usage
from inflight_tools.load import load_test
from inflight_tools.load.charts import pictures
from inflight_tools.load.compare import Ratio, compare
from inflight_tools.load.earlier import read_level
from inflight_tools.load.page import html_report
from inflight_tools.load.profile_export import Request
from inflight_tools.load.settings import command, machine_rows, settings_rows
from inflight_tools.load.stats import LevelResult, Objective, Run, summarize
from inflight_tools.load.tables import facts_table
from inflight_tools.load.verdict import sentence, tiles
from inflight_tools.load.words import listed, number

MS = 1_000_000
VOID = {"meta", "br", "img", "link", "hr"}


def requests(width: int, seed: int, step_ms: float, merged: int = 1) -> list[Request]:
    """Waves of `width` requests with 20 responses each."""
    chooser, made = random.Random(f"{width} {seed}"), []
    for count in range(4 * width + 8):
        at = sent = int((count // width) * step_ms * 25 * MS)
        arrivals = []
        for _ in range(20):
            at += int(step_ms * MS * (1 + 0.3 * chooser.random()))
            arrivals.append((at, merged))
        made.append(Request(sent, tuple(arrivals), at, 30))
    return sorted(made, key=lambda request: request.sent)


def measured(
    step_ms: float = 10.0, runs: int = 3, widths: Sequence[int] = (1, 4, 16), **more: Any
) -> list[LevelResult]:
    """Levels whose steps grow a little with the load."""
    return [
        summarize(
            f"concurrency {width}",
            width,
            [Run(requests(width, seed, step_ms * (1 + width / 20)), width) for seed in range(runs)],
            width,
            **more,
        )
        for width in widths
    ]


def as_json(results: Sequence[LevelResult]) -> list[dict[str, Any]]:
    """As a results.json holds them."""
    levels: list[dict[str, Any]] = json.loads(json.dumps([result.to_json() for result in results]))
    return levels


def about(*line: str) -> dict[str, Any]:
    """What a test with these options says of itself."""
    server = {"triton": "2.51.0", "release": "0.1.0", "engine": "openvino", "context": 8192, "same_machine": True}
    return load_test.about(load_test.parse(line), server)


class Page(HTMLParser):
    """Fails where tags do not match; keeps what tests ask for."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.tables: list[list[int]] = []
        self.hanging: dict[int, int] = {}  # cells that reach into a row below, by its number
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.tags.append((tag, given))
        if tag not in VOID:
            self.open.append(tag)
        if given.get("id"):
            self.ids.append(str(given["id"]))
        if tag == "table":
            self.tables.append([])
            self.hanging = {}
        elif tag == "tr":
            self.tables[-1].append(self.hanging.get(len(self.tables[-1]), 0))
        elif tag in ("td", "th"):
            self.tables[-1][-1] += int(given.get("colspan") or 1)
            for row in range(1, int(given.get("rowspan") or 1)):
                below = len(self.tables[-1]) - 1 + row
                self.hanging[below] = self.hanging.get(below, 0) + 1

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def test_a_whole_page_is_sound_and_asks_for_nothing() -> None:
    objective = Objective(ttft=15, latency=400)
    line = ("--slo", "ttft=15", "--slo", "latency=400", "--price-per-hour", "2.5", "--runs", "3")
    results, other = measured(10, objective=objective, price_per_hour=2.5), measured(13)
    ratios = compare(as_json(results), as_json(other))
    text = html_report(about(*line), results, "a <model>", ratios, as_json(other), about("--runs", "3", "--seed", "1"))
    page = Page(text)
    assert len(set(page.ids)) == len(page.ids)
    referred = {name for _, given in page.tags for name in (given.get("aria-labelledby") or "").split()}
    assert referred <= set(page.ids)
    assert not [tag for tag, given in page.tags if tag in ("script", "link", "img", "iframe") or given.get("style")]
    assert not re.search(r"url\(|@import|https?://(?!www\.w3\.org/2000/svg)", text)
    for _, given in page.tags:
        assert not [name for name in given if name.startswith("on")]
    assert len(page.tables) == 2 + 4 + 1 + 2
    assert all(row == table[0] for table in page.tables for row in table), page.tables
    assert "nan" not in page.text.lower().split()
    assert "{" not in page.text  # no JSON
    for words in (
        "a <model>",
        "Within the limits",
        "goodput, requests/s",
        "Least cost of 1,000 tokens",
        "Over the other test",
        "better",
    ):
        assert words in page.text
    assert "ttft=15" in page.text  # the line that measures it again
    assert "differs" in page.text
    assert text.count("<svg") == 4
    assert text.count("<details>") == 4  # every picture has its table


@pytest.mark.parametrize("widths", [(1,), (8,), (1, 2), (1, 2, 3, 4, 5, 6, 7, 8, 9)])
@pytest.mark.parametrize("runs", [1, 2])
def test_any_number_of_levels_and_runs(widths: tuple[int, ...], runs: int) -> None:
    results = measured(widths=widths, runs=runs)
    page = Page(html_report(about("--runs", str(runs)), results, "t"))
    assert ("One run" in page.text) == (runs == 1)
    several = len(widths) > 1  # one level makes no curve over the load
    assert len([tag for tag, _ in page.tags if tag == "svg"]) == (4 if several else 2)
    assert ("One level of load" in page.text) != several


def test_rates_are_levels_too() -> None:
    results = [
        summarize(f"{rate:g} requests/s (poisson)", rate, [Run(requests(4, seed, step), 2) for seed in range(2)], None)
        for rate, step in ((0.5, 10.0), (4.0, 14.0))
    ]
    page = Page(html_report(about("--rate", "0.5,4", "--runs", "2"), results, "t"))
    assert "0.5 and 4 requests sent per second over gRPC streaming, 2 runs of each in turns" in page.text
    assert "requests sent per second" in pictures(results, [], {})[0].drawing
    assert "0.5/s" in pictures(results, [], {})[2].drawing
    assert "Two runs make wide intervals" in page.text


def test_answers_in_one_piece_have_no_picture_of_what_lies_between_tokens() -> None:
    whole = [Request(at * MS, ((at * MS + 5 * MS, 8),), at * MS + 5 * MS, 3) for at in range(0, 60, 6)]
    results = [summarize("concurrency 1", 1, [Run(whole, 1)], 1)]
    assert [picture.name for picture in pictures(results, [], {})] == ["ttft"]
    assert "–" in Page(html_report(about(), results, "t")).text


def test_an_older_results_file_is_compared_without_its_distributions() -> None:
    """Its levels have neither the distributions nor half of the figures."""
    results, old = measured(), as_json(measured(12))
    for level in old:
        for name in ("curves", "tokens_per_s_ci95", "goodput_requests_per_s", "usage"):
            del level[name]
    page = Page(html_report(about(), results, "t", compare(as_json(results), old), old, {"settings": {"seed": 3}}))
    assert "This test over the other" in page.text
    thin = [{"load": "concurrency 1", "runs": [{"tokens_per_s": 50.0}]}]
    Page(html_report(about(), results, "t", compare(as_json(results), thin), thin))


def test_a_level_is_read_back_as_it_was() -> None:
    (result,) = measured(widths=(4,), objective=Objective(ttft=12), price_per_hour=3.0)
    result = replace(result, usage=Usage(1.5, 12.0, 2**30, 80.0, 2**33))
    assert read_level(as_json([result])[0]) == result
    none = read_level({"load": "concurrency 1", "runs": [{"tokens_per_s": 1.0}], "ttft": {"p50": None}})
    assert math.isnan(none.ttft.p50)
    assert (none.tokens_per_s_ci95, none.curves.ttft) == (None, ())


def test_settings_are_told_in_words() -> None:
    settings = about(
        "--rate", "0.5,4", "--prompt-tokens", "uniform:16-256", "--max-tokens", "sharegpt", "--stop-at-eos"
    )
    rows = settings_rows(settings["settings"])
    assert rows["Load"] == "0.5, 4 requests sent per second, poisson arrivals"
    assert rows["Prompts"] == "16 to 256 tokens, evenly spread"
    assert rows["Answers"].startswith("up to long-tailed as in ShareGPT")
    assert rows["Warm-up of a run"] == "1 request"
    assert "Limits (SLO)" not in rows
    fixed = settings_rows(about("--slo", "ttft=200", "--slo", "tpot=50", "--runs", "3", "--warmup", "2")["settings"])
    assert fixed["Load"] == "1, 4, 16 requests in flight"
    assert fixed["Answers"] == "64 tokens"
    assert fixed["Limits (SLO)"] == "TTFT ≤ 200 ms and TPOT ≤ 50 ms"
    assert fixed["Warm-up of a run"] == "2 requests"
    assert fixed["Runs of each level"] == "3, the levels in turns"
    assert settings_rows({}) == {}
    assert settings_rows({"new_option": 5})["new_option"] == "5"  # of a newer release


def test_the_machine_is_told_in_words() -> None:
    rows = machine_rows(about())
    assert rows["Server"] == "Triton 2.51.0, Inflight 0.1.0"
    assert rows["Context of the model"] == "8,192 tokens"
    assert rows["Server's place"] == "the same machine"
    assert rows["Memory"].endswith(" GiB")
    assert "Load generator" not in rows  # nobody said which
    told = load_test.about(load_test.parse([]), None, "Perf Analyzer Version 2.51.0")
    assert machine_rows(told)["Load generator"] == "Perf Analyzer Version 2.51.0"
    assert machine_rows({}) == {}
    assert machine_rows({"client_machine": {"cpus": 2}}) == {"CPUs": "2"}


@pytest.mark.parametrize(
    "line",
    [
        [],
        ["--rate", "0.5,2", "--arrivals", "constant", "--seed", "7", "--stop-at-eos"],
        ["--concurrency", "1,8", "--parameter", "stop_words=a b", "--parameter", "temperature=0.5", "--slo", "ttft=9"],
    ],
)
def test_the_line_that_is_shown_measures_the_same_again(line: list[str]) -> None:
    import shlex

    settings = about(*line)["settings"]
    words = shlex.split(command(settings))
    assert words[:2] == ["inflight", "load-test"]
    assert about(*words[2:])["settings"] == settings


def test_tiles_name_the_levels_that_matter() -> None:
    results = measured()
    named = {tile.name: tile for tile in tiles(results, {})}
    assert named["Most tokens"].detail.endswith("at concurrency 16")
    assert "concurrency 1;" in named["Soonest first token"].detail
    assert sentence(results).startswith("1, 4 and 16 requests in flight over gRPC streaming, 3 runs of each in turns: ")
    none = tiles(measured(objective=Objective(ttft=1)), {"ttft": 1.0})[2]
    assert (none.value, none.detail) == ("none", "no request kept TTFT ≤ 1 ms")
    ratio = Ratio("concurrency 4", "tokens/s", True, 1.25, 1.2, 1.3)
    assert tiles(results, {}, [ratio])[-1].detail == "tokens/s at concurrency 4 (95 %: 1.20 to 1.30): better"
    assert sentence(measured(runs=1, widths=(1,))).startswith("1 request in flight over gRPC streaming: 11 requests")


def test_nearly_as_fast_is_the_least_level_within_a_tenth_of_the_most() -> None:
    results = measured(widths=(1, 16))
    slower = summarize("concurrency 17", 17, [Run(requests(16, 0, 18.5), 16)], 16)
    near = tiles([*results, slower], {})[2]
    assert near.name in ("Nearly as fast, sooner", "First token at that load")
    assert "concurrency 16" in near.detail


def test_bars_of_a_comparison_lie_on_their_side_of_one() -> None:
    results, other = measured(10), measured(13)
    ratios = compare(as_json(results), as_json(other))
    text = html_report(about(), results, "t", ratios, as_json(other))
    one = float(re.findall(r"\.track \.one\{left:([\d.]+)%\}", text)[0])
    dots = dict(re.findall(r"#(r\d+) \.dot\{left:([\d.]+)%\}", text))
    bars = {
        name: (float(left), float(wide))
        for name, left, wide in re.findall(r"#(r\d+) \.bar\{left:(-?[\d.]+)%;width:([\d.]+)%\}", text)
    }
    assert len(dots) == len(ratios) == len(bars)
    for number_, ratio in enumerate(ratios):
        place, (left, wide) = float(dots[f"r{number_}"]), bars[f"r{number_}"]
        assert (place > one) == (ratio.ratio > 1)
        assert left - 0.11 <= place <= left + wide + 0.11
        assert 0 <= left <= left + wide <= 100


def test_facts_of_two_tests_stand_side_by_side() -> None:
    made = facts_table("Settings", {"Seed": "0", "Load": "1"}, {"Seed": "1", "Load": "1", "Old": "x"})
    assert made.count("differs</span>") == 2
    assert "–" in made
    assert facts_table("Settings", {}, {}) == ""
    assert "differs" not in facts_table("Machine", {"Finished": "today"}, {"Finished": "yesterday"})


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (8.234, "8.23"),
        (9.996, "10.0"),
        (82.34, "82.3"),
        (823.4, "823"),
        (8234.4, "8,234"),
        (0.0, "0.00"),
        (0.00123, "0.0012"),
        (math.nan, "–"),
        (None, "–"),
        (math.inf, "–"),
        (99.96, "100"),
    ],
)
def test_three_digits_count(value: float | None, text: str) -> None:
    assert number(value) == text


def test_lists_end_with_and() -> None:
    assert (listed(["1"]), listed(["1", "4"]), listed(["1", "4", "16"])) == ("1", "1 and 4", "1, 4 and 16")


def test_a_few_tokens_that_come_one_upon_another_do_not_take_half_the_picture() -> None:
    """Their curve begins where the picture does; the table still says the least."""
    made = []
    for start in range(0, 100_000, 1000):
        arrivals = [(start * MS + 10 * MS * place, 1) for place in range(1, 11)]
        arrivals.append((arrivals[-1][0] + 2000, 1))  # 2 µs after the one before
        made.append(Request(start * MS, tuple(arrivals), arrivals[-1][0], 3))
    result = summarize("concurrency 1", 1, [Run(made, 1)], 1)
    assert result.curves.itl[0] == 0.002
    (picture,) = [picture for picture in pictures([result], [], {}) if picture.name == "itl"]
    assert picture.rows[0][1] == "0.002"
    labels = re.findall(r'text-anchor="middle">([\d.]+)<', picture.drawing)
    assert labels
    assert not [each for each in map(float, labels) if 0 < each < 0.5]


def test_goodput_is_shown_where_limits_were_asked_for_even_if_all_kept_them() -> None:
    results = measured(objective=Objective(ttft=10_000))
    assert "goodput, requests/s" in Page(html_report(about("--slo", "ttft=10000"), results, "t")).text
    assert "goodput, requests/s" not in Page(html_report(about(), results, "t")).text
