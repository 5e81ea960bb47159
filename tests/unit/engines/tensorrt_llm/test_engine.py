"""Compiled engines behind the seam, on the stand-in: what every request gets, and how each way to end ends."""

from __future__ import annotations

import json
import time
import types
from typing import Any

import msgspec
import pytest

from inflight import manifest
from inflight.engines.base import Capability, EngineBroken, EngineRefusal, FinishReason, Guide
from inflight.engines.tensorrt_llm.iterations import IN_A_FAILED_ITERATION
from tests.doubles.stand_in import Install, collect, ids, request, run

pytestmark = pytest.mark.fast

TOGETHER = "the engine refuses this request: it does not take these values together; the server's log has the reason"
PROMPT = [11, 12, 13, 14]


@pytest.mark.parametrize("profile", ["0.21", "1.0", "1.1", "1.2"])
def test_tokens_come_as_increments_without_the_prompt_in_every_release(install: Install, profile: str) -> None:
    double = install(profile)
    engine = double.engine()
    (outputs,) = run(engine, request(1, PROMPT, max_tokens=6)).values()
    assert ids(outputs) == double.expected(PROMPT, 6)
    assert len(outputs) > 1
    assert outputs[-1].finish is FinishReason.LENGTH
    assert (Capability.CACHE_SALT in engine.info.capabilities) == (profile in ("1.1", "1.2"))


def test_what_it_says_about_itself(install: Install) -> None:
    double = install()
    info = double.engine(double.folder(max_batch_size=12, max_seq_len=700, max_input_len=600), 5).info
    assert (info.name, info.version, info.max_running, info.max_seq_len) == ("tensorrt_llm", "1.2.1", 5, 700)
    assert (info.block_size, info.blocks_total, info.vocab_size, info.stop_token_ids) == (32, 0, 20_000, (1,))
    assert Capability.BEAM_SEARCH not in info.capabilities
    assert Capability.LORA not in info.capabilities
    assert {Capability.NEVER_PREEMPTS, Capability.PREFIX_CACHE, Capability.GUIDED_JSON} <= info.capabilities


def test_a_policy_that_evicts_is_told(install: Install) -> None:
    engine = install().engine(batch_scheduler_policy="max_utilization")
    assert Capability.NEVER_PREEMPTS not in engine.info.capabilities


def test_an_answer_that_could_not_begin_anew_is_refused(install: Install) -> None:
    """A sequence that was evicted comes back with its answer in its prompt; TensorRT-LLM takes no streamed request for
    which that would be too long, unless prompts are cut into chunks.
    """
    double = install()
    folder = double.folder(max_num_tokens=64)
    engine = double.engine(folder, batch_scheduler_policy="max_utilization")
    assert run(engine, request(1, [7] * 60, max_tokens=5))
    with pytest.raises(EngineRefusal, match="may have 65 tokens at most") as refusal:
        engine.add(request(2, [7] * 60, max_tokens=6))
    assert refusal.value.parameter == "max_tokens"
    chunked = double.engine(folder, batch_scheduler_policy="max_utilization", enable_chunked_context=True)
    assert run(chunked, request(3, [7] * 60, max_tokens=6))


def test_sampling_names_what_greedy_would_be_without(install: Install) -> None:
    double = install()
    engine = double.engine()
    sampled = [run(engine, request(n, PROMPT, temperature=1.0, seed=n)) for n in (1, 2)]
    texts = [ids(found[(n, 0)]) for n, found in zip((1, 2), sampled, strict=True)]
    assert texts[0] != texts[1]
    assert texts[0] == double.expected(PROMPT, 8, seed=1)
    assert double.expected(PROMPT, 8) not in texts
    again = run(engine, request(9, PROMPT, temperature=1.0, seed=1))
    assert ids(again[(9, 0)]) == texts[0]


def test_several_sequences_each_end_once(install: Install) -> None:
    double = install()
    found = run(double.engine(), request(1, PROMPT, temperature=0.7, seed=5, num_sequences=3))
    assert [ids(found[(1, index)]) for index in range(3)] == [
        double.expected(PROMPT, 8, seed=5, sequence=index) for index in range(3)
    ]


