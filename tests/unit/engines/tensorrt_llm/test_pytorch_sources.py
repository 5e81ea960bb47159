"""What the public sources of TensorRT-LLM's PyTorch flow say and its documentation does not, release by release, on the
stand-in that behaves so: which sampler runs and what it tells, how sequences end, what its worker dies of.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from inflight.engines.base import GUIDED, Capability, EngineBroken, EngineRefusal, FinishReason, Guide
from inflight.engines.faults import sparingly
from inflight.model.files import end_token_of_tokenizer
from tests.doubles.folders import write_checkpoint
from tests.doubles.stand_in import Checkpoint, collect, expected, ids, request, run, stand_in

pytestmark = pytest.mark.fast

PROMPT = [11, 12, 13, 14]
RELEASES = ["1.0", "1.1", "1.2", "1.3"]
SAMPLERS = ["1.2", "1.3"]  # a release with TRTLLMSampler, one with TorchSampler
FIRST, SECOND = 1, 7  # end tokens of the model


def breaks(engine: Any, within_s: float = 5.0) -> None:
    """Step until the engine says that it is broken."""

    def step() -> None:
        deadline = time.monotonic() + within_s
        while time.monotonic() < deadline:
            engine.step(0.02)

    with pytest.raises(EngineBroken):
        step()


# -- statistics ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("profile", SAMPLERS)
def test_statistics_come_in_every_release(checkpoint: Checkpoint, profile: str) -> None:
    engine = checkpoint(profile, {"step_ms": 5, "blocks": 77})
    engine.add(request(1, PROMPT, max_tokens=2000))
    deadline = time.monotonic() + 5.0
    while not engine.stats().blocks_used and time.monotonic() < deadline:
        engine.step(0.02)
    found = engine.stats()
    assert (found.blocks_max, found.blocks_used > 0, found.reused_tokens_total) == (77, True, 3 * 32)
    engine.cancel(1)
    collect(engine, {(1, 0)})
    assert (engine.stats().blocks_max, engine.stats().blocks_used) == (77, 0)


def test_statistics_that_cannot_be_had_are_said_once(
    checkpoint: Checkpoint, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sparingly, "_next", {})
    engine = checkpoint()

    def fails(*_: object) -> None:
        raise NotImplementedError("get_stats_async is not implemented")

    engine._llm.get_stats_async = fails
    for number in range(3):
        assert run(engine, request(number, PROMPT))
    assert caplog.text.count("statistics could not be read") == 1


# -- a worker that dies ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", ["stall_at", "die_at"])
def test_an_llm_that_says_nothing_any_more_is_broken(checkpoint: Checkpoint, fault: str) -> None:
    engine = checkpoint(double={fault: 3}, stall_timeout_ms=400)
    engine.add(request(1, PROMPT, max_tokens=500))
    breaks(engine)


def test_a_first_answer_may_take_longer(checkpoint: Checkpoint) -> None:
    """Kernels are compiled then; a restart would only begin anew."""
    engine = checkpoint(double={"step_ms": 800}, stall_timeout_ms=300)
    assert run(engine, request(1, PROMPT, max_tokens=1))


def test_a_request_that_finds_the_worker_dead_ends_the_engine(checkpoint: Checkpoint) -> None:
    """It is told what the worker died of; LLM shuts down, and would refuse everybody from then on."""
    engine = checkpoint(double={"die_at": 3})
    engine.add(request(1, PROMPT, max_tokens=500))
    while engine._llm._executor.background_error is None:
        engine.step(0.02)
    engine._llm._executor.background_error = KeyError("of any kind")
    with pytest.raises(EngineBroken):
        engine.add(request(2, PROMPT))


def test_an_error_of_the_executors_own_ends_the_engine(checkpoint: Checkpoint) -> None:
    engine = checkpoint(double={"break_at": 3})
    engine.add(request(1, PROMPT, max_tokens=500))
    breaks(engine)


def test_an_llm_that_is_gone_is_broken(checkpoint: Checkpoint) -> None:
    engine = checkpoint()
    assert run(engine, request(1, PROMPT))
    engine._llm.shutdown()
    with pytest.raises(EngineBroken):
        engine.add(request(2, PROMPT))


def test_a_gpu_that_is_lost_ends_the_engine_and_not_one_request_after_the_other(checkpoint: Checkpoint) -> None:
    words = "CUDA error: an illegal memory access was encountered\nCUDA kernel errors might be asynchronously reported"
    engine = checkpoint(double={"error_at": 3, "error_stays": True, "error_words": words})
    engine.add(request(1, PROMPT, max_tokens=500))
    breaks(engine)


def test_an_engine_without_work_has_not_been_standing_still(checkpoint: Checkpoint) -> None:
    engine = checkpoint(stall_timeout_ms=300)
    assert run(engine, request(1, PROMPT))
    time.sleep(0.5)
    assert run(engine, request(2, PROMPT))


# -- samplers --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("profile", "options", "top"),
    [
        ("1.0", {}, False),
        ("1.2", {}, False),
        ("1.2", {"llm_arguments": {"sampler_type": "TorchSampler"}}, True),
        ("1.2", {"speculative": "ngram"}, True),
        ("1.3", {}, True),
        ("1.3", {"llm_arguments": {"sampler_type": "TRTLLMSampler"}}, False),
    ],
)
def test_the_likeliest_tokens_are_promised_where_the_sampler_tells_them(
    checkpoint: Checkpoint, profile: str, options: dict[str, Any], top: bool
) -> None:
    engine = checkpoint(profile, **options)
    assert (Capability.TOP_LOGPROBS in engine.info.capabilities) is top
    (outputs,) = run(engine, request(1, PROMPT, logprobs=3)).values()
    entries = [entry for output in outputs for entry in output.top_logprobs or ()]
    assert [len(entry) for entry in entries] == [3 if top else 1] * 8


@pytest.mark.parametrize("profile", SAMPLERS)
def test_log_probabilities_beside_beams_would_fail_everybody(checkpoint: Checkpoint, profile: str) -> None:
    capabilities = checkpoint(profile, max_beam_width=2).info.capabilities
    assert not capabilities & {Capability.LOGPROBS, Capability.TOP_LOGPROBS}


def test_a_sampled_token_without_log_probability_ends_its_request_in_our_words(checkpoint: Checkpoint) -> None:
    engine = checkpoint("1.2", speculative="ngram")
    sampled = request(1, PROMPT, temperature=1.0, seed=5, logprobs=2, max_tokens=40)
    found = run(engine, sampled, request(2, PROMPT, logprobs=2, max_tokens=40))
    ended = found[1, 0][-1]
    assert ended.refusal, "its client reads why"
    assert str(ended.error).startswith("logprobs cannot be told of every sampled token: this release of TensorRT-LLM")
    assert len(ids(found[2, 0])) == 40


def test_what_a_sampler_would_leave_out_is_refused(checkpoint: Checkpoint) -> None:
    plain, whole = checkpoint("1.3", {"plain_torch_sampler": True}), checkpoint("1.3")
    for name in ("repetition_penalty", "presence_penalty", "frequency_penalty"):
        with pytest.raises(EngineRefusal, match="no penalties") as refusal:
            plain.add(request(1, PROMPT, **{name: 1.5}))
        assert refusal.value.parameter == name
        assert run(whole, request(2, PROMPT, **{name: 1.5}))
    assert Capability.MIN_P not in plain.info.capabilities
    assert Capability.MIN_P in whole.info.capabilities


# -- how sequences end -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("eos", [FIRST, SECOND])
@pytest.mark.parametrize("profile", SAMPLERS)
def test_every_end_token_counts(checkpoint: Checkpoint, profile: str, eos: int) -> None:
    """Whichever of the model's end tokens it is, and whichever of the answers ends last."""
    engine = checkpoint(profile, {"eos_every": 5, "eos_token": eos})
    sampled = {"temperature": 1.0, "seed": 3, "max_tokens": 20, "stop_token_ids": (FIRST, SECOND)}
    plain = [request(count, PROMPT, num_sequences=count, **sampled) for count in (1, 3)]
    told = [request(count + 10, PROMPT, num_sequences=count, logprobs=0, **sampled) for count in (1, 3)]
    for (number, index), outputs in run(engine, *plain, *told).items():
        assert ids(outputs) == [*expected(PROMPT, 5, seed=3, sequence=index), eos]
        assert outputs[-1].finish is FinishReason.STOP
        values = [value for output in outputs for value in output.logprobs or ()]
        assert len(values) == (6 if number > 10 else 0)
        assert all(value < 0 for value in values), "an end token's log-probability is no guess"


