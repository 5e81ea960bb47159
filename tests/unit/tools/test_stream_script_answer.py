"""Putting a streamed answer together, and what scripts/stream.py makes of its command line. No server."""

from __future__ import annotations

import io
import json
import sys
from typing import Any

import pytest

from inflight.request.contract import INPUTS
from inflight_tools.clients import stream
from inflight_tools.clients.answer import Answer, Response, Timeline
from inflight_tools.clients.grpc import parse_value
from inflight_tools.common.report import Failure


def response(at: float, final: bool = False, **outputs: list[Any]) -> Response:
    """One response."""
    return Response(at, outputs, final)


def test_text_tokens_and_finish_reason_add_up() -> None:
    answer = Answer(10.0)
    assert answer.add(response(10.1, text_output=[b"Hel"], num_output_tokens=[1], finish_reason=[b""])) == "Hel"
    last = response(10.5, True, text_output=["lo ☂".encode()], num_output_tokens=[4], finish_reason=[b"stop"])
    assert answer.add(last) == "lo ☂"
    assert answer.sequences[0].text == "Hello ☂"
    assert answer.sequences[0].finish_reason == "stop"
    timeline = answer.timeline
    assert timeline.tokens == 5
    assert timeline.ttft == pytest.approx(0.1)
    assert timeline.latency == pytest.approx(0.5)
    assert timeline.tokens_per_s == pytest.approx(4 / 0.4)  # those after the first response


def test_an_answer_in_one_piece_has_all_tokens_over_all_time() -> None:
    timeline = Timeline(0.0)
    timeline.add(response(2.0, True, num_output_tokens=[8]))
    assert timeline.tokens_per_s == pytest.approx(4.0)


def test_no_tokens_no_figures() -> None:
    timeline = Timeline(0.0)
    timeline.add(response(2.0, True, text_output=[b""]))
    assert timeline.ttft is timeline.tokens_per_s is timeline.latency is None
    assert timeline.tokens == 0


def test_sequences_that_stream_are_kept_apart() -> None:
    answer = Answer(0.0)
    for index, text in ((1, b"one"), (0, b"zero"), (1, b" more")):
        fresh = answer.add(
            response(1.0, text_output=[text], sequence_index=[index], num_output_tokens=[1], cumulative_logprob=[-1.5])
        )
        assert fresh == ("zero" if index == 0 else "")
    assert {index: sequence.text for index, sequence in answer.sequences.items()} == {0: "zero", 1: "one more"}
    assert answer.sequences[1].outputs == {"cumulative_logprob": -1.5}  # a running total: the last one counts


def test_whole_sequences_share_token_outputs_by_their_counts() -> None:
    answer = Answer(0.0)
    answer.add(
        response(
            1.0,
            True,
            text_output=[b"a", b"b"],
            sequence_index=[0, 1],
            num_output_tokens=[2, 3],
            output_ids=[1, 2, 3, 4, 5],
            logprobs=[b'[{"1": {}}]', b'[{"3": {}}]'],
        )
    )
    assert answer.sequences[0].outputs["output_ids"] == [1, 2]
    assert answer.sequences[1].outputs["output_ids"] == [3, 4, 5]
    assert answer.sequences[1].outputs["logprobs"] == [{"3": {}}]


def test_token_outputs_of_a_stream_are_joined() -> None:
    answer = Answer(0.0)
    for ids in ([7], [8, 9]):
        answer.add(response(1.0, text_output=[b"x"], num_output_tokens=[len(ids)], output_ids=ids))
    assert answer.sequences[0].outputs == {"output_ids": [7, 8, 9]}


def test_json_has_what_the_request_asked_for() -> None:
    answer = Answer(0.0)
    answer.add(
        response(1.0, True, text_output=[b"x"], num_output_tokens=[1], num_input_tokens=[4], arrival_time_ns=[9])
    )
    content = json.loads(json.dumps(answer.to_json()))
    assert content["num_input_tokens"] == 4
    assert content["arrival_time_ns"] == 9
    assert content["sequences"] == [
        {"text_output": "x", "finish_reason": "", "stop_reason": "", "num_output_tokens": 1}
    ]


def test_every_parameter_of_the_contract_is_an_option() -> None:
    values = {"STRING": "a", "INT32": "3", "UINT64": str(2**64 - 1), "FP32": "0.5"}
    for item in INPUTS:
        if item.name in ("text_input", "messages", "input_ids", "stream"):
            continue
        for name in (item.name, *item.aliases):
            option = "--" + name.replace("_", "-")
            arguments = stream.parse(["hi", option] if item.type == "BOOL" else ["hi", option, values[item.type]])
            found = stream.inputs_of(arguments)[item.name]
            wanted = True if item.type == "BOOL" else parse_value(item.name, values[item.type])
            assert found == wanted, option


def test_a_switch_can_be_turned_off() -> None:
    assert stream.inputs_of(stream.parse(["hi", "--no-skip-special-tokens"]))["skip_special_tokens"] is False


def test_only_what_was_given_is_sent() -> None:
    returned = {"return_finish_reason", "return_num_input_tokens", "return_num_output_tokens"}
    assert set(stream.inputs_of(stream.parse(["hi"]))) == {"text_input", "stream"} | returned


def test_lists_are_given_by_repeating() -> None:
    arguments = stream.parse(["hi", "--stop-words", "a b", "--stop-words", "c"])
    assert stream.inputs_of(arguments)["stop_words"] == ["a b", "c"]


def test_a_chat_is_one_message_after_the_system_message() -> None:
    inputs = stream.inputs_of(stream.parse(["Hello ☂", "--system", "Be brief."]))
    assert json.loads(str(inputs["messages"])) == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hello ☂"},
    ]
    assert "text_input" not in inputs


def test_the_prompt_may_come_from_standard_input_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"two\nlines \xff"), encoding="utf-8"))
    assert stream.inputs_of(stream.parse([]))["text_input"] == b"two\nlines \xff"


def test_token_ids() -> None:
    assert stream.inputs_of(stream.parse(["--input-ids", "1, 2,3"]))["input_ids"] == [1, 2, 3]


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        (["hi", "--input-ids", "1"], "more than one prompt"),
        (["--messages", "[]", "--input-ids", "1"], "more than one prompt"),
        (["--messages", "[]", "--chat"], "--chat and --system do not go with --messages"),
        (["--input-ids", "1,x"], "must be whole numbers"),
    ],
)
def test_contradictions_are_one_sentence(line: list[str], sentence: str) -> None:
    with pytest.raises(Failure, match=sentence):
        stream.inputs_of(stream.parse(line))


def test_a_chat_message_has_to_be_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"ab\xff"), encoding="utf-8"))
    with pytest.raises(Failure, match=r"not UTF-8 text \(byte 2 is wrong\)"):
        stream.inputs_of(stream.parse(["--chat"]))


@pytest.mark.parametrize("line", [["hi", "--max-tokens", "x"], ["hi", "--shape", "round"], ["hi", "--unknown"]])
def test_wrong_options_are_refused(line: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        stream.parse(line)
    assert "error:" in capsys.readouterr().err
