"""scripts/load_test.py without a server: options, workloads, and a perf_analyzer that is a script."""

from __future__ import annotations

import csv
import json
import re
import stat
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from build_engine import svg
from inflight_tools.common.layout import REPOSITORY
from inflight_tools.common.report import Failure
from inflight_tools.load import load_test
from inflight_tools.load.compare import compare, ratio_of, read_levels
from inflight_tools.load.lengths import parse_lengths
from inflight_tools.load.page import html_report
from inflight_tools.load.perf_analyzer import Inputs, Load, find_perf_analyzer, measure, version_of
from inflight_tools.load.profile_export import Request
from inflight_tools.load.prompts import prompts
from inflight_tools.load.report import write
from inflight_tools.load.stats import LevelResult, Objective, Run, summarize
from inflight_tools.load.workload import Workload, parse_parameters
from inflight_tools.server.processes import living_pids

INPUTS: list[Inputs] = [{"text_input": ["hi"], "stream": [True], "return_num_output_tokens": [True]}] * 3

# What the real one does, as far as we rely on it: reads the inputs, writes an export, one response per request.
GOOD = """
inputs = json.load(open(argument("--input-data")))["data"]
requests = []
for number, each in enumerate(inputs):
    asked = {name: value["content"][0] for name, value in each.items()}
    response = {"num_output_tokens": 2, "num_input_tokens": 1}
    requests.append({"timestamp": 100 * number, "request_inputs": asked,
                     "response_timestamps": [100 * number + 50], "response_outputs": [response]})
json.dump({"experiments": [{"requests": requests}]}, open(argument("--profile-export-file"), "w"))
"""


@pytest.fixture
def program(tmp_path: Path) -> Callable[[str], Path]:
    """A function that makes a perf_analyzer out of Python statements."""

    def make(body: str) -> Path:
        path = tmp_path / "perf_analyzer"
        head = (
            f"#!{sys.executable}\nimport json, sys, time\nargument = lambda name: sys.argv[sys.argv.index(name) + 1]\n"
        )
        path.write_text(head + body)
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
        return path

    return make


def run(program: Path, load: Load | None = None, timeout_s: float = 20.0) -> list[Request]:
    """`measure` three requests."""
    return measure(program, "localhost:1", "llm", load or Load(concurrency=2), INPUTS, timeout_s)


def test_requests_are_measured(program: Callable[[str], Path]) -> None:
    found = run(program(GOOD))
    assert [request.sent for request in found] == [0, 100, 200]
    assert all(request.tokens == 2 for request in found)


def test_the_command_line_asks_for_a_decoupled_stream_and_counts_requests(program: Callable[[str], Path]) -> None:
    body = GOOD + 'open(sys.argv[0] + ".line", "w").write(" ".join(sys.argv[1:]))'
    path = program(body)
    run(path, Load(rate=2.5))
    line = Path(f"{path}.line").read_text(encoding="utf-8")
    for part in ("-i grpc", "--async --streaming", "--request-count 3", "--request-rate-range 2.5"):
        assert part in line
    assert "--request-distribution poisson" in line
    run(path, Load(concurrency=7))
    assert "--concurrency-range 7" in Path(f"{path}.line").read_text(encoding="utf-8")


def test_the_generator_says_which_it_is_or_nothing(program: Callable[[str], Path], tmp_path: Path) -> None:
    for stream in ("stdout", "stderr"):  # the real one takes standard error
        body = f'print("Perf Analyzer Version 2.51.0 (commit unknown)", file=sys.{stream})'
        assert version_of(program(body)) == "Perf Analyzer Version 2.51.0"
    assert version_of(program("sys.exit(3)")) == ""
    assert version_of(tmp_path / "nothing") == ""


def test_an_empty_export_is_tried_again(program: Callable[[str], Path], tmp_path: Path) -> None:
    """The real one writes nothing when an output that was not sent happens to look like a float that is no number."""
    flag = tmp_path / "tried"
    body = f"""
import pathlib
if not pathlib.Path({str(flag)!r}).exists():
    pathlib.Path({str(flag)!r}).touch()
    open(argument("--profile-export-file"), "w").close()
    sys.exit(0)
"""
    assert len(run(program(body + GOOD))) == 3
    assert flag.exists()