def test_log_probabilities_are_those_of_the_new_tokens(install: Install) -> None:
    """The bindings hand out all log-probabilities so far with every increment."""
    double = install()
    (outputs,) = run(double.engine(), request(1, PROMPT, logprobs=0)).values()
    assert all(output.logprobs is not None and len(output.logprobs) == len(output.token_ids) for output in outputs)
    values = [value for output in outputs for value in output.logprobs or []]
    assert len(set(values)) > 4
    whole = run(double.engine(double.folder(), 0), request(1, PROMPT, logprobs=0, max_tokens=8))
    assert values == [value for output in whole[(1, 0)] for value in output.logprobs or []]


def test_beams_come_whole_best_first(install: Install) -> None:
    double = install()
    engine = double.engine(double.folder(max_beam_width=4), max_beam_width=4)
    assert engine.info.max_beam_width == 4
    found = run(engine, request(1, PROMPT, beam_width=4, num_sequences=3, logprobs=0))
    assert [len(found[(1, index)]) for index in range(3)] == [1, 1, 1]
    scores = [sum(found[(1, index)][0].logprobs or []) for index in range(3)]
    assert scores == sorted(scores, reverse=True)
    assert len({tuple(ids(outputs)) for outputs in found.values()}) == 3


def test_beam_widths_take_turns(install: Install) -> None:
    """TensorRT-LLM runs one beam width at a time: another one waits until all that run have ended, and then the decoder
    is made anew, so that a model with beams samples as well.
    """
    double = install()
    engine = double.engine(double.folder(max_beam_width=4), max_beam_width=4)
    engine.add(request(1, PROMPT, max_tokens=60, temperature=0.7, seed=3))
    while not engine.step(0.05):
        pass
    engine.add(request(2, PROMPT, beam_width=2, num_sequences=2))
    engine.add(request(3, [*PROMPT, 9], temperature=1.0, seed=4))
    order: list[int] = []
    found: dict[tuple[int, int], list[int]] = {}
    while len(order) < 4:
        for output in engine.step(0.05):
            found.setdefault((output.request_id, output.sequence_index), []).extend(output.token_ids)
            order += [output.request_id] if output.finish else []
    assert order == [1, 2, 2, 3]
    assert found[(3, 0)] == double.expected([*PROMPT, 9], 8, seed=4)
    assert [len(found[(2, index)]) for index in (0, 1)] == [8, 8]


def test_the_end_token_ends_with_stop(install: Install) -> None:
    double = install(eos_every=3)
    (outputs,) = run(double.engine(), request(1, PROMPT, stop_token_ids=(1,))).values()
    assert (ids(outputs), outputs[-1].finish) == ([*double.expected(PROMPT, 3), 1], FinishReason.STOP)
    (outputs,) = run(double.made[0], request(3, PROMPT, stop_token_ids=(1,), logprobs=0)).values()
    values = [value for output in outputs for value in output.logprobs or []]
    assert len(values) == 4, "the end token counts, and has a log-probability"
    assert -3.0 < values[-1] < 0.0
    (outputs,) = run(double.made[0], request(2, PROMPT)).values()
    assert outputs[-1].finish is FinishReason.LENGTH, "ignore_eos sends no end token"


def test_several_stop_tokens(install: Install) -> None:
    double = install()
    stop = double.expected(PROMPT, 4)[3]
    (outputs,) = run(double.engine(), request(1, PROMPT, stop_token_ids=(1, stop))).values()
    assert (ids(outputs)[-1], outputs[-1].finish, len(ids(outputs))) == (stop, FinishReason.STOP, 4)


def test_min_tokens_holds_back_every_stop_token(install: Install) -> None:
    """TensorRT-LLM holds back only the end token: the others are looked for here."""
    double = install()
    tokens = double.expected(PROMPT, 8)
    engine = double.engine()
    (outputs,) = run(engine, request(1, PROMPT, stop_token_ids=(1, tokens[1], tokens[5]), min_tokens=3)).values()
    assert (ids(outputs), outputs[-1].finish) == (tokens[:6], FinishReason.STOP)
    assert run(engine, request(2, PROMPT, max_tokens=2)), "the engine goes on"


