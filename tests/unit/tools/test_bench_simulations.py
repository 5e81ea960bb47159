"""The scripts that ask the simulated engine: virtual time, capacity, batching, calibration, KV memory."""

from __future__ import annotations

import json
import math
from typing import Any

import msgspec
import pytest

from bench import batching, calibration, capacity, kv_memory, step_costs
from bench.virtual import Arrival, Policy, Replica, percentile, poisson
from build_engine.planning import model_size
from build_engine.planning.gpus import gpu_named, gpu_table
from inflight.engines.simulated.cost import SimulatedOptions
from inflight_tools.common.report import Failure
from inflight_tools.load.lengths import parse_lengths

pytestmark = pytest.mark.fast

# 10 ms a step, 1 ms a prompt token and nothing else.
PLAIN = SimulatedOptions(
    step_ms=10.0, prefill_us_per_token=1000.0, decode_us_per_sequence=0.0, prefix_caching=False, chunk_tokens=64
)


def llama(tensor: int = 1, quantization: str = "fp8", gpu: str = "H200") -> step_costs.Replica:
    config = step_costs.architecture("llama-3.1-8b")
    return step_costs.Replica("llama", config, step_costs.recipe_named(quantization), gpu_named(gpu), tensor, 256, 2048)


def test_the_same_requests_come_at_any_rate() -> None:
    lengths = parse_lengths("uniform:5-50", 1), parse_lengths("sharegpt:40", 1)
    slow, fast = (poisson(rate, *lengths, 500, 3) for rate in (1.0, 4.0))
    assert [(each.prompt, each.answer) for each in slow] == [(each.prompt, each.answer) for each in fast]
    assert [each.at / 4 for each in slow] == pytest.approx([each.at for each in fast])
    assert slow[-1].at == pytest.approx(500, rel=0.1)


def test_a_lone_request_takes_what_the_steps_cost() -> None:
    (served,) = Replica(PLAIN, Policy()).run([Arrival(5.0, 100, 4)]).served
    assert served.ttft == pytest.approx(2 * 0.010 + 0.100)  # a chunk of 64 and one of 36
    assert served.tpot == pytest.approx(0.010)
    assert served.latency == pytest.approx(0.120 + 3 * 0.010)


def test_in_flight_a_request_joins_and_in_a_static_batch_it_waits_for_company_and_padding() -> None:
    trace = [Arrival(0.0, 10, 100), Arrival(0.2, 10, 2), Arrival(0.3, 50, 10), Arrival(0.4, 10, 2)]
    joined = Replica(PLAIN, Policy(batch=2)).run(trace).served
    assert joined[1].latency < 0.05
    pairs = Replica(PLAIN, Policy("static", 2, math.inf, padded=True)).run(trace).served
    assert pairs[0].first > 0.2
    # The second pair waits for the first, whose short answer is computed to the length of the long one, …
    assert pairs[2].first > pairs[0].last == pytest.approx(0.2 + 0.020 + 100 * 0.010)
    # … and has its short prompt padded to the long one.
    assert pairs[3].first - pairs[0].last == pytest.approx(0.100 + 2 * 0.010)
    assert pairs[1].last - pairs[1].first == pytest.approx(0.010)


def test_a_dynamic_batch_runs_to_its_end_before_the_next() -> None:
    trace = [Arrival(0.0, 10, 100), Arrival(0.01, 10, 2), Arrival(0.2, 10, 2)]
    served = Replica(PLAIN, Policy("dynamic", 8, 0.05)).run(trace).served
    assert served[0].first == pytest.approx(0.05 + 0.010 + 0.020)
    assert served[2].first > served[0].last


