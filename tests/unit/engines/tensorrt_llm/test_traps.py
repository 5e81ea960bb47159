"""The known traps of TensorRT-LLM (see docs/engines/tensorrt_llm.md): each test fails when one is stepped into."""

from __future__ import annotations

import contextlib
import datetime
import os
import subprocess
import sys
import threading
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from inflight.engines.base import Capability, EngineRefusal, FinishReason, Guide
from inflight.engines.faults import sparingly
from inflight.errors import LoadError
from tests.doubles.stand_in import Install, collect, ids, request, run

pytestmark = pytest.mark.fast

PROMPT = [11, 12, 13, 14]


def configuration(engine: Any) -> Any:
    """The ExecutorConfig that the executor was made with."""
    return engine._executor._config


def test_none_and_numpy_scalars_are_refused_by_nanobind_and_never_sent(install: Install) -> None:
    double = install()
    bindings = double.bindings
    for values in ({"streaming": None}, {"priority": None}, {"streaming": np.bool_(True)}, {"strem": True}):
        with pytest.raises(TypeError, match="incompatible function arguments"):
            bindings.Request([1], 1, **values)
    with pytest.raises(TypeError):
        bindings.Request([np.int32(1)], 1)
    with pytest.raises(TypeError):
        bindings.SamplingConfig(top_k=np.int64(1))
    tokens = list(np.array(PROMPT, dtype=np.int64))
    values = {"temperature": np.float32(0.5), "top_k": np.int32(3), "seed": np.uint64(7), "max_tokens": np.int32(4)}
    (outputs,) = run(double.engine(), request(1, tokens, **values)).values()
    assert len(ids(outputs)) == 4


def test_none_was_taken_before_nanobind(install: Install) -> None:
    assert install("0.21").bindings.Request([1], 1, streaming=None).streaming is False


def test_two_of_the_four_performance_knobs_are_properties(install: Install) -> None:
    double = install()
    with pytest.raises(TypeError):
        double.bindings.ExtendedRuntimePerfKnobConfig(cuda_graph_mode=True)
    engine = double.engine(cuda_graph_mode=True, cuda_graph_cache_size=9, multi_block_mode=False)
    knobs = configuration(engine).extended_runtime_perf_knob_config
    assert (knobs.cuda_graph_mode, knobs.cuda_graph_cache_size, knobs.multi_block_mode) == (True, 9, False)


def test_times_are_timedeltas(install: Install) -> None:
    double = install()
    with pytest.raises(TypeError):
        double.bindings.Request([1], 1, allotted_time_ms=5)
    retention = double.bindings.KvCacheRetentionConfig
    with pytest.raises(TypeError):
        retention.TokenRangeRetentionConfig(0, None, 50, duration_ms=5)
    engine: Any = double.engine(prompt_retention_priority=80, prompt_retention_s=1.5)
    (whole,) = engine._retention.token_range_retention_configs
    assert (whole.priority, whole.duration_ms) == (80, datetime.timedelta(seconds=1.5))
    assert run(engine, request(1, PROMPT))


def test_the_folder_of_a_retention_config_has_a_default_that_its_type_refuses(install: Install) -> None:
    double = install()
    with pytest.raises(TypeError):
        double.bindings.KvCacheRetentionConfig([])
    engine: Any = double.engine(prompt_retention_priority=80)
    assert engine._retention.directory == ""


