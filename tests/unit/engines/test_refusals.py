"""What an engine's library says against a request reaches the client in our words, and by our names."""

from __future__ import annotations

import pytest

from inflight.engines import refusals
from inflight.engines.base import EngineRequest, SamplingParams
from inflight.engines.faults import Sparingly
from inflight.engines.refusals import in_our_words

pytestmark = pytest.mark.fast


class NamesIt(ValueError):
    """As vLLM's errors: the parameter is an attribute."""

    def __init__(self, words: str, parameter: str) -> None:
        super().__init__(words)
        self.parameter = parameter


REQUEST = EngineRequest(
    request_id=1,
    token_ids=[1, 2, 3],
    sampling=SamplingParams(max_tokens=8, min_p=1.0, top_p=0.25, seed=7, beam_width=3, num_sequences=2),
)


@pytest.mark.parametrize(
    ("error", "parameter", "shown"),
    [
        (RuntimeError("Check 'min_p < 1.0f' failed at /a/b.cpp:345:\nmin_p must be in [0.0, 1.0)"), "min_p", "is 1,"),
        (RuntimeError("[ERROR] Assertion failed: topP (0.25) is out of range (/src/x.cpp:12)"), "top_p", "is 0.25,"),
        (RuntimeError("'rng_seed' is too large"), "seed", "is 7,"),
        (RuntimeError("num_beams must be divisible by num_beam_groups"), "beam_width", "is 3,"),
        (ValueError("The prompt (length 3) is longer than the maximum model length"), "input_ids", "has 3 tokens,"),
        (NamesIt("temperature must be non-negative, got -1.", "temperature"), "temperature", "is 0,"),
        (NamesIt("too many", "n"), "num_return_sequences", "has a value,"),
        (ValueError("Invalid structured_outputs"), "guided_decoding_guide", "has a value,"),
    ],
)
def test_the_parameter_is_named_by_its_name_in_the_contract(
    error: Exception, parameter: str, shown: str, caplog: pytest.LogCaptureFixture
) -> None:
    refusal = in_our_words("openvino", error, REQUEST)
    assert refusal.parameter == parameter
    assert str(refusal) == f"{shown} which the openvino engine does not take in this request; change it"
    assert str(error).splitlines()[0] in caplog.text, "its own words are for the operator"


@pytest.mark.parametrize("words", ["", "std::bad_alloc at 0x7fff12345678 /opt/lib/x.so", "Unknown failure\n" * 50])
def test_words_that_name_nothing_stay_in_the_log(words: str) -> None:
    refusal = in_our_words("vllm", RuntimeError(words), REQUEST)
    assert refusal.parameter is None
    assert str(refusal) == "it does not take these values together; the server's log has the reason"


def test_a_client_that_is_refused_again_and_again_does_not_fill_the_log(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(refusals, "sparingly", Sparingly())
    for number in range(500):
        in_our_words("vllm", ValueError(f"top_p {number} is wrong"), REQUEST)
        in_our_words("vllm", ValueError(f"oops {number}"), REQUEST)
    assert len(caplog.records) == 2
