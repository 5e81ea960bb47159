"""Side-by-side benchmarks without an engine: who runs when, on which prompts, what is repeated, what is compared."""

from __future__ import annotations

import dataclasses
import json
import os
import statistics
import time
from collections.abc import Iterator, Sequence
from itertools import count
from pathlib import Path

import pytest

import bench.turns
from bench import overhead
from bench.arms import Measured, Prompt
from bench.bare_worker import Run
from bench.quiet import CpuTime, wait_until_quiet
from bench.turns import Record, Rules, Turns, compare
from inflight_tools.common.report import Failure
from inflight_tools.load.profile_export import Request

RULES = Rules(repeats=3, waves=2, max_tokens=4, quiet=0.05, retries=2, patience_s=0.0)


class FakeArm:
    """Gives every request its tokens at once and writes down what happened."""

    def __init__(self, name: str, log: list[str], tokens: int = 4, shares_cache: bool = False) -> None:
        self.name = name
        self.shares_cache = shares_cache
        self.seen: list[str] = []
        self.active = False
        self._log = log
        self._tokens = tokens

    def resume(self) -> None:
        self.active = True
        self._log.append(f"{self.name} on")

    def pause(self) -> None:
        self.active = False
        self._log.append(f"{self.name} off")

    def warm(self, prompt: Prompt) -> None:
        self.seen.append(prompt.text)

    def run(self, prompts: Sequence[Prompt], concurrency: int, max_tokens: int) -> Measured:
        assert self.active
        self._log.append(f"{self.name} runs {len(prompts)} at {concurrency}")
        self.seen += [prompt.text for prompt in prompts]
        requests = [Request(0, ((10**9, self._tokens),), 10**9, 0) for _ in prompts]
        return Measured(requests, [], {"engine": 0.0})


