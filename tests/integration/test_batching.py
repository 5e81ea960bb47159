"""In-flight batching as clients see it, on the real model."""

from __future__ import annotations

import statistics
import time

import pytest

from tests.harness.grpc_client import GrpcClient

pytestmark = [pytest.mark.server, pytest.mark.alone]

TOKENS = 40


def seconds(client: GrpcClient, requests: int, first: int) -> float:
    """How long `requests` answers take that are asked for at once."""
    began = time.perf_counter()
    pending = [
        client.start(
            f"Question {number}: what is in-flight batching?",
            max_tokens=TOKENS,
            ignore_eos=True,
            return_num_output_tokens=True,
        )
        for number in range(first, first + requests)
    ]
    for one in pending:
        assert one.result().output_tokens == TOKENS
    return time.perf_counter() - began


def test_sixteen_at_once_take_far_less_than_sixteen_times_one(grpc: GrpcClient) -> None:
    seconds(grpc, 2, 0)
    one = statistics.median(seconds(grpc, 1, 10 + number) for number in range(3))
    sixteen = min(seconds(grpc, 16, 100 + 20 * number) for number in range(2))
    print(f"one: {one:.2f} s, sixteen at once: {sixteen:.2f} s = {sixteen / one:.1f} times one")
    assert sixteen < 0.5 * 16 * one


def test_a_short_request_does_not_wait_for_long_ones(grpc: GrpcClient) -> None:
    long = [grpc.start(f"Story {number}:", max_tokens=150, ignore_eos=True) for number in range(4)]
    for pending in long:
        pending.first()
    short = grpc.start("The capital of France is", max_tokens=4).result()
    assert short.text.startswith(" Paris")
    assert not any(pending.done.is_set() for pending in long), "it joined the running batch and left before it ended"
    for pending in long:
        pending.result()


def test_a_prompt_that_repeats_has_its_first_token_sooner(grpc: GrpcClient) -> None:
    prompt = "Prefix caching: " + " ".join(f"fact number {number} is {number * 7}." for number in range(120))
    times = []
    for number in range(3):
        pending = grpc.start(f"{prompt} Question {number}?", max_tokens=1, return_num_output_tokens=True).result()
        times.append(pending.answer.timeline.ttft or 0.0)
    print("time to first token:", [f"{value * 1000:.0f} ms" for value in times])
    assert min(times[1:]) < 0.5 * times[0]