@pytest.mark.parametrize("profile", SAMPLERS)
def test_answers_end_when_they_end_and_for_their_own_reason(checkpoint: Checkpoint, profile: str) -> None:
    """One of three meets a stop token; LLM tells the reason of the last one alone, when all are done."""
    engine = checkpoint(profile, {"step_ms": 5})
    early = expected(PROMPT, 40, seed=3, sequence=1)
    asked = request(1, PROMPT, temperature=1.0, seed=3, num_sequences=3, max_tokens=40, stop_token_ids=(1, early[2]))
    engine.add(asked)
    ends: list[int] = []
    found: dict[int, Any] = {index: [] for index in range(3)}
    while len(ends) < 3:
        for output in engine.step(0.02):
            found[output.sequence_index].append(output)
            if output.finish is not None:
                ends.append(output.sequence_index)
                if output.sequence_index == 1:
                    assert sum(len(each.token_ids) for each in found[0]) < 40
    assert ends[0] == 1
    assert [(len(ids(found[index])), found[index][-1].finish) for index in range(3)] == [
        (40, FinishReason.LENGTH),
        (3, FinishReason.STOP),
        (40, FinishReason.LENGTH),
    ]


@pytest.mark.parametrize("profile", SAMPLERS)
def test_min_tokens_and_no_end_at_all(checkpoint: Checkpoint, profile: str) -> None:
    engine = checkpoint(profile, {"eos_every": 3})
    held = request(1, PROMPT, min_tokens=6, max_tokens=20, stop_token_ids=(FIRST, SECOND), num_sequences=2)
    for outputs in run(engine, held).values():
        assert (ids(outputs), outputs[-1].finish) == ([*expected(PROMPT, 6), FIRST], FinishReason.STOP)
    (outputs,) = run(engine, request(2, PROMPT, max_tokens=20)).values()
    assert (ids(outputs), outputs[-1].finish) == (expected(PROMPT, 20), FinishReason.LENGTH), "ignore_eos"