def test_every_default_that_differs_between_layers_is_set(install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    double = install()
    from trtllm_double import surface  # type: ignore[import-not-found]

    given: dict[str, set[str]] = {}
    bind = surface.Surface._bind

    def spy(self: Any, init: list[dict[str, Any]], args: Any, kwargs: dict[str, Any]) -> Any:
        given.setdefault(init[0]["name"] if init else "", set()).update(kwargs)
        return bind(self, init, args, kwargs)

    monkeypatch.setattr(surface.Surface, "_bind", spy)
    engine: Any = double.engine()
    config = configuration(engine)
    assert {"normalize_log_probs", "enable_chunked_context", "iter_stats_max_iterations", "batching_type"} <= given[
        "max_beam_width"
    ]
    assert {"enable_block_reuse", "free_gpu_memory_fraction"} <= given["enable_block_reuse"]
    assert (config.normalize_log_probs, config.enable_chunked_context) == (True, False)
    assert config.kv_cache_config.free_gpu_memory_fraction == 0.9
    run(engine, request(1, PROMPT))
    assert "exclude_input_from_output" in given["return_log_probs"]


def test_beams_never_stream_increments(install: Install) -> None:
    double = install()
    engine: Any = double.engine(double.folder(max_beam_width=2), max_beam_width=2)
    engine.add(request(1, PROMPT, beam_width=2, num_sequences=2))
    (live,) = engine._live.values()
    with engine._executor._changed:
        sent = [*engine._executor._waiting, *engine._executor._running]
    assert all(item.request.streaming is False for item in sent)
    assert [item.request.sampling_config.length_penalty for item in sent] == [1.0], "the contract's; the library's is 0"
    assert live.request.sampling.beam_width == 2
    found = collect(engine, {(1, 0), (1, 1)})
    assert [len(ids(outputs)) for outputs in found.values()] == [8, 8]


def test_an_id_is_kept_until_the_final_response(install: Install) -> None:
    double = install(step_ms=30)
    engine: Any = double.engine()
    engine.add(request(1, PROMPT, max_tokens=500))
    while not engine.step(0.05):
        pass
    engine.cancel(1)
    assert len(engine._live) == 1, "the final response is still to come"
    found = collect(engine, {(1, 0)})
    assert found[(1, 0)][-1].finish is FinishReason.CANCELLED
    assert not engine._live


def test_responses_are_awaited_with_a_timeout_only(install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    double = install()
    engine: Any = double.engine()
    await_responses = engine._executor.await_responses
    given: list[Any] = []

    def spy(*args: Any, **kwargs: Any) -> Any:
        given.append((args, kwargs))
        return await_responses(*args, **kwargs)

    monkeypatch.setattr(engine._executor, "await_responses", spy)
    run(engine, request(1, PROMPT))
    assert given
    assert all(args == () and isinstance(kwargs["timeout"], datetime.timedelta) for args, kwargs in given)


def test_the_stand_in_hangs_where_the_real_one_does(install: Install) -> None:
    """A number is an id: one that has had everything is answered with an error, one that never was waits."""
    double = install()
    engine: Any = double.engine()
    run(engine, request(1, PROMPT))
    (response,) = engine._executor.await_responses(1)
    assert "has already been processed and was terminated" in response.error_msg

    def wait() -> None:
        with contextlib.suppress(RuntimeError):  # the shutdown's, at the end
            engine._executor.await_responses(5)

    waiting = threading.Thread(target=wait, daemon=True)
    waiting.start()
    waiting.join(0.5)
    assert waiting.is_alive()


def test_nothing_is_forked_once_mpi_is_up(install: Install, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Importing TensorRT-LLM starts MPI, and a process with MPI must not fork: nvidia-smi is asked before."""
    double = install()
    (tmp_path / "bin").mkdir()
    smi = tmp_path / "bin" / "nvidia-smi"
    smi.write_text("#!/bin/sh\necho '0, GPU-1, NVIDIA H100, 9.0, 70000'\n")
    smi.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=os.pathsep)
    imported: list[bool] = []

    class Spy(subprocess.Popen):  # type: ignore[type-arg]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            imported.append("tensorrt_llm" in sys.modules)
            super().__init__(*args, **kwargs)

    monkeypatch.setattr(subprocess, "Popen", Spy)
    monkeypatch.setattr(os, "fork", lambda: imported.append(True))
    assert run(double.engine(), request(1, PROMPT))
    assert "tensorrt_llm" in sys.modules
    assert imported
    assert not any(imported)


def test_statistics_are_drained_and_may_be_off(install: Install) -> None:
    double = install()
    engine: Any = double.engine()
    run(engine, request(1, PROMPT))
    assert len(engine._executor.get_latest_iteration_stats()) <= 2
    off: Any = double.engine(iter_stats_max_iterations=0)
    run(off, request(1, PROMPT))
    assert off.stats().blocks_max == 0


def test_sampling_without_top_k_and_top_p_would_be_greedy(install: Install) -> None:
    double = install()
    bindings = double.bindings
    engine: Any = double.engine()
    greedy = bindings.Request(PROMPT, 4, sampling_config=bindings.SamplingConfig(temperature=1.0, seed=3))
    number = engine._executor.enqueue_request(greedy)
    (response,) = engine._executor.await_responses(number, datetime.timedelta(seconds=5))
    assert response.result.output_token_ids[0][len(PROMPT) :] == double.expected(PROMPT, 4)
    (outputs,) = run(engine, request(1, PROMPT, temperature=1.0, seed=3, max_tokens=4)).values()
    assert ids(outputs) == double.expected(PROMPT, 4, seed=3)


def test_a_misspelt_attribute_is_silent_on_executor_config(install: Install) -> None:
    """So attributes are never assigned there: everything goes through the constructor, which refuses."""
    bindings = install().bindings
    config = bindings.ExecutorConfig()
    config.enable_chunked_contxt = True
    with pytest.raises(AttributeError):
        bindings.KvCacheConfig().enable_blok_reuse = True
    import inflight.engines.tensorrt_llm.config as ours

    source = Path(ours.__file__).read_text(encoding="utf-8")
    assert "configuration." not in source


def test_the_tokenizer_is_not_in_what_trtllm_build_writes(install: Install) -> None:
    double = install()
    folder = double.folder(with_manifest=False)
    for name in ("tokenizer.json", "generation_config.json"):
        (folder / name).unlink()
    (folder / "tokenizer_config.json").write_text('{"eos_token": "<|eos|>"}')
    with pytest.raises(LoadError, match="trtllm-build does not"):
        double.engine(folder)
    (folder / "tokenizer_config.json").unlink()
    with pytest.raises(LoadError, match="does not say which token ends a text"):
        double.engine(folder)


def test_the_end_token_can_come_from_the_tokenizer(install: Install) -> None:
    double = install()
    folder = double.folder(with_manifest=False)
    (folder / "generation_config.json").unlink()
    (folder / "tokenizer_config.json").write_text('{"eos_token": {"content": "<|eos|>"}}')
    assert double.engine(folder).info.stop_token_ids == (1,)


def test_decoding_modes_reach_the_configuration(install: Install) -> None:
    double = install()
    medusa = double.folder("medusa", speculative_decoding_mode=4, max_draft_len=3)
    engine = double.engine(medusa, medusa_choices="{0}, {0, 1}")
    decoding = configuration(engine).decoding_config
    assert (decoding.decoding_mode.name, decoding.medusa_choices) == ("Medusa", [[0], [0, 1]])
    assert Capability.SPECULATIVE in engine.info.capabilities
    assert Capability.GUIDED_JSON not in engine.info.capabilities
    lookahead = double.engine(
        double.folder("lookahead", speculative_decoding_mode=8, max_draft_len=39),
        decoding_mode="lookahead",
        lookahead_window_size=7,
        lookahead_ngram_size=5,
        lookahead_verification_set_size=3,
    )
    config = configuration(lookahead).decoding_config.lookahead_decoding_config
    assert (config.max_window_size, config.max_ngram_size, config.max_verification_set_size) == (7, 5, 3)
    assert configuration(double.engine()).decoding_config is None


def test_a_tokenizer_without_an_end_token_costs_no_load(install: Install) -> None:
    """TensorRT-LLM's own facts have None there, which its binding refuses; the model's end tokens stand in for it."""
    double = install()
    folder = double.folder(with_manifest=False)
    (folder / "generation_config.json").write_text('{"eos_token_id": [1, 7]}', encoding="utf-8")
    (folder / "tokenizer_config.json").write_text("{}", encoding="utf-8")
    engine = double.engine(folder)
    assert configuration(engine).guided_decoding_config.stop_token_ids == [1, 7]
    assert Capability.GUIDED_JSON in engine.info.capabilities


def test_xgrammars_own_words_stay_in_the_log(
    install: Install, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(_: str) -> None:
        raise RuntimeError("[12:00:01] /src/xgrammar/cpp/grammar_parser.cc:88: EBNF parser error at line 1: (expected")

    names = dict.fromkeys(("from_json_schema", "from_regex", "from_ebnf"), staticmethod(fails))
    monkeypatch.setitem(sys.modules, "xgrammar", types.SimpleNamespace(Grammar=type("Grammar", (), names)))
    monkeypatch.setattr(sparingly, "_next", {})
    engine = install().engine()
    for number, (kind, text) in enumerate({"json_schema": "{}", "regex": "(", "ebnf_grammar": "("}.items()):
        with pytest.raises(EngineRefusal, match=r"is no .* that the engine's grammar compiler takes") as refusal:
            engine.add(request(number, PROMPT, guide=Guide(kind, text)))
        assert refusal.value.parameter == "guided_decoding_guide"
        assert "parser" not in str(refusal.value)
    assert "EBNF parser error" in caplog.text


def test_penalties_count_the_prompt_unless_they_are_told_not_to(install: Install) -> None:
    """Presence and frequency mean the answer on every engine; the library's default is prompt and answer. Only newer
    releases have the parameter.
    """
    from inflight.engines.tensorrt_llm.sampling import sampling_config

    sampling = request(1, PROMPT, presence_penalty=0.5, temperature=1.0).sampling
    assert not hasattr(sampling_config(install().bindings, sampling, 4), "prompt_ignore_length")

    class Newer:
        prompt_ignore_length = None

        def __init__(self, **values: Any) -> None:
            self.values = values

    newer = types.SimpleNamespace(SamplingConfig=Newer)
    assert sampling_config(newer, sampling, 4).values["prompt_ignore_length"] == 4
    plain = request(1, PROMPT, repetition_penalty=1.2, temperature=1.0).sampling
    assert "prompt_ignore_length" not in sampling_config(newer, plain, 4).values
