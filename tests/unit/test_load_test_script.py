"""scripts/load_test.py without a server: options, workloads, and a perf_analyzer that is a script."""

from __future__ import annotations

import csv
import json
import stat
import sys
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import pytest

import load_test
from _load_stats import summarize
from _perf_analyzer import Inputs, Load, find_perf_analyzer, measure
from _processes import living_pids
from _profile_export import Request
from _prompts import prompts
from _report import Failure

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
    line = Path(f"{path}.line").read_text()
    for part in ("-i grpc", "--async --streaming", "--request-count 3", "--request-rate-range 2.5"):
        assert part in line
    assert "--request-distribution poisson" in line
    run(path, Load(concurrency=7))
    assert "--concurrency-range 7" in Path(f"{path}.line").read_text()


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
    with pytest.raises(Failure, match="empty profile export"):
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


def test_prompts_are_seeded_and_do_not_begin_alike() -> None:
    first = list(islice(prompts(1, 20), 50))
    assert first == list(islice(prompts(1, 20), 50))
    assert first != list(islice(prompts(2, 20), 50))
    assert all(len(prompt.split(" ")) == 20 for prompt in first)
    assert len({" ".join(prompt.split(" ")[:8]) for prompt in first}) == 50


def test_no_two_levels_share_a_prompt() -> None:
    arguments = load_test.parse(["--max-tokens", "9", "--parameter", "temperature=0.5", "--parameter", "stop_words=x"])
    workload = load_test.Workload(arguments, 12)
    levels = [workload.requests(load, 40) for load in load_test.levels(arguments)]
    texts = [request["text_input"][0] for level in levels for request in level]
    assert len(set(texts)) == 3 * 40
    request = levels[0][0]
    assert request["max_tokens"] == [9]
    assert request["temperature"] == [0.5]
    assert request["stop_words"] == ["x"]
    assert request["ignore_eos"] == [True]
    assert request["return_num_output_tokens"] == [True]


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
        load_test.parse_parameters([text])


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


def test_files_hold_what_was_measured(tmp_path: Path) -> None:
    requests = [
        Request(number * 10**9, ((number * 10**9 + 10**8, 4),), number * 10**9 + 10**8, 3) for number in range(3)
    ]
    results = [summarize("concurrency 1", requests, 0, 1)]
    load_test.write(tmp_path / "out", load_test.parse([]), results)
    content = json.loads((tmp_path / "out" / "results.json").read_text())
    assert content["levels"][0]["ttft"]["p50"] == 100
    assert content["levels"][0]["itl"]["p50"] is None  # whole answers in one response: JSON has no NaN
    assert content["settings"]["max_tokens"] == 64
    (row,) = csv.DictReader((tmp_path / "out" / "results.csv").open())
    assert float(row["ttft_p50_ms"]) == 100
    assert row["load"] == "concurrency 1"
