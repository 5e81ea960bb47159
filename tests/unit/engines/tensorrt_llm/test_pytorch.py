"""Hugging Face-style checkpoints through tensorrt_llm.LLM, on the stand-in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from inflight.engines.base import Capability, EngineRefusal, FinishReason, Guide
from inflight.engines.tensorrt_llm.llmapi import ENDED_BY_LLM
from inflight.errors import LoadError
from tests.doubles.hf_adapters import write_hf_adapter
from tests.doubles.stand_in import Checkpoint, collect, expected, ids, request, run

pytestmark = pytest.mark.fast

PROMPT = [11, 12, 13, 14]


@pytest.fixture
def default_release() -> str:
    """The last one."""
    return "1.3"


@pytest.mark.parametrize("profile", ["1.0", "1.1", "1.2", "1.3"])
def test_tokens_in_every_release_that_has_it(checkpoint: Checkpoint, profile: str) -> None:
    engine = checkpoint(profile)
    (outputs,) = run(engine, request(1, PROMPT, max_tokens=40)).values()
    assert ids(outputs) == expected(PROMPT, 40), "not the 32 tokens that LLM makes by default"
    assert outputs[-1].finish is FinishReason.LENGTH
    assert engine.info.max_seq_len == 2048
    kwargs = engine._llm._kwargs
    sampler = {"1.0": "enable_trtllm_sampler", "1.1": "sampler_type", "1.2": "sampler_type"}.get(profile)
    assert [name for name in ("enable_trtllm_sampler", "sampler_type") if name in kwargs] == (
        [sampler] if sampler else []
    )


def test_greedy_and_sampled_and_several(checkpoint: Checkpoint) -> None:
    engine = checkpoint()
    found = run(
        engine, request(1, PROMPT, num_sequences=2), request(2, PROMPT, temperature=1.0, seed=3, num_sequences=2)
    )
    assert ids(found[(1, 0)]) == ids(found[(1, 1)]) == expected(PROMPT, 8)
    assert [ids(found[(2, index)]) for index in (0, 1)] == [expected(PROMPT, 8, seed=3, sequence=n) for n in (0, 1)]


def test_log_probabilities_of_the_likeliest(checkpoint: Checkpoint) -> None:
    (outputs,) = run(checkpoint(), request(1, PROMPT, logprobs=2)).values()
    for output in outputs:
        assert output.logprobs is not None
        assert output.top_logprobs is not None
        assert len(output.logprobs) == len(output.top_logprobs) == len(output.token_ids)
        assert all(
            len(entry) == 2 and token in entry
            for token, entry in zip(output.token_ids, output.top_logprobs, strict=True)
        )


@pytest.mark.parametrize("profile", ["1.0", "1.2", "1.3"])
def test_beams_come_at_the_end(checkpoint: Checkpoint, profile: str) -> None:
    engine = checkpoint(profile, max_beam_width=3)
    engine.add(request(1, PROMPT, beam_width=3, num_sequences=2))
    assert engine._live[1].output.sampling_params.length_penalty == 1.0, "the contract's; the library's is 0"
    found = collect(engine, {(1, 0), (1, 1)})
    assert [len(found[(1, index)]) for index in (0, 1)] == [1, 1]
    assert [len(ids(found[(1, index)])) for index in (0, 1)] == [8, 8]
    for width in (1, 2):  # the PyTorch flow has one width for all
        with pytest.raises(EngineRefusal, match="searches with 3 beams") as refusal:
            engine.add(request(2, PROMPT, beam_width=width))
        assert refusal.value.parameter == "beam_width"


def test_stop_tokens_guides_and_min_tokens(checkpoint: Checkpoint) -> None:
    engine = checkpoint()
    tokens = expected(PROMPT, 8)
    (outputs,) = run(engine, request(1, PROMPT, stop_token_ids=(1, tokens[2]))).values()
    assert (ids(outputs), outputs[-1].finish) == (tokens[:3], FinishReason.STOP)
    (outputs,) = run(engine, request(2, PROMPT, stop_token_ids=(1, tokens[1], tokens[5]), min_tokens=3)).values()
    assert (ids(outputs), outputs[-1].finish) == (tokens[:6], FinishReason.STOP)
    guided = request(3, PROMPT, guide=Guide("choice", '["yes"]'), max_tokens=20, stop_token_ids=(1,))
    (outputs,) = run(engine, guided).values()
    assert (ids(outputs)[-1], outputs[-1].finish) == (1, FinishReason.STOP)


def test_cancel_and_errors(checkpoint: Checkpoint) -> None:
    engine = checkpoint(double={"step_ms": 5})
    engine.add(request(1, PROMPT, max_tokens=500, temperature=1.0, num_sequences=2))
    while not engine.step(0.05):
        pass
    engine.cancel(1)
    engine.cancel(1)
    found = collect(engine, {(1, 0), (1, 1)})
    assert {outputs[-1].finish for outputs in found.values()} == {FinishReason.CANCELLED}
    with pytest.raises(EngineRefusal, match=r"^has 9000 tokens and the engine takes 8192 .*enable_chunked") as refusal:
        engine.add(request(2, [5] * 9000))
    assert refusal.value.parameter == "input_ids"
    (outputs,) = run(engine, request(3, [5] * 3000)).values()
    assert outputs[-1].error == ENDED_BY_LLM, "what is beyond the context LLM says where its answer is read"
    assert run(engine, request(4, PROMPT, max_tokens=2))


def test_a_request_that_fails_ends_alone(checkpoint: Checkpoint, caplog: pytest.LogCaptureFixture) -> None:
    engine = checkpoint(double={"error_at": 3})
    (outputs,) = run(engine, request(1, PROMPT)).values()
    assert outputs[-1].error == ENDED_BY_LLM
    assert "the stand-in was told to answer with an error" in caplog.text
    assert run(engine, request(2, PROMPT))


def test_what_it_cannot_do_is_refused_before(checkpoint: Checkpoint) -> None:
    new = checkpoint("1.3").info.capabilities
    assert {Capability.MIN_P, Capability.CACHE_SALT, Capability.TOP_LOGPROBS} <= new
    assert not new & {Capability.BAD_WORDS, Capability.LORA, Capability.BEAM_SEARCH}
    assert Capability.MIN_P not in checkpoint("1.2").info.capabilities


def test_adapters_by_name(checkpoint: Checkpoint, tmp_path: Path) -> None:
    write_hf_adapter(tmp_path / "lora" / "red")
    engine = checkpoint(lora_dir=str(tmp_path / "lora"))
    (outputs,) = run(engine, request(1, PROMPT, lora_name="red")).values()
    assert ids(outputs) == expected(PROMPT, 8, adapter=1)
    with pytest.raises(EngineRefusal, match="the adapters of this model are red"):
        engine.add(request(2, PROMPT, lora_name="blue"))


def test_loads_that_fail_say_why(checkpoint: Checkpoint) -> None:
    with pytest.raises(LoadError, match=r"refuses its arguments \(LLM got invalid argument: frobnicate\)"):
        checkpoint(llm_arguments={"frobnicate": 1})
    with pytest.raises(LoadError, match=r"CUDA out of memory.*raise tensor_parallel_size"):
        checkpoint(double={"oom_at_load": True})


def test_close_with_work_under_way_returns(checkpoint: Checkpoint) -> None:
    engine = checkpoint(double={"step_ms": 5})
    engine.add(request(1, PROMPT, max_tokens=500))
    engine.step(0.05)
    engine.close()
    engine.close = lambda: None


@pytest.mark.parametrize(("profile", "tells"), [("1.0", False), ("1.2", True), ("1.3", True)])
def test_how_much_of_a_prompt_was_in_the_cache(checkpoint: Checkpoint, profile: str, tells: bool) -> None:
    """Of the first sequence, although the others' responses overwrite what LLM says; rounded down to whole blocks."""
    engine = checkpoint(profile, max_seq_len=512)
    long = list(range(20, 320))

    def reused(request_id: int, prompt: list[int], **more: Any) -> list[int | None]:
        found = run(engine, request(request_id, prompt, **{"perf_metrics": True, "max_tokens": 4, **more}))
        outputs = [output for sequence in found.values() for output in sequence]
        assert all(output.sequence_index == 0 for output in outputs if output.reused_blocks is not None)
        return [output.reused_blocks for output in outputs if output.reused_blocks is not None]

    sampled = {"temperature": 1.0, "num_sequences": 3, "seed": 1}
    assert reused(1, long, **sampled) == [0] * tells
    assert reused(2, long) == [299 // 32] * tells
    assert reused(3, [*long[:70], 9, 9, 9]) == [70 // 32] * tells
    assert reused(4, long, perf_metrics=False) == []


def test_without_reuse_nothing_was_in_the_cache(checkpoint: Checkpoint) -> None:
    engine = checkpoint("1.2", enable_kv_cache_reuse=False)
    for request_id in (1, 2):
        (outputs,) = run(engine, request(request_id, list(range(20, 120)), perf_metrics=True)).values()
        assert [output.reused_blocks for output in outputs if output.reused_blocks is not None] == [0]
