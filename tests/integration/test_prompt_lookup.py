"""Prompt lookup on the openvino engine, on the real model: its class, and through Triton."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
from tokenizers import Tokenizer

from inflight.engines.base import Engine, FinishReason
from inflight.engines.openvino.engine import OpenVinoEngine
from inflight.errors import LoadError
from inflight_tools.common.layout import ENGINE
from inflight_tools.server.server import Server
from tests.doubles.stand_in import request
from tests.harness.grpc_client import GrpcClient

pytestmark = pytest.mark.server

OPTIONS = {"max_seq_len": 2048, "kv_cache_gb": 0.25}
COUNTED = " ".join(f"{number} apples cost {number} dollars." for number in range(1, 9))
NUMBERS = itertools.count(1)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(ENGINE / "tokenizer.json"))


@pytest.fixture(scope="module")
def guessing() -> Iterator[Engine]:
    engine = OpenVinoEngine(ENGINE, {**OPTIONS, "speculative": "ngram"}, 4)
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def ordinary() -> Iterator[Engine]:
    engine = OpenVinoEngine(ENGINE, OPTIONS, 4)
    yield engine
    engine.close()


def take(engine: Engine, prompt: Sequence[int], **sampling: Any) -> tuple[list[int], int, FinishReason]:
    """Tokens of one answer, the steps it took and how it ended."""
    number = next(NUMBERS)
    engine.add(request(number, list(prompt), **sampling))
    return to_the_end(engine, number)


def to_the_end(engine: Engine, number: int) -> tuple[list[int], int, FinishReason]:
    """Tokens, steps and how a request under way ended."""
    tokens: list[int] = []
    for steps in range(1, 3000):
        for output in engine.step(0.0):
            if output.request_id == number:
                tokens += output.token_ids
                if output.finish is not None:
                    return tokens, steps, output.finish
    raise AssertionError("no end")


def equal_start(one: Sequence[int], other: Sequence[int]) -> int:
    """How many first tokens are the same."""
    return len([*itertools.takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False))])


@pytest.mark.full
def test_text_that_repeats_takes_far_fewer_steps(guessing: Engine, ordinary: Engine, tokenizer: Tokenizer) -> None:
    prompt = tokenizer.encode(COUNTED * 3).ids
    plain, plain_steps, _ = take(ordinary, prompt, max_tokens=96, stop_token_ids=())
    tokens, steps, finish = take(guessing, prompt, max_tokens=96, stop_token_ids=())
    assert (len(plain), len(tokens), finish) == (96, 96, FinishReason.LENGTH)
    assert plain_steps >= 96
    assert steps < 0.5 * plain_steps, steps
    assert equal_start(tokens, plain) >= 16
    assert take(guessing, prompt, max_tokens=96, stop_token_ids=())[0] == tokens, "the same again"


@pytest.mark.full
@pytest.mark.parametrize("most", [1, 2, 3, 7])
def test_no_more_tokens_than_asked_for(guessing: Engine, tokenizer: Tokenizer, most: int) -> None:
    tokens, _, finish = take(guessing, tokenizer.encode(COUNTED * 3).ids, max_tokens=most, stop_token_ids=())
    assert (len(tokens), finish) == (most, FinishReason.LENGTH)


@pytest.mark.full
def test_a_stop_token_among_the_guessed_ends_the_answer(guessing: Engine, tokenizer: Tokenizer) -> None:
    prompt = tokenizer.encode(COUNTED * 3).ids
    tokens, _, _ = take(guessing, prompt, max_tokens=96, stop_token_ids=())
    for place in range(4, 12):
        stop = tokens[place]
        cut, _, finish = take(guessing, prompt, max_tokens=96, stop_token_ids=(stop,))
        assert (cut, finish) == (tokens[: tokens.index(stop) + 1], FinishReason.STOP)


@pytest.mark.full
def test_a_long_prompt_is_read_in_chunks(guessing: Engine, tokenizer: Tokenizer) -> None:
    prompt = (tokenizer.encode(COUNTED).ids * 40)[:1700]
    tokens, steps, finish = take(guessing, prompt, max_tokens=64, stop_token_ids=())
    assert (len(tokens), finish) == (64, FinishReason.LENGTH)
    assert steps < 48


@pytest.mark.full
def test_a_whole_context_fits(guessing: Engine, tokenizer: Tokenizer) -> None:
    room = 100
    prompt = (tokenizer.encode(COUNTED).ids * 40)[: 2048 - room]
    tokens, _, finish = take(guessing, prompt, max_tokens=room, stop_token_ids=())
    assert (len(tokens), finish) == (room, FinishReason.LENGTH)


@pytest.mark.full
def test_a_cancelled_answer_leaves_nothing_behind(guessing: Engine, tokenizer: Tokenizer) -> None:
    prompt = tokenizer.encode(COUNTED * 3).ids
    whole, _, _ = take(guessing, prompt, max_tokens=32, stop_token_ids=())
    for steps in range(6):
        number = next(NUMBERS)
        guessing.add(request(number, prompt, max_tokens=500, stop_token_ids=()))
        for _ in range(steps):
            guessing.step(0.0)
        guessing.cancel(number)
        assert to_the_end(guessing, number)[2] is FinishReason.CANCELLED
        assert guessing.stats().blocks_used == 0
    assert take(guessing, prompt, max_tokens=32, stop_token_ids=())[0] == whole


@pytest.mark.full
def test_what_comes_beside_goes_the_ordinary_way(guessing: Engine, tokenizer: Tokenizer) -> None:
    prompt = tokenizer.encode(COUNTED * 3).ids
    first, beside = next(NUMBERS), next(NUMBERS)
    guessing.add(request(first, prompt, max_tokens=96, stop_token_ids=()))
    guessing.step(0.0)
    guessing.add(request(beside, prompt, max_tokens=96, stop_token_ids=()))
    steps: dict[int, int] = {}
    for count in range(1, 300):
        for output in guessing.step(0.0):
            if output.finish is not None:
                steps[output.request_id] = count
        if len(steps) == 2:
            break
    assert steps[first] < 48
    assert steps[beside] >= 90


@pytest.mark.full
@pytest.mark.parametrize(
    "sampling",
    [
        {"temperature": 0.8, "seed": 3},
        {"beam_width": 2},
        {"num_sequences": 2},
        {"logprobs": 0},
        {"repetition_penalty": 1.1},
        {"min_tokens": 4},
    ],
    ids=str,
)
def test_what_cannot_be_guessed_at_goes_the_ordinary_way(
    guessing: Engine, ordinary: Engine, tokenizer: Tokenizer, sampling: dict[str, Any]
) -> None:
    prompt = tokenizer.encode(COUNTED * 2).ids
    answers = [
        take(engine, prompt, max_tokens=24, stop_token_ids=(), **sampling)[:2] for engine in (guessing, ordinary)
    ]
    for engine in (guessing, ordinary):
        while engine.step(0.0):
            pass
    assert answers[0] == answers[1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_draft_tokens": 5}, "num_draft_tokens means nothing without speculative"),
        ({"ngram_max": 3}, "ngram_max means nothing without speculative"),
        ({"speculative": "ngram", "num_draft_tokens": 0}, "num_draft_tokens must be from 1"),
        ({"speculative": "ngram", "ngram_max": 65}, "ngram_max must be from 1"),
        ({"speculative": "eagle"}, "speculative"),
    ],
)
def test_options_that_do_not_fit(options: dict[str, Any], message: str) -> None:
    with pytest.raises(LoadError, match=message):
        OpenVinoEngine(ENGINE, options, 4)


def test_through_triton(make_server: Callable[..., Server]) -> None:
    """Several tokens come with one response, also alone; beams and samples are answered by the same model."""
    options = {"speculative": "ngram", "kv_cache_gb": 0.25}
    server = make_server({"llm": {"engine_dir": str(ENGINE), "engine_options": options}}, engine="openvino")
    wanted = {"max_tokens": 96, "ignore_eos": True, "return_token_ids": True}
    with GrpcClient(server.grpc_url) as client:
        guessed = client.start(COUNTED * 3, **wanted).result()
        assert len(guessed.output_ids) == 96
        assert len(guessed.responses) < 64
        assert client.start(COUNTED * 3, **wanted).result().output_ids == guessed.output_ids
        assert client.start(COUNTED * 3, **wanted, temperature=0.7, seed=1).result().output_ids
        assert client.start(COUNTED * 3, max_tokens=16, beam_width=2).result().text
