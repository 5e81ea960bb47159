"""Figures of a load test from made-up requests whose right answers are known."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inflight_tools.common.resources import Sample
from inflight_tools.load.profile_export import Request
from inflight_tools.load.quantiles import SHARES, quantiles
from inflight_tools.load.stats import LevelResult, Objective, Percentiles, Run, half_width, steady_interval, t975
from inflight_tools.load.stats import summarize as summarize_runs

MS = 1_000_000


def summarize(load: str, requests: list[Request], warmup: int, concurrency: int | None) -> LevelResult:
    """One run of one level."""
    return summarize_runs(load, concurrency or 1, [Run(requests, warmup)], concurrency)


def request(sent_ms: float, *arrivals: tuple[float, int], prompt: int = 5) -> Request:
    """A request from milliseconds."""
    inside = tuple((int(at * MS), tokens) for at, tokens in arrivals)
    return Request(int(sent_ms * MS), inside, inside[-1][0], prompt)


def even(sent_ms: float, first_ms: float, gap_ms: float, tokens: int) -> Request:
    """One token per response, evenly spaced."""
    return request(sent_ms, *((sent_ms + first_ms + gap_ms * number, 1) for number in range(tokens)))


def test_percentiles_are_values_that_occurred() -> None:
    found = Percentiles.of([value * MS for value in range(1, 101)])
    assert (found.p50, found.p90, found.p99) == (50, 90, 99)
    assert found.mean == pytest.approx(50.5)


def test_weights_count_a_value_several_times() -> None:
    assert Percentiles.of([1 * MS, 10 * MS], [99, 1]) == Percentiles.of([1 * MS] * 99 + [10 * MS])
    assert Percentiles.of([10 * MS, 1 * MS], [1, 99]).p99 == 1


def test_nothing_measured_is_not_a_number() -> None:
    found = Percentiles.of([])
    assert all(math.isnan(value) for value in (found.p50, found.p90, found.p99, found.mean))


@given(st.lists(st.integers(1, 10**9), min_size=1, max_size=50))
def test_percentiles_are_ordered_and_within(values: list[int]) -> None:
    found = Percentiles.of(values)
    assert min(values) / MS <= found.p50 <= found.p90 <= found.p99 <= max(values) / MS
    assert found.p50 in {value / MS for value in values}


def test_one_at_a_time() -> None:
    # First token after 20 ms, then one every 10 ms: 5 tokens in 60 ms, and the next request is sent at once.
    requests = [even(60.0 * number, 20, 10, 5) for number in range(4)]
    result = summarize("concurrency 1", requests, 1, 1)
    assert result.requests == 3
    assert result.tokens == 15
    assert result.runs[0].steady_s == pytest.approx(0.18)
    assert result.tokens_per_s_ci95 is None
    assert result.usage is None
    assert result.cost_per_1000_tokens is None
    assert result.tokens_per_s == pytest.approx(15 / 0.18)
    assert result.requests_per_s == pytest.approx(3 / 0.18)
    assert result.ttft.p50 == result.ttft.p99 == 20
    assert result.itl.p50 == result.tpot.p99 == 10
    assert result.latency.p50 == 60
    assert result.tokens_per_response == 1
    assert result.prompt_tokens == 5


def test_tokens_are_counted_not_responses() -> None:
    requests = [request(0, (100, 1), (140, 4), (150, 1)), request(150, (250, 1), (290, 4), (300, 1))]
    result = summarize("", requests, 0, 1)
    assert result.tokens == 12
    assert result.tokens_per_s == pytest.approx(12 / 0.3)
    assert result.tokens_per_response == 2
    # Four of the five tokens after the first came after 40 ms together, 10 ms each.
    assert result.itl.p50 == result.itl.p99 == 10
    assert result.tpot.p50 == 10


def test_throughput_of_a_fixed_concurrency_leaves_out_start_and_end() -> None:
    """Two in flight at 100 tokens/s each; the warm-up is slower, and the last request runs alone."""
    slow = [even(0, 10, 50, 10), even(0, 10, 50, 10)]  # both until 460 ms
    steady = [even(460, 10, 10, 10), even(460, 10, 10, 10)]  # until 560 ms
    last = [even(560, 10, 10, 10), even(560, 10, 10, 40)]  # until 660 ms and 960 ms
    requests = [*slow, *steady, *last]
    start, end = steady_interval(requests, 2, 2)
    assert (start / MS, end / MS) == (460, 660)
    result = summarize("", requests, 2, 2)
    assert result.tokens_per_s == pytest.approx(200.0, rel=0.01)
    assert result.requests == 4
    # Two requests of 10 tokens, one of 10 and a quarter of the one of 40: a request counts by its share of tokens.
    assert result.requests_per_s == pytest.approx(3.25 / 0.2, rel=0.01)


def test_a_single_wave_is_measured_to_its_last_end() -> None:
    """Else a server that answers one after the other would have the rate of its first answer alone."""
    in_turn = [even(0, 10, 10, 10), even(0, 110, 10, 10)]  # until 100 ms and 200 ms
    together = [even(0, 20, 20, 10), even(0, 20, 20, 10)]  # both until 200 ms
    assert steady_interval(in_turn, 0, 2) == (0, 200 * MS)
    assert summarize("", in_turn, 0, 2).tokens_per_s == summarize("", together, 0, 2).tokens_per_s == 100
    warm = [even(0, 10, 10, 3), even(0, 10, 10, 3)]
    later = [even(100, 10, 10, 10), even(100, 110, 10, 10)]
    assert steady_interval([*warm, *later], 2, 2) == (100 * MS, 300 * MS)


def test_a_rate_is_measured_until_the_last_request_is_sent() -> None:
    requests = [even(100.0 * number, 10, 10, 3) for number in range(11)]
    assert steady_interval(requests, 0, None) == (0, 1000 * MS)
    assert summarize("", requests, 0, None).tokens_per_s == pytest.approx(30.0)


def test_answers_in_one_response_have_no_inter_token_latency() -> None:
    result = summarize("", [request(0, (100, 8)), request(100, (200, 8))], 0, 1)
    assert math.isnan(result.itl.p50)
    assert result.ttft.p50 == result.latency.p50 == 100
    assert result.tokens_per_s == pytest.approx(80.0)


def test_json_and_csv_have_the_same_figures() -> None:
    result: LevelResult = summarize("concurrency 1", [even(0, 20, 10, 5), even(60, 20, 10, 5)], 0, 1)
    content, row = json.loads(json.dumps(result.to_json())), result.to_row()
    assert row["ttft_p90_ms"] == content["ttft"]["p90"] == 20
    assert row["tokens_per_s"] == content["tokens_per_s"]
    assert row["load"] == "concurrency 1"
    assert all(not isinstance(value, dict) for value in row.values())


@given(st.lists(st.tuples(st.integers(1, 10**9), st.integers(1, 5)), min_size=1, max_size=50))
def test_a_distribution_is_that_of_all_its_values(pairs: list[tuple[int, int]]) -> None:
    values, weights = [value for value, _ in pairs], [weight for _, weight in pairs]
    curve = quantiles(values, weights)
    assert curve == tuple(sorted(curve))
    assert (curve[0], curve[-1]) == (min(values) / MS, max(values) / MS)
    known = Percentiles.of(values, weights)
    at = dict(zip(SHARES, curve, strict=True))
    assert (at[0.5], at[0.9], at[0.99]) == (known.p50, known.p90, known.p99)
    assert curve == quantiles([value for value, weight in pairs for _ in range(weight)])


def test_a_level_keeps_its_distributions_in_json_but_not_in_csv() -> None:
    result = summarize("concurrency 1", [even(0, 20, 10, 5), even(60, 30, 10, 5)], 0, 1)
    kept = json.loads(json.dumps(result.to_json()))["curves"]
    assert len(kept["shares"]) == len(kept["ttft"]) == len(kept["itl"]) == len(kept["latency"])
    assert (kept["ttft"][0], kept["ttft"][-1], set(kept["itl"])) == (20, 30, {10})
    assert "curves" not in result.to_row()
    assert summarize("", [request(0, (100, 8)), request(100, (200, 8))], 0, 1).curves.itl == ()


def test_several_runs_give_a_mean_with_its_interval() -> None:
    """Two runs at 100 tokens/s, then one of them with one at 50."""
    runs = [Run([even(100.0 * number, 10, gap, 10) for number in range(3)], 0) for gap in (10, 10)]
    same = summarize_runs("", 1, runs, 1)
    assert same.tokens_per_s_ci95 == 0
    assert same.requests == 6
    assert len(same.runs) == 2
    slow = [even(200.0 * number, 20, 20, 10) for number in range(3)]
    both = summarize_runs("", 1, [runs[0], Run(slow, 0)], 1)
    assert both.tokens_per_s == pytest.approx(75)
    assert both.tokens_per_s_ci95 == pytest.approx(12.706 * 25, rel=1e-3)  # t with one degree of freedom
    assert both.itl.p50 == 10  # percentiles are over the requests of all runs
    assert both.itl.p90 == 20


def test_the_width_of_an_interval() -> None:
    assert half_width([1.0]) is None
    assert half_width([1.0, 2.0, 3.0]) == pytest.approx(4.303 / math.sqrt(3))
    assert t975(1) == 12.706
    assert t975(2) > t975(2.5) > t975(3)
    assert t975(20) == pytest.approx(2.086, rel=0.007)
    assert t975(100) == pytest.approx(1.984, rel=0.001)


def test_goodput_counts_requests_within_every_limit() -> None:
    requests = [even(100.0 * number, 10, 10, 10) for number in range(3)] + [
        even(300, 50, 10, 10),
        even(440, 10, 20, 10),
    ]
    tight = summarize_runs("", 1, [Run(requests, 0)], 1, Objective(ttft=20, tpot=15))
    assert tight.good_share == pytest.approx(3 / 5)
    assert tight.goodput_requests_per_s == pytest.approx(tight.requests_per_s * 3 / 5)
    assert summarize_runs("", 1, [Run(requests, 0)], 1, Objective(latency=1)).good_share == 0
    assert summarize_runs("", 1, [Run(requests, 0)], 1).good_share == 1


def test_cost_follows_from_price_and_speed() -> None:
    requests = [even(100.0 * number, 10, 10, 10) for number in range(3)]  # 100 tokens/s: 360,000 an hour
    result = summarize_runs("", 1, [Run(requests, 0)], 1, price_per_hour=3.6)
    assert result.cost_per_1000_tokens == pytest.approx(3.6 / 360)


def test_use_of_the_machine_is_that_of_the_steady_interval() -> None:
    requests = [even(1000.0 * number, 100, 100, 10) for number in range(4)]  # 10 tokens/s
    samples = [Sample(at * 500 * MS, cpu_s=0.9 * at, memory=10**9 + at) for at in range(-4, 20)]
    found = summarize_runs("", 1, [Run(requests, 1, samples)], 1).usage
    assert found is not None
    assert found.cpu_cores == pytest.approx(1.8)
    assert found.cpu_s_per_1000_tokens == pytest.approx(180, rel=0.05)
    assert found.memory == 10**9 + 8  # at 4 s, when the steady interval ends
    assert found.gpu_percent is None