@pytest.fixture
def quiet(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What others use of the CPU, run by run; 0 when the list is used up."""
    shares: list[float] = []

    class Told(CpuTime):
        def share_of_others(self, since: CpuTime, own_s: float) -> float:
            return shares.pop(0) if shares else 0.0

    monkeypatch.setattr(bench.turns, "CpuTime", Told)
    return shares


def supply() -> Iterator[str]:
    """Texts that are all different."""
    return (f"prompt {number}" for number in count())


def turns(arms: Sequence[FakeArm], rules: Rules = RULES) -> Turns:
    """Turns over fakes."""
    texts = supply()
    return Turns(arms, lambda number: [Prompt(next(texts), [1]) for _ in range(number)], rules, lambda _text: None)


def test_one_side_runs_at_a_time_and_the_first_changes(quiet: list[float]) -> None:
    log: list[str] = []
    records = turns([FakeArm("bare", log), FakeArm("triton", log)]).take([1, 8])
    on = 0
    for line in log:
        on += {"on": 1, "off": -1}.get(line.split()[1], 0)
        assert on in (0, 1)
    assert on == 0
    order = [(record.repeat, record.concurrency, record.arm) for record in records]
    assert order[:4] == [(1, 1, "bare"), (1, 1, "triton"), (1, 8, "bare"), (1, 8, "triton")]
    assert order[4:6] == [(2, 1, "triton"), (2, 1, "bare")]
    assert len(records) == 3 * 2 * 2  # the warm-up is not among them
    assert [record.requests for record in records[:4]] == [8, 8, 16, 16]


def test_prompts_are_equal_on_both_sides_and_never_used_twice(quiet: list[float]) -> None:
    arms = [FakeArm("bare", []), FakeArm("engine", [], shares_cache=True), FakeArm("triton", [])]
    turns(arms).take([2])
    bare, engine, triton = (set(arm.seen) for arm in arms)
    assert all(len(arm.seen) == len(set(arm.seen)) for arm in arms)
    assert len(bare & triton) == 2 + 3 * 8  # the warm-up's and those measured; the single ones that wake up differ
    assert not engine & (bare | triton)


def test_a_disturbed_turn_is_repeated_and_the_quietest_one_counts(quiet: list[float]) -> None:
    quiet += [0.0, 0.0]  # warm-up
    quiet += [0.0, 0.9, 0.3, 0.2, 0.02, 0.5]  # three tries of the first turn: bare, triton
    log: list[str] = []
    records = turns([FakeArm("bare", log), FakeArm("triton", log)]).take([1])
    assert [record.cpu_share_of_others for record in records[:2]] == [0.3, 0.2]
    assert sum(line == "bare runs 8 at 1" for line in log) == 3 + 2


def test_missing_tokens_end_the_benchmark(quiet: list[float]) -> None:
    with pytest.raises(Failure, match="triton gave 24 tokens instead of 32"):
        turns([FakeArm("bare", []), FakeArm("triton", [], tokens=3)], Rules(1, 2, 4, 1.0, 0, 0.0)).take([8])


def test_runs_of_few_requests_are_possible_and_the_first_one_is_short(quiet: list[float]) -> None:
    """A model whose answers take a minute: one request where one is in flight, and no whole answers to warm up."""
    log: list[str] = []
    asked: list[int] = []

    class Noting(FakeArm):
        def run(self, prompts: Sequence[Prompt], concurrency: int, max_tokens: int) -> Measured:
            asked.append(max_tokens)
            self._tokens = max_tokens
            return super().run(prompts, concurrency, max_tokens)

    rules = Rules(repeats=1, waves=1, max_tokens=128, quiet=0.05, retries=0, patience_s=0.0, least=1)
    turns([Noting("bare", log)], rules).take([1, 4])
    assert [line for line in log if "runs" in line] == [f"bare runs {n} at {n}" for n in (1, 4, 1, 4)]
    assert asked == [8, 8, 128, 128]


def test_other_concurrencies_of_a_file_are_kept(tmp_path: Path) -> None:
    file = tmp_path / "overhead.json"
    assert overhead.kept(file, [1]) == []
    records = [dataclasses.replace(record("bare", 1, 1.0, 1.0, {}), concurrency=each) for each in (1, 8, 64)]
    file.write_text(json.dumps({"records": [dataclasses.asdict(each) for each in records]}), encoding="utf-8")
    assert overhead.kept(file, [8]) == [records[0], records[2]]
    file.write_text("{}", encoding="utf-8")
    with pytest.raises(Failure, match="not a file of this benchmark"):
        overhead.kept(file, [8])


def record(arm: str, repeat: int, tokens_per_s: float, ttft: float, cpu: dict[str, float]) -> Record:
    """One run at concurrency 8."""
    return Record(repeat, 8, arm, 24, tokens_per_s, ttft, 1.5, cpu, 0.01 * repeat)


def test_comparison_is_made_pair_by_pair() -> None:
    speeds = {1: (100.0, 90.0), 2: (50.0, 48.0), 3: (200.0, 150.0)}  # the machine's speed changes, the ratio little
    records = []
    for repeat, (bare, ours) in speeds.items():
        records.append(record("bare", repeat, bare, 10.0, {"engine": 900.0}))
        records.append(record("triton", repeat, ours, 12.0 + repeat, {"engine": 900.0, "stub": 60.0, "server": 40.0}))
    (row,) = compare(records, "triton", "bare")
    assert row.ratios == [0.9, 0.96, 0.75]
    assert row.ratio == 0.9
    assert row.cpu_ratio == pytest.approx(0.9)
    assert row.added_ttft_ms == 4.0
    assert row.tokens_per_s == statistics.median([90, 48, 150])
    assert row.cpu_us_per_token == {"engine": 900.0, "stub": 60.0, "server": 40.0}
    assert row.cpu_share_of_others == pytest.approx(0.03)


def test_a_closed_loop_keeps_so_many_in_flight() -> None:
    run = Run([[1], [2], [3]], 2)
    sent: list[tuple[int, list[int]]] = []
    run.fill(lambda index, prompt: sent.append((index, prompt)))
    assert sent == [(0, [1]), (1, [2])]
    run.got(1, [7, 8], False)
    run.fill(lambda index, prompt: sent.append((index, prompt)))
    assert len(sent) == 2
    run.got(1, [9], True)
    run.fill(lambda index, prompt: sent.append((index, prompt)))
    assert sent[2:] == [(2, [3])]
    run.got(0, [], True)
    run.got(2, [5], True)
    assert run.open == 0
    assert [answer["token_ids"] for answer in run.answers] == [[], [7, 8, 9], [5]]
    assert [tokens for _, tokens in run.answers[1]["arrivals"]] == [2, 1]


def test_cpu_of_others_is_what_is_not_ours() -> None:
    before = CpuTime(busy=100.0, total=1000.0)
    after = CpuTime(busy=106.0, total=1010.0)
    assert after.share_of_others(before, 6.0) == 0
    assert after.share_of_others(before, 2.0) == pytest.approx(0.4)
    assert after.share_of_others(before, 7.0) == 0  # clocks are not exact
    assert before.share_of_others(before, 0.0) == 0


def test_this_machine_tells_its_cpu_time() -> None:
    before = CpuTime.now()
    end = time.monotonic() + 0.3
    while time.monotonic() < end:
        pass
    after = CpuTime.now()
    elapsed = (after.total - before.total) / (os.cpu_count() or 1)
    assert 0.2 < elapsed < 5
    assert after.busy - before.busy > 0.15


def test_waiting_for_quiet_has_an_end() -> None:
    begin = time.monotonic()
    assert wait_until_quiet(-1.0, 0.1) is False
    assert wait_until_quiet(2.0, 5.0) is True
    assert time.monotonic() - begin < 10
