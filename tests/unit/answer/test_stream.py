from __future__ import annotations

import json
from typing import Any

import pytest

from inflight.answer.stream import Stream
from inflight.engines.base import EngineOutput, FinishReason
from inflight.errors import ErrorCode, cancelled, unavailable
from inflight.identity import Identity
from inflight.request.prompt import Prompt
from inflight.request.stop_words import Stops
from tests.unit.machines.strategies import request
from tests.unit.machines.stream_model import EOS, FACTORY, PROMPT_IDS, make_stream
from tests.unit.machines.tokenizer_kinds import KINDS

pytestmark = pytest.mark.fast

TOKENIZER = KINDS["byte_level"]()


def ids(text: str) -> list[int]:
    return list(TOKENIZER.encode(text, add_special_tokens=False).ids)


def stream_of(echo: str = "", **values: Any) -> Stream:
    parsed = request(**values)
    return Stream(
        parsed,
        Prompt(list(PROMPT_IDS), echo),
        Stops((EOS,), parsed.stops),
        lambda: FACTORY.make(parsed.skip_special_tokens, PROMPT_IDS),
        TOKENIZER.id_to_token,
        Identity("r1"),
        5,
    )


def test_everything_buffered_leaves_in_one_response() -> None:
    stream = make_stream(True, 1, [])
    for token_id in ids(" the lazy dog"):
        stream.append(EngineOutput(1, 0, [token_id]), 9)
    taken = stream.take()
    assert [reply.texts for reply in taken.replies] == [[" the lazy dog"]]
    assert taken.tokens == len(ids(" the lazy dog"))
    assert not taken.done
    assert stream.take().replies == []


@pytest.mark.parametrize("named", [False, True])
def test_no_tokens_asked_for_is_the_prompts_own_text_and_tokens(named: bool) -> None:
    stream = stream_of("the dog", max_tokens=0, exclude_input_in_output=False, return_token_ids=named)
    stream.end_counted()
    taken = stream.take()
    assert [reply.texts for reply in taken.replies] == [["the dog"]]
    assert taken.replies[0].token_ids == list(PROMPT_IDS)
    assert (taken.tokens, taken.done, taken.abandon) == (0, True, False)


def test_half_a_character_is_no_response() -> None:
    stream = make_stream(True, 1, [])
    first, *rest = ids("🙂")
    stream.append(EngineOutput(1, 0, [first]), 9)
    assert stream.take().replies == []
    stream.append(EngineOutput(1, 0, rest), 9)
    (reply,) = stream.take().replies
    assert reply.texts == ["🙂"]
    assert reply.num_output_tokens == [len(rest) + 1]


def test_the_end_of_sequence_token_counts_and_is_not_shown() -> None:
    stream = stream_of(skip_special_tokens=False, return_token_ids=True)
    stream.append(EngineOutput(1, 0, [*ids("dog"), EOS], FinishReason.STOP), 9)
    (reply,) = stream.take().replies
    assert reply.texts == ["dog"]
    assert reply.finishes == ["stop"]
    assert reply.token_ids == [*ids("dog"), EOS]
    assert stream.outcome == "stop"


def test_the_same_token_is_text_when_it_did_not_end_the_sequence() -> None:
    stream = stream_of(skip_special_tokens=False)
    stream.append(EngineOutput(1, 0, [EOS, *ids("dog")], FinishReason.LENGTH), 9)
    assert stream.take().replies[0].texts == ["<|eos|>dog"]


def test_an_ending_without_a_token_flushes_what_was_held_back() -> None:
    stream = make_stream(True, 1, ["dogma"])
    stream.append(EngineOutput(1, 0, ids("a dog")), 9)
    assert stream.take().replies[0].texts == ["a "]
    stream.append(EngineOutput(1, 0, [], FinishReason.LENGTH), 9)
    taken = stream.take()
    assert [(reply.texts, reply.finishes) for reply in taken.replies] == [(["dog"], ["length"])]
    assert taken.done


