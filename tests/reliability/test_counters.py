"""Invariant 9: what /metrics says equals the work done, after every kind of end."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import time
import urllib.request
from collections import Counter
from typing import Any

import pytest

from inflight.serving.metrics import exported
from tests.harness.http_client import HttpClient
from tests.harness.prometheus import Prometheus, program
from tests.reliability.conftest import OpenRig, Report
from tests.reliability.load import LEFT, End, Load, drive, make_request, tally
from tests.reliability.rig import Rig, Samples

pytestmark = pytest.mark.server

PROMPT = 11  # tokens of every prompt
EOS_AFTER = 25  # tokens; the model `eos` ends there
DISTRIBUTIONS = ("queue_time_seconds", "time_to_first_token_seconds", "request_latency_seconds")


@pytest.fixture(scope="module")
def rig(open_rig: OpenRig) -> Rig:
    """Four places, so that requests can be made to wait."""
    options = {"step_ms": 5, "max_running": 4, "eos_every": EOS_AFTER}
    return open_rig({"llm": {"engine_options": options, "metrics_interval_ms": 100}})


def request(number: int, **inputs: Any) -> Any:
    """A prompt of `PROMPT` tokens that is different for every number."""
    return make_request(input_ids=[number + 100] * PROMPT, **inputs)


def test_every_family_is_there_at_the_first_scrape(rig: Rig, report: Report) -> None:
    """As soon as the model is ready, whatever the interval; what no engine has said yet is the exception."""
    rig.add_model("fresh", {"metrics_interval_ms": 60_000, "price_per_hour": 2.5, "max_queue_size": 7})
    http = HttpClient(rig.http)
    assert http.call("POST", "/v2/repository/models/fresh/load", b"{}")[0] == 200
    found = rig.metrics("fresh")
    assert http.call("POST", "/v2/repository/models/fresh/unload", b"{}")[0] == 200
    wanted = {name for name, _, _ in exported()}
    unknown = {"inflight_prefix_cache_hit_tokens_total", "inflight_speculative_tokens_total"}
    assert wanted - {name for name, _ in found} <= unknown
    kinds = [label for name, label in found if name == "nv_trt_llm_request_metrics"]
    assert sorted(kinds) == ["active", "max", "scheduled", "waiting"]
    assert found["inflight_price_per_hour", ""] == 2.5
    assert found["inflight_limit", "queue_requests"] == 7
    reasons = [label for name, label in found if name == "inflight_last_restart"]
    assert sorted(reasons) == ["load_failed", "lost", "stalled"]
    report(f"{len(found)} samples of {len(wanted)} families before the first flush of the interval")


def send(rig: Rig, requests: list[Any]) -> list[End]:
    """All at the same time."""
    ends: list[End] = drive(rig.grpc, lambda load: load.all(requests))
    return ends


class Ledger:
    """The difference that some work made to the metrics."""

    def __init__(self, rig: Rig) -> None:
        self._rig = rig
        self._before = rig.flushed(interval_s=0.1)

    def close(self) -> Samples:
        """What has been added since."""
        self._rig.at_rest()
        after = self._rig.flushed(interval_s=0.1)
        return {key: value - self._before.get(key, 0.0) for key, value in after.items()}


def outcomes(change: Samples) -> dict[str, float]:
    return {label: value for (name, label), value in change.items() if name == "inflight_requests_total" and value}


def check_distributions(change: Samples, counts: dict[str, int]) -> None:
    """`_count` is what is expected, and the same as the last bucket; buckets only grow."""
    for name, count in counts.items():
        family = f"inflight_{name}"
        assert change[f"{family}_count", ""] == count, name
        buckets = [(float(label), value) for (found, label), value in change.items() if found == f"{family}_bucket"]
        values = [value for _, value in sorted(buckets)]
        assert len(values) > 5
        assert values == sorted(values), name
        assert values[-1] == count, name
        assert (change[f"{family}_sum", ""] > 0) == (count > 0), name


def check_work(change: Samples, ends: list[End], began: float) -> None:
    """Ends of streaming requests with one sequence each, all of which got tokens."""
    tokens = sum(end.tokens for end in ends)
    assert change["inflight_generation_tokens_total", ""] == tokens
    assert change["inflight_prompt_tokens_total", ""] == PROMPT * len(ends)
    sized = [[size for size in end.sizes if size] for end in ends]
    counts = dict.fromkeys(DISTRIBUTIONS, len(ends))
    counts["tokens_per_response"] = sum(map(len, sized))
    counts["inter_token_latency_seconds"] = sum(sum(sizes[1:]) for sizes in sized)
    check_distributions(change, counts)
    assert change["inflight_tokens_per_response_sum", ""] == tokens
    seen = sorted(end.at - began for end in ends)  # by the clients: a little longer than for the server
    assert change["inflight_request_latency_seconds_sum", ""] <= sum(seen)
    for (name, label), value in change.items():
        if name == "inflight_request_latency_seconds_bucket":
            assert value >= sum(seconds <= float(label) for seconds in seen), label


def test_the_work_done(rig: Rig, report: Report) -> None:
    """Length, end of sequence and stop strings, some of them after a wait: every figure is exact."""
    (probe,) = drive(rig.grpc, lambda load: load.all([request(3, max_tokens=12)]))
    stop = probe.text[len(probe.text) // 2 :][:5]
    ledger, began = Ledger(rig), time.monotonic()
    requests = [request(number, max_tokens=5 + number) for number in range(10)]
    requests += [request(50 + number, max_tokens=100) for number in range(6)]
    requests += [request(3, max_tokens=12, stop_words=[stop])]
    ends = drive(rig.grpc, lambda load: load.all(requests))
    change = ledger.close()
    assert Counter(end.how for end in ends) == {"length": 10, "stop": 7}, tally(ends)
    assert {end.tokens for end in ends[10:16]} == {EOS_AFTER}
    assert 0 < ends[16].tokens < 12
    assert outcomes(change) == {"length": 10, "stop": 7}
    check_work(change, ends, began)
    tokens = change["inflight_generation_tokens_total", ""]
    report(f"{tally(ends)}: {tokens:.0f} tokens and 5 distributions exact; {rig.assert_nothing_left()}")


def test_unary_answers_with_several_sequences(rig: Rig, report: Report) -> None:
    ledger = Ledger(rig)
    requests = [
        request(number, max_tokens=10, stream=False, num_return_sequences=3, temperature=1.0, seed=number)
        for number in range(5)
    ]
    ends = drive(rig.grpc, lambda load: load.all(requests))
    change = ledger.close()
    assert {(end.tokens, end.responses) for end in ends} == {(30, 1)}
    assert outcomes(change) == {"length": 5}
    assert change["inflight_generation_tokens_total", ""] == 150
    assert change["inflight_prompt_tokens_total", ""] == 5 * PROMPT
    counts = {**dict.fromkeys(DISTRIBUTIONS, 5), "tokens_per_response": 0, "inter_token_latency_seconds": 0}
    check_distributions(change, counts)
    first = change["inflight_time_to_first_token_seconds_sum", ""]
    assert first < 0.8 * change["inflight_request_latency_seconds_sum", ""], "the first token came with the last"
    report(f"5 answers of 3 sequences: {tally(ends)}, 150 tokens exact")


def test_refusals_are_counted_once_and_are_no_streams(rig: Rig, report: Report) -> None:
    ledger = Ledger(rig)
    requests = [request(number, max_tokens=-1) for number in range(3)]
    requests += [request(number, max_tokens=4, logprobs=5) for number in range(2)]
    requests += [request(number, max_tokens=4, parameters={"bogus": 1}) for number in range(4)]
    ends = drive(rig.grpc, lambda load: load.all(requests))
    change = ledger.close()
    assert Counter(end.how for end in ends) == {"INVALID_ARGUMENT": 7, "UNIMPLEMENTED": 2}
    assert outcomes(change) == {"invalid": 7, "unsupported": 2}
    check_distributions(change, dict.fromkeys((*DISTRIBUTIONS, "tokens_per_response"), 0))
    assert change["inflight_prompt_tokens_total", ""] == change["inflight_generation_tokens_total", ""] == 0
    report(f"{tally(ends)}: counted as invalid 7, unsupported 2, and nothing else")


def test_deadlines_and_cancels(rig: Rig, report: Report) -> None:
    """Four run into their deadline, three wait past it; of eight that leave, four ran and four waited."""
    ledger = Ledger(rig)
    long = {"max_tokens": 4000, "ignore_eos": True}

    async def work(load: Load) -> tuple[list[End], list[End]]:
        runners = [asyncio.ensure_future(load.run(request(number, deadline_ms=1500, **long))) for number in range(4)]
        await asyncio.to_thread(rig.until_at_work, 4, 4)
        waiters = [asyncio.ensure_future(load.run(request(number, deadline_ms=200, **long))) for number in range(3)]
        ends = list(await asyncio.gather(*runners, *waiters))
        leavers = [load.run(request(number, **long), leave_after_s=1.0) for number in range(8)]
        return ends, list(await asyncio.gather(*leavers))

    ends, left = drive(rig.grpc, work)
    change = ledger.close()
    assert [end.how for end in ends] == ["deadline"] * 4 + ["UNAVAILABLE"] * 3
    assert {end.how for end in left} == {LEFT}
    assert outcomes(change) == {"deadline": 4, "unavailable": 3, "cancelled": 8}
    assert change["inflight_request_latency_seconds_count", ""] == 15
    started = change["inflight_time_to_first_token_seconds_count", ""]
    assert 8 <= started <= 12  # one that waited may get the place of one whose leave was noticed before its own
    assert change["inflight_prompt_tokens_total", ""] == PROMPT * started
    seen = sum(end.tokens for end in [*ends, *left])
    assert seen <= change["inflight_generation_tokens_total", ""] <= seen + 8 * 200  # until the leave was noticed
    report(f"{tally(ends)}, {tally(left)}: deadline 4, unavailable 3, cancelled 8; {rig.assert_nothing_left()}")


def test_an_engine_loss(rig: Rig, report: Report) -> None:
    ledger = Ledger(rig)
    heard: set[int] = set()

    async def hear(end: End) -> None:
        heard.add(id(end))

    async def work(load: Load) -> list[End]:
        requests = [request(number, max_tokens=4000, ignore_eos=True) for number in range(9)]
        tasks = [asyncio.ensure_future(load.run(each, pause=hear)) for each in requests]
        await asyncio.to_thread(rig.until_at_work, 4, 9)
        await asyncio.to_thread(rig.until, lambda: len(heard) == 4)  # a prompt counts once it has its first token
        await asyncio.to_thread(rig.signal_engine, signal.SIGKILL)
        return list(await asyncio.gather(*tasks))

    ends = drive(rig.grpc, work)
    rig.until_healthy(restarts=1)
    change = ledger.close()
    assert outcomes(change) == {"unavailable": 9}, tally(ends)
    assert change["inflight_engine_restarts_total", ""] == 1
    assert time.time() - 60.0 < rig.metrics()["inflight_last_restart", "lost"] <= time.time()
    assert change["inflight_request_latency_seconds_count", ""] == 9
    assert change["inflight_prompt_tokens_total", ""] == PROMPT * 4
    seen = sum(end.tokens for end in ends)
    lost = change["inflight_generation_tokens_total", ""] - seen  # made, and on their way when the engine died
    assert 0 <= lost <= 4 * 20
    report(
        f"{tally(ends)}: unavailable 9, restarts 1, {seen} tokens seen and {lost:.0f} lost; {rig.assert_nothing_left()}"
    )


def test_counters_of_the_engine_go_on_in_its_next_life(open_rig: OpenRig, report: Report) -> None:
    """20 equal prompts, the engine killed, 10 more: every prompt but the first of each life is a prefix hit."""
    options = {"step_ms": 0.1, "prefill_us_per_token": 0.0, "draft_tokens": 3, "block_size": 32}
    rig = open_rig({"llm": {"engine_options": options, "metrics_interval_ms": 100}})
    prompt, reused = [7] * 200, 192  # whole blocks of the prompt

    def ask(times: int) -> None:
        async def work(load: Load) -> list[End]:
            return [await load.run(make_request(input_ids=prompt, max_tokens=24)) for _ in range(times)]

        ends: list[End] = drive(rig.grpc, work)
        assert {end.how for end in ends} == {"length"}, tally(ends)

    def counted() -> tuple[float, float, float]:
        found = rig.flushed(interval_s=0.1)
        hits = found["inflight_prefix_cache_hit_tokens_total", ""]
        drafted, accepted = (found["inflight_speculative_tokens_total", kind] for kind in ("draft", "accepted"))
        return hits, drafted, accepted

    ask(20)
    hits, drafted, accepted = counted()
    assert hits == 19 * reused
    assert 0 < accepted < drafted
    rig.signal_engine(signal.SIGKILL)
    rig.until_healthy(restarts=1)
    assert counted() == (hits, drafted, accepted)
    ask(10)
    assert counted() == (hits + 9 * reused, drafted * 1.5, accepted * 1.5)
    report(f"prefix hits {hits:.0f} and {9 * reused} more, drafts {drafted:.0f} and half as many: over a kill")


@pytest.mark.full
def test_a_real_prometheus(rig: Rig, report: Report, tmp_path: Any) -> None:
    """It scrapes the page, `histogram_quantile` answers, and its linter has nothing against our families."""
    target = rig.server.metrics_url.removeprefix("http://").removesuffix("/metrics")
    with Prometheus(tmp_path / "prometheus", target) as prometheus:
        prometheus.until("inflight_engine_up", 1.0)
        total = sum(rig.flushed()[key] for key in rig.metrics() if key[0] == "inflight_requests_total")
        for part in range(4):  # rates need several scrapes
            requests = [request(number, max_tokens=20) for number in range(8)]
            ends = send(rig, requests)
            assert {end.how for end in ends} == {"length"}
            time.sleep(1.5 if part < 3 else 3.0)
        prometheus.until("sum(inflight_requests_total)", total + 32)
        answers = []
        for name in (*DISTRIBUTIONS, "inter_token_latency_seconds", "tokens_per_response"):
            rate = f"rate(inflight_{name}_bucket[20s])"
            (value,) = prometheus.query(f"histogram_quantile(0.9, sum by (le) ({rate}))").values()
            assert value == value, f"{name}: no quantile"
            answers.append(f"p90 {name} {value:.4g}")
        assert prometheus.query("sum(inflight_requests_running)") == {"": 0.0}
        for expression, value in (
            ('inflight_build_info{release!="",engine="simulated",engine_version!=""}', 1.0),
            ("inflight_draining", 0.0),
            ("inflight_oldest_waiting_seconds", 0.0),
            ('inflight_limit{kind="running"}', 4.0),
            ('nv_trt_llm_request_metrics{request_type="scheduled"}', 0.0),
            ("inflight_price_per_hour", 0.0),
            ('count(inflight_last_restart{model="llm"})', 3.0),
        ):
            assert prometheus.query(expression) == {"": value}, expression
    with urllib.request.urlopen(rig.server.metrics_url, timeout=10) as page:
        lines = page.read().splitlines(keepends=True)
    ours = b"".join(line for line in lines if b"inflight_" in line or b"nv_trt_llm_" in line)
    lint = subprocess.run([str(program("promtool")), "check", "metrics"], input=ours, capture_output=True, timeout=60)
    assert lint.returncode != 1, lint.stderr.decode()  # 1: cannot be parsed; 3: matters of style
    complaints = len(lint.stderr.splitlines())
    report(f"{', '.join(answers)}; promtool: {complaints} matters of style")
