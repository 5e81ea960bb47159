"""Whole answers of the real model through the real server, over gRPC and over HTTP's generate."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from tokenizers import Tokenizer

from inflight_tools.common.layout import ENGINE
from inflight_tools.server.server import Server
from tests.harness.grpc_client import GrpcClient, RequestFailed
from tests.harness.http_client import HttpClient, metric, wait_for_metric

pytestmark = pytest.mark.server

PROMPT = "The capital of France is"
EVERYTHING = {
    "return_finish_reason": True,
    "return_num_input_tokens": True,
    "return_num_output_tokens": True,
    "return_token_ids": True,
}
WORD = [{"role": "user", "content": "Say hello, please."}]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(ENGINE / "tokenizer.json"))


def whole(client: GrpcClient, text: Any = PROMPT, **values: Any) -> Any:
    answer = client.start(text, stream=False, **{"max_tokens": 24, **EVERYTHING, **values}).result()
    assert len(answer.responses) == 1, "an answer that is not streamed is one response"
    return answer


def test_counts_ids_and_text_belong_together(grpc: GrpcClient, tokenizer: Tokenizer) -> None:
    answer = whole(grpc)
    prompt = tokenizer.encode(PROMPT).ids
    assert answer.answer.outputs["num_input_tokens"] == len(prompt)
    assert answer.output_tokens == len(answer.output_ids) == 24
    assert answer.finish_reason == "length"
    assert tokenizer.decode([*prompt, *answer.output_ids]) == PROMPT + answer.text


def test_http_gives_what_grpc_gives(grpc: GrpcClient, http: HttpClient) -> None:
    status, body = http.generate(text_input=PROMPT, max_tokens=24, **EVERYTHING)
    answer = whole(grpc)
    assert status == 200
    assert body["text_output"] == answer.text
    assert body["finish_reason"] == "length"
    assert body["num_output_tokens"] == 24
    assert body["output_ids"] == answer.output_ids
    assert body["model_name"] == "llm"


def test_only_what_was_asked_for_is_sent(grpc: GrpcClient) -> None:
    plain = grpc.start(PROMPT, stream=False, max_tokens=2).result()
    assert set(plain.responses[0].outputs) == {"text_output"}
    asked = whole(grpc, max_tokens=2)
    assert set(asked.responses[0].outputs) == {
        "text_output",
        "finish_reason",
        "stop_reason",
        "num_input_tokens",
        "num_output_tokens",
        "output_ids",
    }


def test_a_conversation_goes_through_the_models_own_template(grpc: GrpcClient) -> None:
    rendered = (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        "<|im_start|>user\nSay hello, please.<|im_end|>\n<|im_start|>assistant\n"
    )
    answer = whole(grpc, None, messages=json.dumps(WORD), max_tokens=40)
    assert answer.text == whole(grpc, rendered, max_tokens=40).text
    parts = [
        {"role": "user", "content": [{"type": "text", "text": "Say "}, {"type": "text", "text": "hello, please."}]}
    ]
    assert answer.text == whole(grpc, None, messages=json.dumps(parts), max_tokens=40).text
    assert answer.finish_reason == "stop", "the model ends its turn"
    assert answer.output_tokens == len(answer.output_ids) < 40, "the end-of-sequence token counts"
    assert "<|im_end|>" not in answer.text


def test_token_ids_as_prompt_are_the_same_prompt(grpc: GrpcClient, tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode(PROMPT).ids
    assert whole(grpc, None, input_ids=ids).text == whole(grpc).text


def test_the_end_of_sequence_can_be_ignored(grpc: GrpcClient) -> None:
    messages = json.dumps(WORD)
    ended = whole(grpc, None, messages=messages, max_tokens=40)
    ignored = whole(grpc, None, messages=messages, max_tokens=40, ignore_eos=True)
    assert ended.output_tokens < 40
    assert (ignored.output_tokens, ignored.finish_reason) == (40, "length")
    assert ignored.text.startswith(ended.text)
    later = whole(grpc, None, messages=messages, max_tokens=40, min_tokens=ended.output_tokens + 5)
    assert later.output_tokens >= ended.output_tokens + 5


def test_special_tokens_are_shown_when_wanted(grpc: GrpcClient) -> None:
    answer = whole(grpc, None, messages=json.dumps(WORD), max_tokens=40, ignore_eos=True, skip_special_tokens=False)
    assert "<|im_end|>" in answer.text


def test_a_stop_word_that_names_a_special_token_ends_the_answer_at_it(grpc: GrpcClient) -> None:
    asked = {"messages": json.dumps(WORD), "max_tokens": 40, "ignore_eos": True}
    ended = whole(grpc, None, messages=json.dumps(WORD), max_tokens=40)
    for stream in (False, True):
        answer = grpc.start(None, stream=stream, stop_words=["<|im_end|>"], **asked, **EVERYTHING).result()
        assert (answer.text, answer.finish_reason) == (ended.text, "stop")
        assert answer.output_ids == ended.output_ids
    beyond = whole(grpc, None, skip_special_tokens=False, **asked).text.removeprefix(f"{ended.text}<|im_end|>")
    assert beyond
    word = f"<|im_end|>{beyond[0]}"
    for stream in (False, True):
        answer = grpc.start(None, stream=stream, stop_words=[word], **asked, **EVERYTHING).result()
        assert (answer.text, answer.finish_reason) == (ended.text, "stop")
    answer = whole(grpc, None, stop_words=[f"<|im_end|>{beyond[0]}zzz"], **asked)
    assert answer.text == whole(grpc, None, **asked).text
    beams = whole(grpc, None, beam_width=2, stop_words=["<|im_end|>"], **asked)
    assert beams.finish_reason == "stop"
    assert "<|im" not in beams.text


def test_the_most_that_min_p_can_be_leaves_the_likeliest_token(grpc: GrpcClient, tokenizer: Tokenizer) -> None:
    for ids in (tokenizer.encode(PROMPT).ids, list(range(100, 133))):  # the second one has its blocks cached first
        likeliest = whole(grpc, None, input_ids=ids)
        assert whole(grpc, None, input_ids=ids, min_p=1.0, temperature=1.0, seed=7).text == likeliest.text


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"beam_width": 2, "repetition_penalty": 1.25}, "repetition_penalty is 1.25, and beam search on the openvino"),
        ({"min_length": 30, "max_tokens": 5}, "min_length is 30, more than max_tokens (5)"),
        ({"sampling_parameters": '{"n": 2, "best_of": 1}'}, "best_of is 1, less than n (2)"),
        ({"parameters": {"max-tokens": 3}}, "max-tokens (request parameter) is not a parameter of this model (did you"),
        ({"input_ids": [5] * 9000}, "input_ids has 9000 tokens; the context holds 8192"),
    ],
)
def test_a_refusal_names_what_the_client_sent_in_our_words(grpc: GrpcClient, values: dict[str, Any], told: str) -> None:
    with pytest.raises(RequestFailed) as refusal:
        whole(grpc, None if "input_ids" in values else PROMPT, **values)
    assert str(refusal.value).startswith(told)
    for word in ("Check '", ".cpp", "openvino.genai", "num_beams"):
        assert word not in str(refusal.value)


def test_a_seed_fixes_a_sampled_answer(grpc: GrpcClient) -> None:
    def sampled(seed: int) -> str:
        return str(whole(grpc, temperature=1.2, top_p=0.95, seed=seed, max_tokens=16).text)

    texts = [sampled(seed) for seed in (1, 2, 3)]
    assert [sampled(seed) for seed in (1, 2, 3)] == texts
    assert len(set(texts)) == 3
    assert texts[0] != whole(grpc, max_tokens=16).text


@pytest.mark.parametrize(
    "before",
    [
        "one token",
        pytest.param("a stop token", marks=pytest.mark.full),
        pytest.param("a client that leaves", marks=pytest.mark.full),
    ],
)
def test_what_came_before_does_not_change_an_answer(
    before: str, server: Server, grpc: GrpcClient, tokenizer: Tokenizer
) -> None:
    """An answer of one token must not leave a cached prompt behind that makes the next one be computed otherwise."""
    text = " ".join(str(number) for number in range(3000, 3400)) + before
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    counting = sorted(set(tokenizer.encode("0 1 2 3 4 5 6 7 8 9", add_special_tokens=False).ids))
    changed = []
    for place in range(0, 800, 160):
        prompt = {"input_ids": ids[place : place + 6 + place % 25], "seed": 5, "temperature": 0.8}
        if before == "one token":
            assert whole(grpc, None, **{**prompt, "max_tokens": 1}).output_tokens == 1
        elif before == "a stop token":
            stops = json.dumps({"stop_token_ids": counting})
            greedy = {**prompt, "temperature": 0.0, "max_tokens": 20, "sampling_parameters": stops}
            ended = whole(grpc, None, **greedy)
            assert (ended.output_tokens, ended.finish_reason) == (1, "stop")
        else:
            left = metric(server.metrics_url, "inflight_requests_total", outcome="cancelled")
            with GrpcClient(server.grpc_url) as leaver:
                leaver.start(stream=True, max_tokens=500, ignore_eos=True, **prompt).first()
            # Beside it, an answer would be computed in a batch of two, whose sums differ a little.
            wait_for_metric(server.metrics_url, left + 1, "inflight_requests_total", outcome="cancelled")
            wait_for_metric(server.metrics_url, 0, "inflight_requests_running")
        answers = {whole(grpc, None, **{**prompt, "max_tokens": 20}).text for _ in range(3)}
        if len(answers) > 1:
            changed.append(place)
    assert not changed


def test_without_a_seed_every_answer_is_another(grpc: GrpcClient) -> None:
    assert len({whole(grpc, temperature=1.5, max_tokens=16).text for _ in range(3)}) == 3


def test_several_answers_come_in_one_response(grpc: GrpcClient, http: HttpClient) -> None:
    answer = whole(grpc, num_return_sequences=3, temperature=1.2, seed=5, max_tokens=8, return_token_ids=None)
    response = answer.responses[0].outputs
    assert response["sequence_index"] == [0, 1, 2]
    assert len(set(response["text_output"])) == 3
    assert response["num_output_tokens"] == [8, 8, 8]
    assert response["finish_reason"] == [b"length"] * 3
    status, body = http.generate(text_input=PROMPT, max_tokens=8, num_return_sequences=3, temperature=1.2, seed=5)
    assert status == 200
    assert [text.encode() for text in body["text_output"]] == response["text_output"]


def test_the_prompt_is_echoed_when_wanted(grpc: GrpcClient) -> None:
    plain = whole(grpc)
    assert whole(grpc, exclude_input_in_output=False).text == PROMPT + plain.text
    assert whole(grpc, exclude_input_in_output=True).text == plain.text


def test_log_probabilities_of_the_chosen_tokens(grpc: GrpcClient) -> None:
    answer = whole(grpc, return_log_probs=True, return_cumulative_logprob=True, max_tokens=8)
    sequence = answer.answer.sequences[0].outputs
    assert len(sequence["output_log_probs"]) == 8
    assert all(value <= 0.0 for value in sequence["output_log_probs"])
    assert sequence["cumulative_logprob"] == pytest.approx(sum(sequence["output_log_probs"]), abs=1e-4)
    assert sequence["cum_log_probs"] == sequence["cumulative_logprob"]
    entries = sequence["logprobs"]
    assert [next(iter(entry)) for entry in entries] == [str(token_id) for token_id in answer.output_ids]
    assert "".join(entry[str(token)]["decoded_token"] for entry, token in zip(entries, answer.output_ids, strict=True))


def test_a_rank_is_told_where_it_must_be_one_and_else_left_open(grpc: GrpcClient) -> None:
    """OpenVINO gives the chosen token's log-probability alone."""

    def told(**values: Any) -> list[tuple[float, int | None]]:
        answer = whole(grpc, return_log_probs=True, max_tokens=24, ignore_eos=True, **values)
        chosen = [next(iter(entry.values())) for entry in answer.answer.sequences[0].outputs["logprobs"]]
        return [(token["logprob"], token["rank"]) for token in chosen]

    assert {rank for _, rank in told()} == {1}
    sampled = told(temperature=1.2, seed=3)
    assert {rank for _, rank in sampled} == {1, None}
    assert all((rank == 1) == (logprob > math.log(0.5)) for logprob, rank in sampled)