def test_bad_words_of_several_tokens(install: Install) -> None:
    double = install()
    tokens = double.expected(PROMPT, 8)
    word = (tokens[2], tokens[3])
    (outputs,) = run(double.engine(), request(1, PROMPT, bad_words=(word,))).values()
    assert ids(outputs) == double.expected(PROMPT, 8, bad_words=[word])
    assert ids(outputs)[:3] == tokens[:3]
    assert ids(outputs)[3] != tokens[3]


@pytest.mark.parametrize(
    ("kind", "text", "answer"),
    [
        ("json", "", "{}"),
        ("json_schema", '{"type": "object", "properties": {"a": {"enum": ["x"]}}, "required": ["a"]}', '{"a": "x"}'),
        ("regex", "[a-z]{3}", "aaa"),
        ("ebnf_grammar", 'root ::= "yes" | "no"', "no"),
        ("choice", '["maybe", "no"]', "no"),
    ],
)
def test_guides(install: Install, kind: str, text: str, answer: str) -> None:
    from tokenizers import Tokenizer

    double = install()
    (outputs,) = run(double.engine(), request(1, PROMPT, guide=Guide(kind, text), max_tokens=40)).values()
    assert Tokenizer.from_file(str(double.tokenizer / "tokenizer.json")).decode(ids(outputs)) == answer
    assert outputs[-1].finish is FinishReason.STOP


@pytest.mark.parametrize(("kind", "text"), [("json_schema", "{"), ("choice", "[]"), ("choice", "x"), ("regex", "(")])
def test_a_guide_that_is_none_is_the_clients_mistake(install: Install, kind: str, text: str) -> None:
    engine = install().engine()
    with pytest.raises(EngineRefusal):
        engine.add(request(1, PROMPT, guide=Guide(kind, text)))
    assert run(engine, request(1, PROMPT))


def test_guided_decoding_can_be_off(install: Install) -> None:
    engine = install().engine(guided_decoding_backend="none")
    assert Capability.GUIDED_JSON not in engine.info.capabilities


def test_priorities_reach_the_scheduler(install: Install) -> None:
    double = install()
    engine = double.engine(double.folder(max_batch_size=1))
    engine.add(request(1, PROMPT, max_tokens=300))
    while not engine.step(0.05):
        pass
    engine.add(request(2, PROMPT, priority=-100))
    engine.add(request(3, PROMPT, priority=100))
    first: list[int] = []
    while len(first) < 3:
        first += [output.request_id for output in engine.step(0.05) if output.finish]
    assert first == [1, 3, 2]


def test_salts_keep_cached_blocks_apart(install: Install) -> None:
    engine = install().engine()
    prompt = list(range(300, 400))
    for request_id, salt in enumerate(["a", "a", "b", None, None], 1):
        run(engine, request(request_id, prompt, cache_salt=salt, max_tokens=60))
    # Three whole blocks of 32: the second of salt a and the second without a salt find them.
    assert engine.stats().reused_tokens_total == 2 * 3 * 32


def test_who_asks_is_told_how_many_blocks_were_reused_before_the_end(install: Install) -> None:
    engine = install().engine()
    prompt = list(range(300, 400))
    found = []
    for request_id in (1, 2, 3):
        asked = request(request_id, prompt, max_tokens=8, perf_metrics=request_id < 3)
        (outputs,) = run(engine, asked).values()
        told = [output.reused_blocks for output in outputs if output.reused_blocks is not None]
        assert all(output.finish is None for output in outputs if output.reused_blocks is not None)
        found.append(told)
    assert found == [[0], [3], []]