def test_a_stop_string_ends_it_and_stops_the_engine() -> None:
    stream = make_stream(True, 1, ["lazy"])
    stream.append(EngineOutput(1, 0, ids("the lazy dog")), 9)
    taken = stream.take()
    assert taken.replies[0].texts == ["the "]
    assert taken.replies[0].finishes == ["stop"]
    assert taken.done
    assert taken.abandon, "the engine is still at work on it"
    stream.append(EngineOutput(1, 0, ids(" more"), FinishReason.LENGTH), 9)
    assert stream.take().replies == []


def test_a_stop_string_in_the_engines_last_words_needs_no_cancel() -> None:
    stream = make_stream(True, 1, ["dog"])
    stream.append(EngineOutput(1, 0, ids("the dog"), FinishReason.LENGTH), 9)
    taken = stream.take()
    assert (taken.replies[0].finishes, taken.abandon) == (["stop"], False)


def test_the_engine_goes_on_while_another_sequence_needs_it() -> None:
    stream = make_stream(True, 2, ["dog"])
    stream.append(EngineOutput(1, 0, ids("a dog")), 9)
    taken = stream.take()
    assert (taken.done, taken.abandon) == (False, False)
    stream.append(EngineOutput(1, 1, ids("the dog")), 9)
    taken = stream.take()
    assert (taken.done, taken.abandon) == (True, True)
    assert taken.replies[-1].indices == [1]


@pytest.mark.parametrize("streamed", [True, False])
@pytest.mark.parametrize("last_by_itself", [True, False])
def test_a_sequence_that_we_ended_is_not_left_to_the_engine(streamed: bool, last_by_itself: bool) -> None:
    """Whichever way the last of several sequences ends, the one that a stop string ended is still computed."""
    stream = make_stream(streamed, 2, ["dog"])
    stream.append(EngineOutput(1, 0, ids("a dog")), 9)
    last = ids("the end") if last_by_itself else ids("the dog")
    stream.append(EngineOutput(1, 1, last, FinishReason.LENGTH), 9)
    taken = stream.take()
    assert (taken.done, taken.abandon) == (True, True)


def test_a_sequence_that_the_engine_ended_as_well_needs_no_cancel() -> None:
    stream = make_stream(True, 2, ["dog"])
    stream.append(EngineOutput(1, 0, ids("a dog")), 9)
    stream.append(EngineOutput(1, 0, [], FinishReason.LENGTH), 9)
    assert not stream.take().done
    stream.append(EngineOutput(1, 1, ids("the end"), FinishReason.LENGTH), 9)
    taken = stream.take()
    assert (taken.done, taken.abandon) == (True, False)


def test_what_the_engine_says_of_a_sequence_that_has_ended_harms_no_other() -> None:
    stream = make_stream(True, 2, ["dog"])
    stream.append(EngineOutput(1, 0, ids("a dog")), 9)
    stream.append(EngineOutput(1, 0, [], error="it could not be computed"), 9)
    stream.append(EngineOutput(1, 1, ids("the end"), FinishReason.LENGTH), 9)
    taken = stream.take()
    assert taken.error is None
    assert [reply.finishes for reply in taken.replies] == [["stop"], ["length"]]


def test_a_unary_answer_waits_for_all_its_sequences() -> None:
    stream = make_stream(False, 2, [])
    stream.append(EngineOutput(1, 1, ids("b"), FinishReason.LENGTH), 9)
    assert stream.take().replies == []
    stream.append(EngineOutput(1, 0, ids("a"), FinishReason.STOP), 9)
    taken = stream.take()
    (reply,) = taken.replies
    assert taken.done
    assert (reply.texts, reply.finishes, reply.indices) == (["a", "b"], ["stop", "length"], [0, 1])


def test_best_of_returns_the_likeliest_numbered_anew() -> None:
    stream = stream_of(num_return_sequences=2, best_of=3, sampling_parameters='{"best_of": 3}')
    for index, (text, value) in enumerate([("a", -3.0), ("b", -1.0), ("c", -2.0)]):
        stream.append(EngineOutput(1, index, ids(text), FinishReason.LENGTH, logprobs=[value]), 9)
    (reply,) = stream.take().replies
    assert (reply.texts, reply.indices, reply.cumulative_logprobs) == (["b", "c"], [0, 1], [-1.0, -2.0])