def test_penalties_change_the_answer(grpc: GrpcClient) -> None:
    plain = whole(grpc, "one one one one one one", max_tokens=16).text
    assert whole(grpc, "one one one one one one", max_tokens=16, repetition_penalty=1.8).text != plain
    assert whole(grpc, "one one one one one one", max_tokens=16, frequency_penalty=2.0).text != plain


def test_beams_come_best_first(grpc: GrpcClient) -> None:
    answer = whole(grpc, beam_width=3, num_return_sequences=2, max_tokens=8, return_token_ids=None)
    texts = answer.responses[0].outputs["text_output"]
    assert len(set(texts)) == 2
    assert answer.responses[0].outputs["finish_reason"] == [b"length"] * 2


def test_a_deadline_ends_a_running_answer_with_the_text_so_far(grpc: GrpcClient) -> None:
    answer = whole(grpc, max_tokens=3000, ignore_eos=True, deadline_ms=700)
    assert answer.finish_reason == "deadline"
    assert 0 < answer.output_tokens < 3000
    assert answer.text
    assert answer.responses[0].at - answer.answer.timeline.sent < 2.0


def test_times_are_told_when_asked_for(grpc: GrpcClient) -> None:
    outputs = whole(grpc, return_perf_metrics=True, max_tokens=8).responses[0].outputs
    names = ["arrival_time_ns", "first_scheduled_time_ns", "first_token_time_ns", "last_token_time_ns"]
    times = [outputs[name][0] for name in names]
    assert times == sorted(times)
    assert 0 < times[3] - times[0] < 60e9