def test_a_prompt_beyond_the_engine_is_refused_in_our_words(install: Install) -> None:
    double = install()
    short = {"max_num_tokens": 64, "max_input_len": 32, "max_seq_len": 100}
    asked = double.engine(double.folder("asked", **short))
    with pytest.raises(EngineRefusal, match=r"takes 32 at most in one prompt \(the max_input_len of its build\)"):
        asked.add(request(1, [7] * 33))
    engine = double.engine(double.folder(with_manifest=False, **short))
    with pytest.raises(EngineRefusal, match=r"has 65 tokens and the engine takes 64 at most in one prompt") as refusal:
        engine.add(request(1, [7] * 65))
    assert "max_num_tokens" in str(refusal.value)
    assert refusal.value.parameter == "input_ids"
    assert run(engine, request(2, [7] * 64)), "max_input_len means nothing to TensorRT-LLM itself"
    lower = double.engine(double.folder("lower"), max_num_tokens=50)
    with pytest.raises(EngineRefusal, match="takes 50 at most"):
        lower.add(request(1, [7] * 51))


def test_in_chunks_a_prompt_may_be_as_long_as_the_context(install: Install) -> None:
    double = install()
    engine = double.engine(double.folder(max_num_tokens=64, max_seq_len=100), enable_chunked_context=True)
    (outputs,) = run(engine, request(1, [7] * 99, max_tokens=1)).values()
    assert outputs[-1].finish is FinishReason.LENGTH
    with pytest.raises(EngineRefusal, match=r"takes 99 at most in one prompt \(max_seq_len\)"):
        engine.add(request(2, [7] * 100))


@pytest.mark.parametrize(("mode", "drafts"), [(2, 5), (4, 7), (8, 15), (32, 9)])
def test_the_context_leaves_room_for_drafts(install: Install, mode: int, drafts: int) -> None:
    """The builder added it to max_seq_len; an answer that took it would end that much early, without a word."""
    double = install()
    engine = double.engine(
        double.folder(max_seq_len=100 + drafts, speculative_decoding_mode=mode, max_draft_len=drafts)
    )
    assert engine.info.max_seq_len == 100
    (outputs,) = run(engine, request(1, [7] * 60, max_tokens=40)).values()
    assert (len(ids(outputs)), outputs[-1].finish) == (40, FinishReason.LENGTH)


def test_an_engine_built_for_lookahead_serves_without_its_three_sizes(install: Install) -> None:
    double = install()
    folder = double.folder(speculative_decoding_mode=8, max_draft_len=15)
    engine: Any = double.engine(folder)
    config = engine._executor._config.decoding_config.lookahead_decoding_config
    assert (config.max_window_size, config.max_ngram_size, config.max_verification_set_size) == (4, 3, 4)
    assert config.calculate_speculative_resource()[2] == 15
    assert run(engine, request(1, PROMPT))[1, 0][-1].finish is FinishReason.LENGTH
    partly: Any = double.engine(folder, lookahead_window_size=2)
    assert partly._executor._config.decoding_config.lookahead_decoding_config.max_window_size == 2


def test_the_windows_of_the_manifest_reach_the_executor(install: Install) -> None:
    double = install()
    folder = double.folder()
    described = manifest.read(folder)
    limits = msgspec.structs.replace(described.limits, max_attention_window=[512, 2048])
    manifest.write(folder, msgspec.structs.replace(described, limits=limits))
    engine: Any = double.engine(folder)
    assert engine._executor._config.kv_cache_config.max_attention_window == [512, 2048]
    told: Any = double.engine(folder, max_attention_window_size=[100])
    assert told._executor._config.kv_cache_config.max_attention_window == [100]
    plain: Any = double.engine(double.folder("plain"))
    assert plain._executor._config.kv_cache_config.max_attention_window is None


def test_a_pair_shares_the_memory_of_its_gpu(install: Install) -> None:
    """The large engine took nine tenths of what was free, and then the small one's weights had no room."""
    double = install()
    large = double.folder("large", speculative_decoding_mode=2, max_draft_len=5)
    small = double.folder("small")
    for folder, weights in ((large, 40.0), (small, 8.0)):
        (folder / "double.json").write_text(json.dumps({"gpu_gib": 80.0, "weights_gib": weights}))
    engine: Any = double.engine(large, draft_engine_dir=str(small))
    assert run(engine, request(1, PROMPT, max_tokens=20))
    fractions = [
        each._config.kv_cache_config.free_gpu_memory_fraction for each in (engine._engine._executor, engine._draft)
    ]
    assert fractions == [0.45, 0.9], "the caches of two engines that say nothing of their layers count alike"