def test_what_clients_ask_for_is_reserved_and_what_they_get_is_used() -> None:
    trace = [Arrival(0.0, 32, 64)]
    for spare in (0, 320):
        outcome = Replica(PLAIN, Policy(spare_tokens=spare)).run(trace, watch=True)
        assert outcome.served[0].latency == pytest.approx(0.042 + 63 * 0.010)
        assert {moment.reserved for moment in outcome.moments[:-1]} == {3 + spare // 32}
        assert max(moment.used for moment in outcome.moments) == 3
        assert max(moment.tokens for moment in outcome.moments) in (95, 96)


@pytest.mark.parametrize(
    "how",
    [Policy(batch=4), Policy("dynamic", 4, 0.05), Policy("static", 4, math.inf, padded=True), Policy(spare_tokens=40)],
)
def test_steps_that_are_taken_at_once_are_the_same_steps(how: Policy) -> None:
    """A watched replica takes them one by one; arithmetic overtakes memory in some and not in others."""
    options = msgspec.structs.replace(PLAIN, context_ns_per_token=9000.0, compute_us_per_token=2500.0, blocks=200)
    trace = poisson(4.0, parse_lengths("uniform:1-90", 1), parse_lengths("sharegpt:40", 1), 64, 5)
    slow, fast = (Replica(options, how).run(trace, watch=watch) for watch in (True, False))
    assert [each.first for each in fast.served] == pytest.approx([each.first for each in slow.served])
    assert [each.last for each in fast.served] == pytest.approx([each.last for each in slow.served])
    assert fast.busy == pytest.approx(slow.busy)


def test_a_shared_prefix_is_read_once() -> None:
    options = SimulatedOptions(prefix_caching=True)
    trace = [Arrival(float(second), 100, 2) for second in range(4)]
    outcome = Replica(options, Policy(), shared_prefix=70).run(trace)
    assert outcome.reused_tokens == 3 * 64
    assert outcome.served[1].ttft < outcome.served[0].ttft


def test_percentiles_are_values_that_were_there() -> None:
    values = [float(value) for value in range(1, 21)]
    assert [percentile(values, share) for share in (0.5, 0.95, 1.0)] == [10, 19, 20]
    assert math.isnan(percentile([], 0.5))


@pytest.mark.parametrize("name", json.loads(step_costs.ARCHITECTURES.read_text())["models"])
def test_architectures_have_the_parameters_of_their_cards(name: str) -> None:
    published = json.loads(step_costs.ARCHITECTURES.read_text())["models"][name]["parameters"]
    assert model_size.count_parameters(step_costs.architecture(name)).total == pytest.approx(published, rel=0.01)


def test_costs_of_a_step_follow_from_the_datasheet() -> None:
    best = step_costs.Efficiency(memory=1.0, compute=1.0, overhead_ms=0.0)
    options = step_costs.options_for(llama(), best)
    # 8.03 billion parameters: linear ones in a byte, head and embedding in two, the embedding not read.
    assert options.step_ms == pytest.approx((6.98e9 + 2 * 0.525e9) / 4.8e12 * 1e3, rel=0.01)
    assert options.context_ns_per_token == pytest.approx(2 * 32 * 8 * 128 / 4.8e12 * 1e9)
    assert options.compute_us_per_token == pytest.approx(2 * 7.5e9 / 1979e12 * 1e6, rel=0.01)
    assert options.prefill_us_per_token == options.overhead_ms == 0.0
    assert options.blocks * 32 * 65536 < 0.9 * 150.8e9 - 9e9
    halved = step_costs.options_for(llama(), step_costs.Efficiency(memory=0.5, compute=1.0, overhead_ms=0.0))
    assert halved.step_ms == pytest.approx(2 * options.step_ms)
    assert halved.compute_us_per_token == options.compute_us_per_token
    two = step_costs.options_for(llama(tensor=2), best)
    assert two.step_ms == pytest.approx(options.step_ms / 2)
    # Each of 64 reductions of 8 KiB a token sends that much through a link of 450 GB/s each way.
    assert two.prefill_us_per_token == pytest.approx(64 * 8192 / 450e9 * 1e6)
    assert two.overhead_ms == pytest.approx(64 * 0.015)


def test_what_cannot_be_deployed_is_refused() -> None:
    big = step_costs.Replica(
        "llama-3.1-70b", step_costs.architecture("llama-3.1-70b"), step_costs.recipe_named("none"), gpu_named("L4"),
        1, 256, 2048,
    )  # fmt: skip
    with pytest.raises(Failure, match="does not fit"):
        step_costs.options_for(big, step_costs.Efficiency())
    with pytest.raises(Failure, match="no fp8"):
        step_costs.options_for(llama(gpu="A100-80GB"), step_costs.Efficiency())
    with pytest.raises(Failure, match="32 heads"):
        step_costs.options_for(llama(tensor=3), step_costs.Efficiency())
    with pytest.raises(Failure, match="smollm2-135m"):
        step_costs.architecture("gpt-5")
    assert all(gpu.link for gpu in gpu_table().values())


def test_the_printed_options_are_options_of_the_engine() -> None:
    options = step_costs.options_for(llama(tensor=2), step_costs.Efficiency(), prefix_caching=True)
    given: dict[str, Any] = step_costs.engine_options(options)
    again = SimulatedOptions(**given)
    assert again.blocks == options.blocks
    assert again.step_ms == pytest.approx(options.step_ms, rel=0.005)
    assert again.decode_us_per_sequence == pytest.approx(options.decode_us_per_sequence, rel=0.005)


def arguments(*more: str) -> list[str]:
    return ["--prompt", "64", "--answer", "uniform:4-12", "--requests", "150", "--rate", "3000",
            "--max-running", "16", "--json", *more]  # fmt: skip


def test_capacity_divides_the_traffic_by_what_one_replica_keeps(capsys: pytest.CaptureFixture[str]) -> None:
    assert capacity.main(arguments("--ttft-ms", "40", "--price-per-hour", "3.6")) == 0
    found = json.loads(capsys.readouterr().out)
    best, actual = found["highest_per_replica"], found["at_this_traffic"]
    assert best["ttft_s"] <= 0.040
    assert best["tpot_s"] <= 0.050
    assert found["replicas"] == found["gpus"] == math.ceil(3000 / best["rate"])
    assert actual["rate"] == pytest.approx(3000 / found["replicas"])
    assert actual["ttft_s"] <= 0.042
    assert found["utilisation"] == pytest.approx(actual["rate"] / best["rate"])
    assert found["tokens_per_s"] == pytest.approx(3000 * 8, rel=0.1)
    assert found["cost_per_million_tokens"] == pytest.approx(found["gpus"] * 0.001 / found["tokens_per_s"] * 1e6)


def test_beyond_the_highest_rate_the_objective_is_missed() -> None:
    lengths = parse_lengths("64", 1), parse_lengths("uniform:4-12", 1)
    objective = capacity.Objective(0.3, 0.05, 0.95)
    replicas = capacity.Replicas(PLAIN, capacity.Traffic(*lengths, 0, 300, 1), objective)
    best = replicas.highest()
    assert objective.met(best)
    assert not objective.met(replicas.at(best.rate * 1.1))


def test_an_objective_out_of_reach_is_said() -> None:
    with pytest.raises(Failure, match="even a request alone"):
        capacity.main(arguments("--tpot-ms", "0.5"))


def test_throughput_at_a_latency_is_read_between_points() -> None:
    points = [batching.Point("static", {}, 1.0, p95, tokens) for p95, tokens in [(9, 10), (2, 20), (4, 40), (20, 41)]]
    assert batching.at_limit(points, 3.0) == pytest.approx(30.0)
    assert batching.at_limit(points, 1.0) == 0.0
    assert batching.at_limit(points, 12.0) == pytest.approx(40.5)


def test_every_committed_workload_can_be_compared() -> None:
    plan = json.loads((batching.FOLDER / "workloads.json").read_text())
    short = {**plan, "requests": 128, "latency_limits": [3], "rate_step": 2.0}
    found = batching.compare(PLAIN, {**short, "settings": {"inflight": [{}], "static": [{"batch": 4}], "dynamic": [
        {"batch": 16, "max_queue_delay_s": 0.05}]}}, {"name": "x", "prompt": "4", "answer": "sharegpt:8"})  # fmt: skip
    (row,) = found["at_limits"]
    assert row["inflight_over_static"] > row["inflight_over_dynamic"] > 1
    assert "<svg" in batching.plot("test", found, 3)
    for load in plan["workloads"]:
        assert parse_lengths(load["prompt"], 1).low >= 1
        assert parse_lengths(load["answer"], 1).low >= 1
        assert plan["requests"] % max(setting["batch"] for setting in plan["settings"]["static"]) == 0


def test_calibration_finds_the_costs_that_made_the_waves() -> None:
    truth = SimulatedOptions(
        step_ms=7.0, decode_us_per_sequence=600.0, prefill_us_per_token=300.0, chunk_tokens=calibration.CHUNK,
        prefix_caching=False,
    )  # fmt: skip

    def wave(requests: int) -> calibration.Wave:
        outcome = Replica(truth, Policy(batch=64)).run([Arrival(0.0, 32, 64)] * requests, watch=True)
        read = max(each.first for each in outcome.served)
        steps = [moment for moment in outcome.moments if moment.at <= read]
        decoded = sum(1 for each in outcome.served for moment in steps if moment.at >= each.first)
        return calibration.Wave(requests, 32, 64, outcome.seconds, read, len(steps), decoded)

    assert calibration.costs(wave(1), wave(32)) == pytest.approx((7.0, 600.0, 300.0), rel=0.03)


def test_a_disturbed_calibration_is_refused() -> None:
    one = calibration.Wave(1, 32, 64, 5.0, 0.1, 1, 1)
    many = calibration.Wave(32, 32, 64, 4.0, 0.4, 3, 60)
    with pytest.raises(Failure, match="something else"):
        calibration.costs(one, many)


def test_the_recorded_costs_are_those_of_this_engine() -> None:
    options = calibration.recorded(batching.ACCURACY)
    assert options.blocks == 5178  # what the openvino engine says of itself, docs/benchmarks/batching/real.json
    assert 0 < options.decode_us_per_sequence < 1000 * options.step_ms


def test_kv_memory_adds_up() -> None:
    row = kv_memory.measure(llama(quantization="none"), {"name": "x", "prompt": "40", "answer": "uniform:8-24"}, 1, 0)
    assert row["textbook_bytes"] == 64 * 64 * 32 * 8 * 128 * 2 * 2
    assert row["textbook_all_heads_bytes"] == 4 * row["textbook_bytes"]
    assert 0 < row["written_bytes"] < row["paged_used_bytes"] <= row["paged_reserved_bytes"]
    assert row["paged_reserved_bytes"] == pytest.approx(row["running"] * 2 * 32 * row["kv_bytes_per_token"], rel=0.02)
    assert row["paged_waste"] == pytest.approx(1 - row["written_bytes"] / row["paged_used_bytes"])
    assert "| x | exact |" in kv_memory.table([row])