# -- stop strings --------------------------------------------------------------------------------------------------


def borders(tokenizer: Tokenizer, prompt: str, ids: list[int]) -> list[int]:
    """How long the text is after each token."""
    start = tokenizer.encode(prompt).ids
    return [len(tokenizer.decode([*start, *ids[:count]])) - len(prompt) for count in range(1, len(ids) + 1)]


@pytest.mark.parametrize("stream", [False, True])
def test_a_stop_string_over_a_token_border_is_found_and_never_sent(
    stream: bool, grpc: GrpcClient, tokenizer: Tokenizer
) -> None:
    plain = whole(grpc)
    ends = borders(tokenizer, PROMPT, plain.output_ids)
    tried = 0
    for place in range(3, 20, 4):
        stop = plain.text[ends[place] - 2 : ends[place] + 3]  # two characters of one token, the next of the following
        if plain.text.find(stop) != ends[place] - 2:
            continue
        answer = grpc.start(PROMPT, stream=stream, max_tokens=24, stop_words=[stop], **EVERYTHING).result()
        assert answer.text == plain.text[: ends[place] - 2]
        assert answer.finish_reason == "stop"
        completed_by = next(count for count, end in enumerate(ends, 1) if end >= ends[place] + 3)
        assert answer.output_tokens == completed_by, "exactly the tokens up to the one that completed the stop string"
        assert answer.output_ids == plain.output_ids[:completed_by]
        tried += 1
    assert tried >= 2