def test_the_small_engine_of_a_pair_has_limits_of_its_own(install: Install) -> None:
    double = install()
    large = double.folder("large", speculative_decoding_mode=2, max_draft_len=5)
    small = double.folder("small", max_seq_len=64, max_num_tokens=64, max_batch_size=2)
    engine: Any = double.engine(large, draft_engine_dir=str(small), max_batch_size=8, max_num_tokens=4096)
    found = run(engine, request(1, [7] * 60, max_tokens=20), request(2, PROMPT, max_tokens=20))
    assert ids(found[1, 0]) == double.expected([7] * 60, 20)
    assert ids(found[2, 0]) == double.expected(PROMPT, 20)
    assert engine.stats().draft_tokens_total == 16, "the longer one went to the large engine alone"


@pytest.mark.parametrize("how", ["raise", "response"])
def test_limits_that_only_tensorrt_llm_knows(install: Install, how: str, caplog: pytest.LogCaptureFixture) -> None:
    """They come as a response with an error, or out of enqueue_request: both end the request and nothing else."""
    double = install(errors=how)
    engine = double.engine()
    odd = request(1, PROMPT, stop_token_ids=(20_001,))
    if how == "raise":
        with pytest.raises(EngineRefusal, match="does not take these values together"):
            engine.add(odd)
    else:
        (outputs,) = run(engine, odd).values()
        assert outputs[-1].error == TOGETHER
        assert outputs[-1].refusal
    assert "EndId (20001) is not within acceptable range" in caplog.text
    assert run(engine, request(2, PROMPT))


@pytest.mark.parametrize("mode", ["top_k", "top_p", "top_k_top_p"])
def test_a_decoding_mode_leaves_no_request_without_tokens(install: Install, mode: str) -> None:
    double = install()
    engine = double.engine(decoding_mode=mode)
    (greedy,) = run(engine, request(1, PROMPT)).values()
    (sampled,) = run(engine, request(2, PROMPT, temperature=1.0, seed=3, top_p=0.9)).values()
    assert (ids(greedy), ids(sampled)) == (double.expected(PROMPT, 8), double.expected(PROMPT, 8, seed=3))


def test_the_library_would_clip_top_k(install: Install) -> None:
    engine: Any = install().engine()
    sent: list[Any] = []
    enqueue = engine._executor.enqueue_request
    engine._executor.enqueue_request = lambda made: (sent.append(made.sampling_config.top_k), enqueue(made))[1]
    for number, top_k in enumerate((1024, 20_000, 99_999), 1):
        assert run(engine, request(number, PROMPT, temperature=1.0, top_k=top_k))
    assert sent == [1024, 0, 0]
    with pytest.raises(EngineRefusal, match="is 1025 and this engine chooses among 1024 tokens at most") as refusal:
        engine.add(request(9, PROMPT, temperature=1.0, top_k=1025))
    assert refusal.value.parameter == "top_k"


def test_beams_without_statistics_are_no_stall(install: Install, caplog: pytest.LogCaptureFixture) -> None:
    double = install(step_ms=20)
    folder = double.folder(max_beam_width=2)
    engine = double.engine(folder, max_beam_width=2, iter_stats_max_iterations=0, stall_timeout_ms=100)
    found = run(engine, request(1, PROMPT, beam_width=2, num_sequences=2, max_tokens=20))
    assert found[1, 0][-1].finish is FinishReason.LENGTH
    assert "a stall of it is not noticed" in caplog.text