@pytest.mark.parametrize("profile", SAMPLERS)
def test_a_stop_token_in_the_last_place_is_a_stop(checkpoint: Checkpoint, profile: str) -> None:
    engine = checkpoint(profile)
    tokens = expected(PROMPT, 8)
    asked = request(1, PROMPT, max_tokens=8, stop_token_ids=(FIRST, tokens[7]))
    (outputs,) = run(engine, asked).values()
    assert (ids(outputs), outputs[-1].finish) == (tokens, FinishReason.STOP)


@pytest.mark.parametrize("profile", SAMPLERS)
def test_an_answer_that_fills_the_context_is_long(checkpoint: Checkpoint, profile: str) -> None:
    found = run(checkpoint(profile, max_seq_len=64), request(1, [9] * 60, max_tokens=50, num_sequences=2))
    assert [(len(ids(outputs)), outputs[-1].finish) for outputs in found.values()] == [(4, FinishReason.LENGTH)] * 2


def test_a_log_probability_that_nobody_tells_is_refused(checkpoint: Checkpoint) -> None:
    """With min_tokens the end token has to be TRTLLMSampler's own, and of that one it tells nothing."""
    with pytest.raises(EngineRefusal, match="min_tokens") as refusal:
        checkpoint("1.2").add(request(1, PROMPT, logprobs=0, min_tokens=2, stop_token_ids=(FIRST,)))
    assert refusal.value.parameter == "logprobs"