@pytest.mark.parametrize("stream", [False, True])
def test_of_several_stop_strings_the_first_to_be_whole_wins(stream: bool, grpc: GrpcClient) -> None:
    plain = whole(grpc).text
    early, late = plain[8:11], plain[20:26]
    stops = ["never in there", late, plain[8:14], early]
    answer = grpc.start(PROMPT, stream=stream, max_tokens=24, stop_words=stops, return_finish_reason=True).result()
    assert answer.text == plain[: plain.find(early)]
    assert answer.finish_reason == "stop"


@pytest.mark.parametrize("stream", [False, True])
def test_text_held_back_for_a_stop_string_that_does_not_come_is_sent_in_the_end(stream: bool, grpc: GrpcClient) -> None:
    plain = whole(grpc).text
    almost = plain[-6:] + "and then something else"
    answer = grpc.start(PROMPT, stream=stream, max_tokens=24, stop_words=[almost], return_finish_reason=True).result()
    assert answer.text == plain
    assert answer.finish_reason == "length"


def test_stop_strings_by_all_their_names(grpc: GrpcClient, http: HttpClient) -> None:
    plain = whole(grpc).text
    stop = plain[10:14]
    right = plain[: plain.find(stop)]
    assert whole(grpc, sampling_parameters=json.dumps({"stop": stop})).text == right
    assert whole(grpc, sampling_parameters=json.dumps({"stop": [stop, "x" * 50]})).text == right
    assert http.generate(text_input=PROMPT, max_tokens=24, stop_words=[stop])[1]["text_output"] == right
    assert whole(grpc, stop_words=["", ""]).text == plain


def test_a_stop_token_ends_the_answer(grpc: GrpcClient) -> None:
    plain = whole(grpc)
    token = plain.output_ids[6]
    first = plain.output_ids.index(token) + 1
    answer = whole(grpc, sampling_parameters=json.dumps({"stop_token_ids": [token]}))
    assert (answer.finish_reason, answer.output_ids) == ("stop", plain.output_ids[:first])
    answer = whole(grpc, end_id=token)
    assert (answer.finish_reason, answer.output_ids) == ("stop", plain.output_ids[:first])
    later = whole(grpc, end_id=token, min_tokens=first + 1)
    assert later.output_tokens > first
    assert later.output_ids[: first - 1] == plain.output_ids[: first - 1]