def test_cancel_drains_the_final_response(install: Install) -> None:
    engine = install().engine()
    engine.add(request(1, PROMPT, max_tokens=1000, num_sequences=2, temperature=1.0))
    while not engine.step(0.05):
        pass
    engine.cancel(1)
    engine.cancel(1)
    engine.cancel(77)
    found = {}
    for place, outputs in collect(engine, {(1, 0), (1, 1)}).items():
        found[place] = outputs[-1].finish
    assert set(found.values()) == {FinishReason.CANCELLED}
    assert engine.stats().blocks_used == 0
    assert run(engine, request(2, PROMPT))


def test_cancel_of_a_request_that_waits(install: Install) -> None:
    double = install()
    engine = double.engine(double.folder(max_batch_size=1))
    engine.add(request(1, PROMPT, max_tokens=100))
    engine.add(request(2, PROMPT))
    engine.cancel(2)
    found = collect(engine, {(1, 0), (2, 0)})
    assert (ids(found[(2, 0)]), found[(2, 0)][-1].finish) == ([], FinishReason.CANCELLED)


def test_enqueue_that_raises_harms_nobody_else(install: Install, caplog: pytest.LogCaptureFixture) -> None:
    engine = install(enqueue_raises_at=2).engine()
    engine.add(request(1, PROMPT, max_tokens=50))
    with pytest.raises(EngineRefusal, match="does not take these values together; the server's log has the reason"):
        engine.add(request(2, PROMPT))
    assert "told to raise" in caplog.text
    assert collect(engine, {(1, 0)})[(1, 0)][-1].finish is FinishReason.LENGTH


def test_a_response_with_an_error_ends_every_sequence(install: Install, caplog: pytest.LogCaptureFixture) -> None:
    """It comes before the first token: TensorRT-LLM does not take the request. The log has its words."""
    engine = install(error_at=1).engine()
    found = run(engine, request(1, PROMPT, num_sequences=2, temperature=1.0))
    assert [(outputs[-1].error, outputs[-1].refusal) for outputs in found.values()] == [(TOGETHER, True)] * 2
    assert "the stand-in was told to answer with an error" in caplog.text


def test_what_a_late_refusal_names_the_client_reads_by_its_own_name(install: Install) -> None:
    engine = install(error_at=1, error_words="Prompt length (9) exceeds maxInputLen (8)").engine()
    (outputs,) = run(engine, request(1, PROMPT)).values()
    assert outputs[-1].error == (
        f"input_ids has {len(PROMPT)} tokens, which the tensorrt_llm engine does not take in this request; change it"
    )


def test_a_cuda_context_that_is_lost_ends_the_engine(install: Install) -> None:
    """TensorRT-LLM ends the active requests and goes on, and every iteration fails from then on."""
    engine = install(break_at=5).engine()
    engine.add(request(1, PROMPT, max_tokens=50))
    with pytest.raises(EngineBroken, match="illegal memory access"):
        collect(engine, {(1, 0)})


def test_iterations_that_fail_one_after_the_other_end_the_engine(
    install: Install, caplog: pytest.LogCaptureFixture
) -> None:
    engine = install(break_at=5, break_words="the scheduler is confused").engine()
    found = run(engine, request(1, PROMPT, max_tokens=50))
    assert (found[1, 0][-1].error, found[1, 0][-1].refusal) == (IN_A_FAILED_ITERATION, False)
    assert "the scheduler is confused" in caplog.text
    run(engine, request(2, PROMPT))
    with pytest.raises(EngineBroken, match="the scheduler is confused"):
        run(engine, request(3, PROMPT))


def test_an_iteration_that_fails_ends_every_sequence_of_the_requests_in_it(install: Install) -> None:
    """The others' ids are in no other answer: the first sequence of the request had ended."""
    double = install(break_at=12, break_times=1, break_words="CUDA: out of memory")
    engine = double.engine()
    stop = double.expected(PROMPT, 2, seed=0)[1]
    engine.add(request(1, PROMPT, max_tokens=50, num_sequences=3, temperature=1.0, stop_token_ids=(1, stop)))
    found = collect(engine, {(1, 0), (1, 1), (1, 2)})
    assert (len(ids(found[1, 0])), found[1, 0][-1].finish) == (2, FinishReason.STOP)
    assert all(found[1, index][-1].error == IN_A_FAILED_ITERATION for index in (1, 2))
    assert run(engine, request(2, PROMPT))[2, 0][-1].finish is FinishReason.LENGTH
    assert not engine._live  # type: ignore[attr-defined]
    assert not engine._of_child  # type: ignore[attr-defined]


