"""Whatever the contract takes, OpenVINO takes, or it is refused in our words before OpenVINO sees it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from inflight.engines.base import EngineRefusal, EngineRequest, SamplingParams
from inflight.engines.openvino.sequence import generation_config
from inflight.request.limits import MAX_SEQUENCES
from tests.unit.machines.strategies import budget

pytestmark = pytest.mark.fast

PENALTIES = ("repetition_penalty", "presence_penalty", "frequency_penalty")


def ends(*values: float, between: tuple[float, float]) -> st.SearchStrategy[float]:
    """Values as FP32 has them."""
    inside = st.floats(*between, exclude_min=True, width=32)
    return st.sampled_from([float(np.float32(value)) for value in values]) | inside


@st.composite
def samplings(draw: st.DrawFn) -> SamplingParams:
    """Every value that `parse_request` lets through."""
    beams = draw(st.just(1) | st.integers(1, 16))
    most = draw(st.integers(1, 8000))
    return SamplingParams(
        max_tokens=most,
        min_tokens=draw(st.integers(0, most)),
        temperature=draw(ends(0.0, 1e-30, 100.0, between=(0.0, 100.0))),
        top_p=draw(ends(1e-30, 1.0, between=(0.0, 1.0))),
        top_k=draw(st.sampled_from([0, 1, 2**31 - 1]) | st.integers(0, 1000)),
        min_p=draw(ends(0.0, 1.0, between=(0.0, 1.0))),
        repetition_penalty=draw(st.just(1.0) | ends(1e-30, 100.0, between=(0.0, 100.0))),
        presence_penalty=draw(st.just(0.0) | ends(-2.0, 2.0, between=(-2.0, 2.0))),
        frequency_penalty=draw(st.just(0.0) | ends(-2.0, 2.0, between=(-2.0, 2.0))),
        length_penalty=draw(st.floats(-1e30, 1e30)) if beams > 1 else 1.0,
        seed=draw(st.integers(0, 2**64 - 1)),
        num_sequences=draw(st.integers(1, beams if beams > 1 else MAX_SEQUENCES)),
        beam_width=beams,
        stop_token_ids=draw(st.sampled_from([(), (2,), (2, 5), (5,)])),
        logprobs=draw(st.sampled_from([-1, 0])),
    )


@given(samplings())
@budget(400)
def test_what_the_contract_takes_is_valid_or_refused_by_name(sampling: SamplingParams) -> None:
    request = EngineRequest(request_id=1, token_ids=[1], sampling=sampling)
    try:
        config, _ = generation_config(request, 0, frozenset({2}))
    except EngineRefusal as refusal:
        refused = refusal.parameter
    else:
        refused = ""
        config.validate()
    given = {name for name in PENALTIES if getattr(sampling, name) != float(name == "repetition_penalty")}
    assert refused in given if sampling.beam_width > 1 and given else refused == ""


@pytest.mark.parametrize(
    ("name", "value", "neutral"), [(PENALTIES[0], 1.25, 1), (PENALTIES[1], -0.5, 0), (PENALTIES[2], 2.0, 0)]
)
def test_a_penalty_and_beams_are_refused_in_our_words(name: str, value: float, neutral: int) -> None:
    values: dict[str, Any] = {name: value}
    request = EngineRequest(request_id=1, token_ids=[1], sampling=SamplingParams(max_tokens=8, beam_width=2, **values))
    with pytest.raises(EngineRefusal) as caught:
        generation_config(request, 0, frozenset({2}))
    assert caught.value.parameter == name
    assert str(caught.value) == (
        f"is {value:g}, and beam search on the openvino engine has none; set it to {neutral}, or beam_width to 1"
    )


def test_min_p_of_1_is_the_largest_that_openvino_takes() -> None:
    sampling = SamplingParams(max_tokens=8, temperature=1.0, min_p=1.0)
    config, _ = generation_config(EngineRequest(request_id=1, token_ids=[1], sampling=sampling), 0, frozenset({2}))
    assert 0.9999999 < config.min_p < 1.0