# -- loading ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("profile", RELEASES)
def test_prompt_lookup_loads(checkpoint: Checkpoint, profile: str) -> None:
    engine = checkpoint(profile, speculative="ngram", num_draft_tokens=3)
    config = engine._llm._kwargs["speculative_config"]
    assert (config.max_draft_len, config.max_matching_ngram_size) == (3, 2)
    assert Capability.SPECULATIVE in engine.info.capabilities
    assert not engine.info.capabilities & GUIDED, "releases up to 1.1 refuse guides beside it, at load"
    longer = checkpoint(profile, speculative="ngram", max_matching_ngram_size=4)
    assert longer._llm._kwargs["speculative_config"].max_matching_ngram_size == 4
    assert run(engine, request(1, PROMPT))


@pytest.mark.parametrize("profile", SAMPLERS)
def test_a_guide_ends_with_the_tokenizers_end_token(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, profile: str
) -> None:
    """xgrammar lets that one through, which need not be among those that generation_config.json names."""
    with stand_in(monkeypatch, tmp_path, profile) as double:
        folder = write_checkpoint(tmp_path / "checkpoint", double.tokenizer)
        own = end_token_of_tokenizer(folder)
        (folder / "generation_config.json").write_text('{"eos_token_id": 9}', encoding="utf-8")
        engine = double.engine(folder)
        asked = request(1, PROMPT, guide=Guide("regex", "[0-9]"), stop_token_ids=(9,), max_tokens=20)
        (outputs,) = run(engine, asked).values()
        assert (ids(outputs)[-1], outputs[-1].finish) == (own, FinishReason.STOP)


def test_a_tokenizer_without_an_end_token_costs_the_guides_and_not_the_load(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with stand_in(monkeypatch, tmp_path, "1.2") as double:
        folder = write_checkpoint(tmp_path / "checkpoint", double.tokenizer)
        (folder / "tokenizer_config.json").write_text("{}", encoding="utf-8")
        (folder / "special_tokens_map.json").unlink(missing_ok=True)
        engine = double.engine(folder)
        assert not engine.info.capabilities & GUIDED
        assert run(engine, request(1, PROMPT))


@pytest.mark.parametrize("profile", ["1.0", "1.2"])
def test_eagle_answers_as_it_is_asked(checkpoint: Checkpoint, profile: str) -> None:
    """Drafts inside the model: some releases can be told to sample there, others take the likeliest token always; a
    log-probability ends the worker in both.
    """
    engine = checkpoint(profile, speculative="eagle3", speculative_model_dir="/draft")
    inside = profile == "1.2"
    assert engine._llm._kwargs["speculative_config"].eagle3_one_model is inside
    (outputs,) = run(engine, request(1, PROMPT, temperature=1.0, seed=3)).values()
    assert ids(outputs) == expected(PROMPT, 8, seed=3)
    assert (Capability.LOGPROBS in engine.info.capabilities) is not inside
    assert (Capability.TOP_LOGPROBS in engine.info.capabilities) is not inside


@pytest.mark.parametrize("profile", RELEASES)
def test_guides_load(checkpoint: Checkpoint, profile: str) -> None:
    """1.0 refuses them beside its overlap scheduler, at load."""
    engine = checkpoint(profile)
    assert engine.info.capabilities >= GUIDED
    assert engine._llm._kwargs.get("disable_overlap_scheduler", False) is (profile == "1.0")
    asked = request(1, PROMPT, guide=Guide("regex", "[0-9]"), stop_token_ids=(FIRST,))
    assert run(engine, asked)[1, 0][-1].finish is FinishReason.STOP