def test_an_executor_that_stands_still_is_noticed(install: Install) -> None:
    engine = install(stall_at=5).engine(stall_timeout_ms=300)
    engine.add(request(1, PROMPT, max_tokens=50))
    with pytest.raises(RuntimeError, match=r"made no progress for 0\.3 s"):
        collect(engine, {(1, 0)})


def test_statistics_drain_and_do_not_stick_when_idle(install: Install) -> None:
    double = install(step_ms=5)
    engine = double.engine(double.folder(max_batch_size=2))
    for request_id in (1, 2, 3):
        engine.add(request(request_id, PROMPT, max_tokens=80))
    most = engine.stats()
    left = {1, 2, 3}
    while left:
        left -= {output.request_id for output in engine.step(0.02) if output.finish}
        stats = engine.stats()
        most = stats if stats.blocks_used > most.blocks_used else most
    assert most.blocks_max == 512
    assert most.blocks_used >= 2
    assert engine.stats().blocks_used == 0


def test_statistics_of_a_release_without_drafts_are_read(install: Install) -> None:
    engine: Any = install("0.21").engine()
    cache = types.SimpleNamespace(used_num_blocks=3, max_num_blocks=9, reused_blocks=1, tokens_per_block=32)
    engine._count([types.SimpleNamespace(kv_cache_stats=cache)])
    engine._own_id[1] = 1  # there is work
    assert (engine.stats().blocks_used, engine.stats().blocks_max) == (3, 9)
    engine._own_id.clear()


def test_a_pair_of_engines_gives_the_tokens_of_the_large_one(install: Install) -> None:
    double = install()
    large = double.folder("large", speculative_decoding_mode=2, max_draft_len=5)
    engine = double.engine(large, draft_engine_dir=str(double.folder("small")), num_draft_tokens=4)
    assert Capability.SPECULATIVE in engine.info.capabilities
    found = run(
        engine,
        request(1, PROMPT, max_tokens=20),
        request(2, [*PROMPT, 9], max_tokens=3, temperature=1.0, seed=4),
        request(3, [*PROMPT, 8], max_tokens=1),
    )
    assert ids(found[(1, 0)]) == double.expected(PROMPT, 20)
    assert len(found[(1, 0)]) <= 5, "several tokens a round"
    assert ids(found[(2, 0)]) == double.expected([*PROMPT, 9], 3, seed=4)
    assert ids(found[(3, 0)]) == double.expected([*PROMPT, 8], 1)
    stats = engine.stats()
    assert (stats.draft_tokens_total, stats.accepted_tokens_total) == (16, 16)
    engine.add(request(4, PROMPT, max_tokens=1500))
    while not engine.step(0.02):
        pass
    engine.cancel(4)
    assert collect(engine, {(4, 0)})[(4, 0)][-1].finish is FinishReason.CANCELLED


def test_a_small_engine_that_stands_still_is_noticed(install: Install) -> None:
    double = install()
    large = double.folder("large", speculative_decoding_mode=2, max_draft_len=5)
    small = double.folder("small")
    (small / "double.json").write_text(json.dumps({"stall_at": 2}))
    engine = double.engine(large, draft_engine_dir=str(small), stall_timeout_ms=300)
    engine.add(request(1, PROMPT, max_tokens=40))
    with pytest.raises(RuntimeError, match=r"the draft engine said nothing for 0\.3 s"):
        collect(engine, {(1, 0)})
    began = time.monotonic()
    engine.close()
    assert time.monotonic() - began < 8.0, "its shutdown would wait for ever"
    double.made.clear()


def test_close_with_work_under_way_returns(install: Install) -> None:
    engine = install(step_ms=2).engine()
    engine.add(request(1, PROMPT, max_tokens=1500))
    engine.step(0.05)
    engine.close()