def test_empty_exports_for_ever_end_with_a_sentence(program: Callable[[str], Path]) -> None:
    with pytest.raises(Failure, match="no whole profile export"):
        run(program('open(argument("--profile-export-file"), "w").close()'))


def test_a_refused_request_is_told_in_the_servers_words(program: Callable[[str], Path]) -> None:
    body = 'print("Concurrency: 2\\nThread [0] had error: max_tokens must be at least 1, but is 0\\n"); sys.exit(99)'
    with pytest.raises(Failure, match=r"^the load test failed: max_tokens must be at least 1, but is 0\.$"):
        run(program(body))


def test_an_unknown_failure_shows_its_last_line(program: Callable[[str], Path]) -> None:
    with pytest.raises(Failure, match="status 3: the last words"):
        run(program('print("first\\nthe last words\\n"); sys.exit(3)'))


def test_a_level_that_takes_too_long_is_ended(program: Callable[[str], Path]) -> None:
    begin = time.monotonic()
    with pytest.raises(Failure, match=r"not done after 0\.5 s"):
        run(program("time.sleep(60)"), timeout_s=0.5)
    assert time.monotonic() - begin < 10


def test_nothing_is_left_running_after_a_timeout(program: Callable[[str], Path], tmp_path: Path) -> None:
    body = f'import os; open({str(tmp_path / "pid")!r}, "w").write(str(os.getpid())); time.sleep(60)'
    with pytest.raises(Failure):
        run(program(body), timeout_s=3.0)
    assert int((tmp_path / "pid").read_text()) not in set(living_pids())


def test_a_program_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(Failure, match="is not a program"):
        find_perf_analyzer(tmp_path / "nothing")


def test_where_there_is_none_the_command_that_fetches_one_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("inflight_tools.load.perf_analyzer.PROGRAM", tmp_path / "nothing")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(Failure) as refused:
        find_perf_analyzer()
    command = str(refused.value).split("`")[1].split()
    assert command[0] == ".venv/bin/python"
    done = subprocess.run(
        [sys.executable, *command[1:], "--check"], cwd=REPOSITORY, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr


def test_prompts_are_seeded_and_do_not_begin_alike() -> None:
    first = list(islice(prompts(1, 20), 50))
    assert first == list(islice(prompts(1, 20), 50))
    assert first != list(islice(prompts(2, 20), 50))
    assert all(len(prompt.split(" ")) == 20 for prompt in first)
    assert len({" ".join(prompt.split(" ")[:8]) for prompt in first}) == 50


def workload(prompt: str = "12", answer: str = "9", **options: Any) -> Workload:
    """Half a word per token."""
    return Workload(parse_lengths(prompt, 161), parse_lengths(answer, 338), 0.5, 0, **options)


def test_no_two_parts_share_a_prompt() -> None:
    made = workload(parameters={"temperature": 0.5, "stop_words": ["x"]})
    parts = [made.requests(part, 40) for part in ("concurrency 1 run 0", "concurrency 4 run 0", "concurrency 4 run 1")]
    texts = [request["text_input"][0] for part in parts for request in part]
    assert len(set(texts)) == 3 * 40
    assert {len(str(text).split(" ")) for text in texts} == {6}
    request = parts[0][0]
    assert request["max_tokens"] == [9]
    assert request["temperature"] == [0.5]
    assert request["stop_words"] == ["x"]
    assert request["ignore_eos"] == [True]
    assert request["return_num_output_tokens"] == [True]
    assert workload(stop_at_eos=True).requests("", 1)[0]["ignore_eos"] == [False]


def test_lengths_follow_their_distribution() -> None:
    made = workload("uniform:10-50", "sharegpt:100").requests("", 3000)
    prompt = [len(str(request["text_input"][0]).split(" ")) for request in made]
    answer = [int(request["max_tokens"][0]) for request in made]
    assert min(prompt) == 5
    assert max(prompt) == 25
    assert statistics.fmean(prompt) == pytest.approx(15, rel=0.05)
    assert statistics.fmean(answer) == pytest.approx(100, rel=0.1)
    assert statistics.median(answer) == pytest.approx(61, rel=0.1)  # exp(-1/2) of the mean
    assert max(answer) <= 1600
    assert answer == [
        int(request["max_tokens"][0]) for request in workload("uniform:10-50", "sharegpt:100").requests("", 3000)
    ]


def test_published_means_are_the_defaults_of_sharegpt() -> None:
    assert parse_lengths("sharegpt", 161).mean == 161
    assert str(parse_lengths("sharegpt:50", 161)) == "sharegpt:50"
    assert str(parse_lengths("uniform:1-9", 161)) == "uniform:1-9"
    assert str(parse_lengths("64", 161)) == "64"


@pytest.mark.parametrize(
    "text", ["0", "-1", "x", "uniform:5", "uniform:9-5", "uniform:0-5", "sharegpt:0", "sharegpt:x", ""]
)
def test_wrong_lengths_are_refused(text: str) -> None:
    with pytest.raises(Failure, match="is no length"):
        parse_lengths(text, 161)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("foo=1", "'foo' is not a request parameter"),
        ("max_tokens=x", "max_tokens cannot be 'x'"),
        ("seed", "NAME=VALUE"),
    ],
)
def test_wrong_parameters(text: str, sentence: str) -> None:
    with pytest.raises(Failure, match=sentence):
        parse_parameters([text])


