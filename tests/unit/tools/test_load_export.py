"""Reading perf_analyzer's profile export, with what it really writes into outputs that were not sent."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from inflight_tools.common.report import Failure
from inflight_tools.load.profile_export import read_export

ASKED = {"text_input": "hi", "stream": True, "return_num_output_tokens": True, "return_num_input_tokens": True}


def output(tokens: Any, prompt: int = 7) -> dict[str, Any]:
    """Outputs of one response; the last four were not sent and hold what was in memory."""
    return {
        "text_output": "x",
        "num_output_tokens": tokens,
        "num_input_tokens": prompt,
        "sequence_index": 1638518044,
        "cumulative_logprob": 3.9e20,
        "arrival_time_ns": 139764169301612,
        "logprobs": "",
    }


def entry(sent: int, *responses: tuple[int, Any], asked: dict[str, Any] | None = None) -> dict[str, Any]:
    """One request of an export."""
    return {
        "timestamp": sent,
        "request_inputs": ASKED if asked is None else asked,
        "response_timestamps": [at for at, _ in responses],
        "response_outputs": [output(tokens) for _, tokens in responses],
    }


def write(path: Path, *entries: dict[str, Any]) -> Path:
    """An export of one experiment."""
    experiment = {"experiment": {"mode": "concurrency", "value": 1}, "requests": list(entries), "window_boundaries": []}
    path.write_text(json.dumps({"experiments": [experiment], "version": "2.51.0"}), encoding="utf-8")
    return path


def test_requests_come_in_the_order_they_were_sent(tmp_path: Path) -> None:
    found = read_export(write(tmp_path / "e.json", entry(500, (600, 1)), entry(100, (200, 1), (300, 3))))
    assert [request.sent for request in found] == [100, 500]
    first = found[0]
    assert first.arrivals == ((200, 1), (300, 3))
    assert (first.tokens, first.ttft, first.latency, first.prompt_tokens) == (4, 100, 200, 7)


def test_a_response_without_a_token_ends_a_request_but_starts_nothing(tmp_path: Path) -> None:
    (found,) = read_export(write(tmp_path / "e.json", entry(100, (150, 0), (200, 2), (260, 0))))
    assert found.arrivals == ((200, 2),)
    assert found.ttft == 100
    assert found.latency == 160


def test_an_unanswered_request_is_left_out(tmp_path: Path) -> None:
    found = read_export(write(tmp_path / "e.json", entry(100), entry(200, (300, 1))))
    assert [request.sent for request in found] == [200]


def test_prompt_tokens_are_read_only_where_they_were_asked_for(tmp_path: Path) -> None:
    asked = {name: value for name, value in ASKED.items() if name != "return_num_input_tokens"}
    (found,) = read_export(write(tmp_path / "e.json", entry(100, (200, 1), asked=asked)))
    assert found.prompt_tokens == 0


def test_uncounted_tokens_are_refused(tmp_path: Path) -> None:
    with pytest.raises(Failure, match="does not ask for num_output_tokens"):
        read_export(write(tmp_path / "e.json", entry(100, (200, 1), asked={"text_input": "hi"})))


@pytest.mark.parametrize("text", ["", "{", "[]", '{"experiments": 5}', '{"experiments": [{"requests": [{}]}]}'])
def test_what_is_no_export_is_one_sentence(tmp_path: Path, text: str) -> None:
    path = tmp_path / "e.json"
    path.write_text(text)
    with pytest.raises(Failure, match="not a profile export"):
        read_export(path)


def test_an_export_without_answers_says_so(tmp_path: Path) -> None:
    with pytest.raises(Failure, match="no answered request"):
        read_export(write(tmp_path / "e.json"))