def test_the_first_error_wins_and_nothing_follows_it() -> None:
    stream = make_stream(True, 1, [])
    stream.append(EngineOutput(1, 0, ids("a")), 9)
    stream.fail(cancelled())
    stream.fail(unavailable("later"))
    taken = stream.take()
    assert taken.error is not None
    assert taken.error.code is ErrorCode.CANCELLED
    assert taken.done
    assert taken.abandon
    stream.fail(unavailable("too late"))
    stream.append(EngineOutput(1, 0, ids("b"), FinishReason.LENGTH), 9)
    assert stream.take().error is None
    assert stream.outcome == "cancelled"


def test_a_late_refusal_is_the_clients_to_read() -> None:
    stream = stream_of()
    stream.append(EngineOutput(1, 0, [], error="top_k is 5, which it does not take", refusal=True), 9)
    error = stream.take().error
    assert error is not None
    assert (error.code, error.message) == (ErrorCode.INVALID_ARG, "top_k is 5, which it does not take")


def test_an_error_of_the_engine_is_internal_and_keeps_its_words_from_the_client() -> None:
    stream = make_stream(True, 1, [])
    stream.append(EngineOutput(1, 0, [], error="/opt/secret: segmentation fault"), 9)
    error = stream.take().error
    assert error is not None
    assert error.code is ErrorCode.INTERNAL
    assert "secret" not in error.message
    assert "r1" in error.message


def test_an_output_for_a_sequence_that_does_not_exist_is_our_bug() -> None:
    stream = make_stream(True, 1, [])
    stream.append(EngineOutput(1, 7, ids("a")), 9)
    error = stream.take().error
    assert error is not None
    assert error.code is ErrorCode.INTERNAL


def test_an_ended_stream_keeps_its_end() -> None:
    stream = make_stream(True, 1, [])
    stream.append(EngineOutput(1, 0, ids("a"), FinishReason.LENGTH), 9)
    assert stream.ended
    assert stream.take().done
    stream.fail(cancelled())
    stream.end_by_deadline()
    taken = stream.take()
    assert (taken.replies, taken.done, taken.error) == ([], False, None)
    assert stream.outcome == "length"


def test_a_deadline_keeps_the_text_so_far_and_its_held_back_part() -> None:
    stream = make_stream(False, 1, ["dogma"])
    stream.append(EngineOutput(1, 0, ids("a dog")), 9)
    stream.end_by_deadline()
    taken = stream.take()
    assert taken.replies[0].texts == ["a dog"]
    assert taken.replies[0].finishes == ["deadline"]
    assert taken.abandon


def test_a_deadline_spares_a_sequence_that_had_ended() -> None:
    stream = make_stream(False, 2, [])
    stream.append(EngineOutput(1, 0, [*ids("a"), EOS], FinishReason.STOP), 9)
    stream.end_by_deadline()
    assert stream.take().replies[0].finishes == ["stop", "deadline"]


def test_times_come_with_the_last_response_only() -> None:
    stream = make_stream(True, 1, [])
    stream.append(EngineOutput(1, 0, ids("a")), 20)
    first = stream.take().replies[-1]
    stream.append(EngineOutput(1, 0, ids("b"), FinishReason.LENGTH), 30)
    last = stream.take().replies[-1]
    assert first.timing is None
    assert last.timing is not None
    assert (last.timing.arrival_ns, last.timing.first_token_ns, last.timing.last_token_ns) == (1, 20, 30)


def test_log_probabilities_follow_their_tokens_in_vllms_form() -> None:
    stream = stream_of(logprobs=2, stream=True, return_logprobs=True)
    a, b = ids("a")[0], ids("b")[0]
    stream.append(
        EngineOutput(1, 0, [a, b], logprobs=[-0.5, -2.0], top_logprobs=[{a: -0.5, b: -1.0}, {a: -0.25, 9: -1.5}]), 9
    )
    (reply,) = stream.take().replies
    first, second = json.loads(reply.top_logprobs[0])
    assert first == {
        str(a): {"logprob": -0.5, "rank": 1, "decoded_token": "a"},
        str(b): {"logprob": -1.0, "rank": 2, "decoded_token": "b"},
    }
    assert list(second) == [str(b), str(a), "9"], "the chosen token first, then the likeliest"
    assert second[str(b)]["rank"] is None
    assert reply.logprobs == [-0.5, -2.0]
    assert reply.cumulative_logprobs == [-2.5]