@pytest.mark.parametrize(
    "line", [["--concurrency", "0"], ["--concurrency", "1,x"], ["--rate", "0"], ["--rate", "1", "--concurrency", "1"]]
)
def test_wrong_levels_are_refused(line: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        load_test.parse(line)
    assert caught.value.code == 2
    assert "error:" in capsys.readouterr().err


def test_levels_of_rates() -> None:
    found = load_test.levels(load_test.parse(["--rate", "0.5,4", "--arrivals", "constant"]))
    assert [str(load) for load in found] == ["0.5 requests/s (constant)", "4 requests/s (constant)"]


@pytest.mark.parametrize("text", ["ttft", "ttft=", "ttft=0", "ttft=-1", "speed=3", "tpot=x"])
def test_wrong_objectives_are_refused(text: str) -> None:
    with pytest.raises(Failure, match="--slo must be one of ttft, tpot, latency"):
        load_test.parse_objective([text])


def test_objectives_add_up() -> None:
    assert load_test.parse_objective(["ttft=200", "tpot=50.5"]) == Objective(ttft=200, tpot=50.5)


def test_too_few_requests_for_the_concurrency() -> None:
    arguments = load_test.parse(["--concurrency", "1,8", "--requests", "4"])
    one, eight = load_test.levels(arguments)
    assert load_test.plan(arguments, one) == (4, 1)
    with pytest.raises(Failure, match="less than the concurrency 8"):
        load_test.plan(arguments, eight)


def level(gap_ms: int = 10, runs: int = 1, count: int = 3) -> LevelResult:
    """Ten tokens per request, one in each response."""
    made = []
    for number in range(runs):
        gap = (gap_ms * 100 + number) * 10_000  # runs differ by 0.1 % of 10 ms
        sent = [each * 11 * gap for each in range(count)]
        made.append(
            [Request(at, tuple((at + gap * (place + 1), 1) for place in range(10)), at + 10 * gap, 3) for at in sent]
        )
    return summarize("concurrency 1", 1, [Run(requests, 0) for requests in made], 1)


def test_files_hold_what_was_measured(tmp_path: Path) -> None:
    whole = [Request(number * 10**9, ((number * 10**9 + 10**8, 4),), number * 10**9 + 10**8, 3) for number in range(3)]
    result = summarize("concurrency 1", 1, [Run(whole, 0)], 1)
    write(tmp_path / "out", load_test.about(load_test.parse([])), [result], "a <title>")
    content = json.loads((tmp_path / "out" / "results.json").read_text())
    assert content["levels"][0]["ttft"]["p50"] == 100
    assert content["levels"][0]["itl"]["p50"] is None  # whole answers in one response: JSON has no NaN
    assert content["settings"]["max_tokens"] == "64"
    (row,) = csv.DictReader((tmp_path / "out" / "results.csv").open())
    assert float(row["ttft_p50_ms"]) == 100
    assert row["load"] == "concurrency 1"
    page = (tmp_path / "out" / "report.html").read_text()
    assert "a &lt;title&gt;" in page
    assert "nan" not in page.lower().replace("finance", "")


def test_the_report_is_one_page_with_charts_that_are_well_formed() -> None:
    results = [level(10, 3), level(20, 3)]
    page = html_report({"settings": {}}, results, "t", compare(_json(results[:1]), _json(results[1:])), _json(results))
    assert "http" not in page.replace("http://www.w3.org/2000/svg", "")  # nothing is fetched
    charts = re.findall(r"<svg.*?</svg>", page, re.DOTALL)
    assert len(charts) == 4
    for chart in charts:
        root = ElementTree.fromstring(chart)
        lines = root.findall("{http://www.w3.org/2000/svg}polyline")
        points = [tuple(map(float, point.split(","))) for line in lines for point in line.attrib["points"].split()]
        assert points
        assert all(0 <= x <= svg.WIDTH and 0 <= y <= svg.HEIGHT for x, y in points)


def _json(results: list[LevelResult]) -> list[dict[str, Any]]:
    levels: list[dict[str, Any]] = json.loads(json.dumps([result.to_json() for result in results]))
    return levels


def test_a_comparison_tells_faster_from_slower_with_its_interval() -> None:
    ratios = {ratio.figure: ratio for ratio in compare(_json([level(10, 3)]), _json([level(20, 3)]))}
    assert ratios["tokens/s"].ratio == pytest.approx(2, rel=0.01)
    assert ratios["tokens/s"].verdict == "better"
    assert ratios["TTFT p50"].ratio == pytest.approx(0.5, rel=0.01)
    assert ratios["TTFT p50"].verdict == "better"  # less is better
    slower = {ratio.figure: ratio for ratio in compare(_json([level(20, 3)]), _json([level(10, 3)]))}
    assert slower["ITL p50"].verdict == "worse"
    same = compare(_json([level(10, 3)]), _json([level(10, 3)]))
    assert {ratio.verdict for ratio in same} == {"not told apart"}
    assert all(ratio.low is not None and ratio.high is not None and ratio.low <= 1 <= ratio.high for ratio in same)


def test_single_runs_have_no_interval() -> None:
    (first, *_) = compare(_json([level(10)]), _json([level(20)]))
    assert (first.low, first.high, first.verdict) == (None, None, "one run: no interval")


def test_the_interval_is_welchs() -> None:
    """Against scipy.stats.ttest_ind(..., equal_var=False).confidence_interval() on the logarithms."""
    ratio, low, high = ratio_of([100.0, 110.0, 105.0], [80.0, 90.0, 100.0, 85.0])
    assert ratio == pytest.approx(1.18624, abs=1e-5)
    assert low == pytest.approx(1.02612, abs=2e-3)
    assert high == pytest.approx(1.37135, abs=2e-3)


def test_nothing_in_common(tmp_path: Path) -> None:
    other = [{**each, "load": "concurrency 2"} for each in _json([level()])]
    with pytest.raises(Failure, match="no level in common"):
        compare(_json([level()]), other)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{}",
        "[]",
        "null",
        '{"levels": []}',
        '{"levels": 5}',
        '{"levels": [{}]}',
        '{"levels": [{"load": "x", "runs": []}]}',
        '{"levels": [{"load": "x", "runs": [{"tokens_per_s": "fast"}]}]}',
        '{"levels": [{"load": "x", "runs": [{"tokens_per_s": -1}]}]}',
        '{"levels": [{"load": "x", "runs": [{"tokens_per_s": 1}, {}]}]}',
        '{"levels": [{"load": "x", "runs": [{"tokens_per_s": 0}, {"tokens_per_s": 0.0}]}]}',
        '{"levels": [{"load": 4, "runs": [{"tokens_per_s": 1}]}]}',
        '{"levels": [{"load": "x", "runs": [{"tokens_per_s": 1, "ttft_p50": "soon"}]}]}',
        '{"levels": [{"load": "x", "runs": [{"tokens_per_s": 1e999}]}]}',
        '{"settings": 5, "levels": [{"load": "x", "runs": [{"tokens_per_s": 1}]}]}',
        '{"settings": {"slo": ["ttft=x"]}, "levels": [{"load": "x", "runs": [{"tokens_per_s": 1}]}]}',
        '{"client_machine": "x", "levels": [{"load": "x", "runs": [{"tokens_per_s": 1}]}]}',
        '{"levels": [{"load": "x", "runs": [{"tokens_per_s": 1}], "curves": {"ttft": 5}}]}',
        "[" * 100_000,
    ],
)
def test_what_is_no_result_is_one_sentence(tmp_path: Path, text: str) -> None:
    path = tmp_path / "results.json"
    path.write_text(text)
    with pytest.raises(Failure, match="holds no results"):
        read_levels(path)


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        (["--concurrency", "4,4"], "names 4 twice"),
        (["--rate", "2,2.0"], "names 2 twice"),
        (["--requests", "x"], "must be 1 or more"),
        (["--warmup", "-1"], "must be 0 or more"),
        (["--runs", "0"], "must be 1 or more"),
        (["--timeout", "0"], "must be a number above 0"),
        (["--timeout", "nan"], "must be a number above 0"),
        (["--price-per-hour", "-3"], "must be a number above 0"),
        (["--price-per-hour", "inf"], "must be a number above 0"),
    ],
)
def test_odd_numbers_end_in_a_sentence(line: list[str], sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        load_test.parse(line)
    said = capsys.readouterr().err
    assert sentence in said
    assert "_" not in said.replace("__main__", "")  # no name of a function of ours


def test_what_cannot_be_compared_is_known_before_anything_is_measured(tmp_path: Path) -> None:
    """Minutes of measuring would be lost: nothing listens at this address, and nobody asks."""
    path = tmp_path / "results.json"
    path.write_text(json.dumps({"levels": _json([level()])}), encoding="utf-8")
    with pytest.raises(Failure, match=r"has concurrency 1, not concurrency 2, concurrency 3: measure the same"):
        load_test.main(["--url", "localhost:1", "--compare", str(path), "--concurrency", "2,3"])
    with pytest.raises(Failure, match="holds no results"):
        load_test.main(["--url", "localhost:1", "--compare", str(tmp_path / "nothing.json")])


def test_a_place_that_takes_no_files_is_known_before_anything_is_measured(tmp_path: Path) -> None:
    taken = tmp_path / "taken"
    taken.touch()
    for place in (taken, taken / "below"):
        with pytest.raises(Failure, match=r"^--output .*taken.* is no folder"):
            load_test.main(["--url", "localhost:1", "--output", str(place)])


def test_nothing_that_could_be_measured_is_one_sentence() -> None:
    """Too few answers to leave the warm-up behind, and answers without a single token."""
    silent = [Request(at, (), at + 5, 3) for at in range(4)]
    with pytest.raises(Failure, match=r"concurrency 1: none of its 3 answers has a token"):
        load_test.check_answers("concurrency 1", silent, 4, 1)
    with pytest.raises(
        Failure, match=r"concurrency 1: only 4 of 9 requests were answered, and the first 4 are warm-up"
    ):
        load_test.check_answers("concurrency 1", silent, 9, 4)
    spoken = Request(9, ((12, 1),), 12, 3)
    load_test.check_answers("concurrency 1", [*silent, spoken], 5, 1)
    result = summarize("concurrency 1", 1, [Run([*silent, spoken], 1)], 1, price_per_hour=1.0)
    assert result.tokens == 1
    assert not silent[0].ttft


def test_no_token_within_the_steady_interval_costs_nothing_that_can_be_said() -> None:
    """The only tokens came before the interval began and after it ended."""
    early = Request(0, ((5, 1),), 30, 3)
    silent = Request(10, (), 20, 3)
    late = Request(20, ((40, 1),), 40, 3)
    result = summarize("concurrency 2", 2, [Run([early, silent, late], 1)], 2, price_per_hour=1.0)
    assert result.tokens_per_s == 0
    assert result.cost_per_1000_tokens is None