@pytest.mark.parametrize("asked", ["return_log_probs", "return_logprobs"])
def test_the_bytes_of_a_token_are_told_and_under_vllms_name_only_where_its_text_is_not_all_of_it(asked: str) -> None:
    """Clients of vLLM's backend count the fields of the others (its own test does)."""
    parsed = request(logprobs=0, stream=True, **{asked: True})
    half, whole = 7, 8
    stream = Stream(
        parsed,
        Prompt(list(PROMPT_IDS), ""),
        Stops((EOS,), parsed.stops),
        lambda: FACTORY.make(parsed.skip_special_tokens, PROMPT_IDS),
        {half: "\ufffd", whole: " of"}.__getitem__,
        Identity("r1"),
        5,
        token_bytes={half: b"\xf0\x9f", whole: b" of"}.__getitem__,
    )
    stream.append(EngineOutput(1, 0, [half, whole], logprobs=[-0.5, -0.5], top_logprobs=[{}, {}]), 9)
    (reply,) = stream.take().replies
    first, second = json.loads(reply.top_logprobs[0])
    assert first[str(half)]["bytes"] == [0xF0, 0x9F]
    assert second[str(whole)].get("bytes") == (list(b" of") if asked == "return_log_probs" else None)


def test_log_probabilities_behind_a_stop_string_are_cut_off_with_their_tokens() -> None:
    stream = stream_of(stop_words=["b"], stream=True, return_log_probs=True)
    stream.append(EngineOutput(1, 0, [*ids("a"), *ids("b"), *ids("c")], logprobs=[-1.0, -2.0, -4.0]), 9)
    (reply,) = stream.take().replies
    assert (reply.texts, reply.token_ids, reply.logprobs) == (["a"], [*ids("a"), *ids("b")], [-1.0, -2.0])
    assert reply.cumulative_logprobs == [-3.0]


def ranks_of(reply: Any) -> list[Any]:
    return [next(iter(entry.values()))["rank"] for entry in json.loads(reply.top_logprobs[0])]


def test_the_rank_that_the_engine_gives_is_told_and_cut_with_its_token() -> None:
    stream = stream_of(temperature=1.0, stop_words=["b"], stream=True, return_log_probs=True)
    tokens = [*ids("a"), *ids("b"), *ids("c")]
    stream.append(EngineOutput(1, 0, tokens, logprobs=[-3.0, -0.1, -4.0], ranks=[17, 2, 5]), 9)
    (reply,) = stream.take().replies
    assert ranks_of(reply) == [17, 2]


@pytest.mark.parametrize(
    ("values", "ranks"),
    [
        ({}, [1, 1]),
        ({"temperature": 1.0}, [1, None]),
        ({"guided_decoding_guide_type": "regex", "guided_decoding_guide": "ab"}, [1, None]),
    ],
)
def test_a_rank_that_the_engine_does_not_give_is_what_it_must_be(values: dict[str, Any], ranks: list[Any]) -> None:
    """Greedy takes the likeliest; what is likelier than all others together is it; of the rest nobody knows."""
    stream = stream_of(stream=True, return_log_probs=True, **values)
    stream.append(EngineOutput(1, 0, [*ids("a"), *ids("b")], logprobs=[-0.5, -2.0]), 9)
    (reply,) = stream.take().replies
    assert ranks_of(reply) == ranks


def test_reused_blocks_come_with_the_times() -> None:
    stream = stream_of(stream=True, return_perf_metrics=True)
    stream.append(EngineOutput(1, 0, [], reused_blocks=3), 8)
    assert stream.take().replies == []
    assert stream.timing.first_token_ns == 0
    stream.append(EngineOutput(1, 0, ids("a"), FinishReason.LENGTH), 9)
    timing = stream.take().replies[-1].timing
    assert timing is not None
    assert timing.reused_blocks == 3
