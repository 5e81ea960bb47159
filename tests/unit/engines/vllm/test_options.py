"""What vLLM is told, by a stand-in for what it can be told: no vLLM needed."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from inflight.engines.base import Capability, EngineRefusal, EngineRequest, Guide, SamplingParams
from inflight.engines.vllm.load import Installed, check_checkpoint, first_line, import_vllm, load, warm_up_requests
from inflight.engines.vllm.options import (
    DEFAULT_KV_CACHE_BYTES_CPU,
    RESERVED,
    VllmFacts,
    capabilities,
    draft_slack,
    engine_arguments,
    environment,
    read_options,
)
from inflight.engines.vllm.sampling import grammar_text, sampling_values, split_logprobs
from inflight.errors import LoadError
from inflight_tools.selfcheck.known_vllm import ARGUMENTS, CPU, GPU

FOLDER = Path("/engines/one")


def arguments(facts: VllmFacts = GPU, max_running: int = 0, max_seq_len: int = 0, **options: Any) -> dict[str, Any]:
    return engine_arguments(FOLDER, read_options(options), facts, max_running, max_seq_len)


def request(**sampling: Any) -> EngineRequest:
    values = {"max_tokens": 9, **sampling}
    return EngineRequest(request_id=1, token_ids=[5], sampling=SamplingParams(**values))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"kv_cash_gb": 1}, "kv_cash_gb"),
        ({"kv_cache_gb": "much"}, "kv_cache_gb"),
        ({"kv_cache_gb": -1.0}, "kv_cache_gb must not be negative"),
        ({"tensor_parallel_size": 0}, "tensor_parallel_size must be at least 1"),
        ({"gpu_memory_utilization": 1.5}, "gpu_memory_utilization must be above 0"),
        ({"num_draft_tokens": 5}, "num_draft_tokens means nothing without speculative"),
        ({"ngram_max": 4}, "ngram_max means nothing without speculative"),
        ({"max_lora_rank": 8}, "max_lora_rank means nothing without lora_dir"),
        ({"lora_dir": "/no/such/folder"}, "lora_dir names no folder"),
        ({"speculative": "medusa"}, "speculative"),
        ({"speculative": "eagle"}, "speculative_model_dir belongs to"),
        ({"speculative": "ngram", "speculative_model_dir": "/x"}, "speculative_model_dir belongs to"),
        ({"speculative": "eagle3", "speculative_model_dir": "/no/such"}, "names no checkpoint"),
        ({"guided_decoding_backend": "outlines"}, "guided_decoding_backend"),
    ],
)
def test_a_wrong_option_is_one_sentence(options: dict[str, Any], says: str) -> None:
    with pytest.raises(LoadError) as caught:
        read_options(options)
    assert says in str(caught.value)
    assert str(caught.value).endswith(".")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", sorted(RESERVED))
def test_what_has_its_own_name_or_is_never_allowed_is_refused_among_further_arguments(name: str) -> None:
    with pytest.raises(LoadError, match=f"must not hold {name}: "):
        read_options({"engine_arguments": {name: True}})


def test_arguments_that_are_always_given() -> None:
    given = arguments()
    assert given["model"] == given["tokenizer"] == str(FOLDER)
    assert given["trust_remote_code"] is False
    assert given["load_format"] == "safetensors"
    assert given["generation_config"] == "vllm"
    assert given["skip_tokenizer_init"] is False
    assert given["disable_log_stats"] is True
    assert given["max_num_seqs"] == 256
    assert set(given) <= ARGUMENTS


def test_what_is_not_asked_for_is_left_to_vllm() -> None:
    left = {"max_model_len", "max_num_batched_tokens", "block_size", "quantization", "kv_cache_memory_bytes"}
    assert not left & set(arguments())
    assert not {"enable_lora", "speculative_config"} & set(arguments())


def test_a_cpu_never_takes_all_the_memory() -> None:
    assert arguments(CPU)["kv_cache_memory_bytes"] == DEFAULT_KV_CACHE_BYTES_CPU
    assert arguments(CPU, kv_cache_gb=0.5)["kv_cache_memory_bytes"] == 1 << 29
    assert arguments(CPU)["max_num_seqs"] == 64
    assert "gpu_memory_utilization" not in arguments(CPU)


def test_prompts_are_cut_on_gpus_alone() -> None:
    assert arguments(GPU)["enable_chunked_prefill"] is True
    assert arguments(CPU)["enable_chunked_prefill"] is False, "a seeded request that is cut would end vLLM there"


def test_options_reach_vllm_under_its_names(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    given = arguments(
        max_running=7,
        max_seq_len=99,
        max_batched_tokens=512,
        block_size=16,
        quantization="modelopt",
        lora_dir=str(tmp_path),
        max_lora_rank=64,
        speculative="eagle3",
        speculative_model_dir=str(tmp_path),
        num_draft_tokens=3,
        prefix_caching=False,
        guided_decoding_backend="none",
        engine_arguments={"seed": 3},
    )
    assert (given["max_num_seqs"], given["max_model_len"], given["max_num_batched_tokens"]) == (7, 99, 512)
    assert (given["block_size"], given["quantization"], given["seed"]) == (16, "modelopt", 3)
    assert (given["enable_lora"], given["max_lora_rank"], given["enable_prefix_caching"]) == (True, 64, False)
    assert given["speculative_config"] == {"method": "eagle3", "num_speculative_tokens": 3, "model": str(tmp_path)}
    assert given["skip_tokenizer_init"] is True
    assert given["disable_log_stats"] is False, "its counts of drafts are wanted"
    assert "structured_outputs_config" not in given


def test_ngrams_need_no_model() -> None:
    assert arguments(speculative="ngram", ngram_max=1)["speculative_config"] == {
        "method": "ngram",
        "num_speculative_tokens": 5,
        "prompt_lookup_max": 1,
        "prompt_lookup_min": 1,
    }


def test_an_argument_that_this_release_lacks() -> None:
    with pytest.raises(LoadError, match=r"enforce_egar, which this vLLM does not have \(did you mean enforce_eager"):
        arguments(engine_arguments={"enforce_egar": True})
    with pytest.raises(LoadError, match=r"no engine argument max_logprobs; install vLLM 0\.20 or later"):
        arguments(VllmFacts(on_cpu=False, arguments=ARGUMENTS - {"max_logprobs"}))


def test_capabilities_follow_options_and_installation(tmp_path: Path) -> None:
    plain = capabilities(read_options({}), GPU)
    assert Capability.MIN_P in plain
    assert not {Capability.LORA, Capability.SPECULATIVE, Capability.BEAM_SEARCH, Capability.BATCH_INVARIANT} & plain
    rich = capabilities(read_options({"lora_dir": str(tmp_path), "speculative": "ngram"}), GPU)
    assert rich - plain == {Capability.LORA, Capability.SPECULATIVE}
    assert plain - rich == {Capability.MIN_P}
    less = VllmFacts(on_cpu=False, arguments=ARGUMENTS, takes_bad_words=False, takes_salts=False)
    off = capabilities(read_options({"guided_decoding_backend": "none", "prefix_caching": False}), less)
    assert {capability.value for capability in plain - off} == {
        "bad_words",
        "cache_salt",
        "guided_choice",
        "guided_ebnf",
        "guided_json",
        "guided_regex",
        "prefix_cache",
    }


def test_drafts_past_the_end_are_reserved_for() -> None:
    assert draft_slack(read_options({}), 16) == 0
    assert draft_slack(read_options({"speculative": "ngram", "num_draft_tokens": 5}), 16) == 1
    assert draft_slack(read_options({"speculative": "ngram", "num_draft_tokens": 9}), 16) == 2


def test_the_environment_keeps_vllm_at_home(monkeypatch: pytest.MonkeyPatch) -> None:
    variables = environment(read_options({}))
    assert variables["VLLM_ENABLE_V1_MULTIPROCESSING"] == "0"
    assert variables["HF_HUB_OFFLINE"] == variables["VLLM_NO_USAGE_STATS"] == "1"
    assert "VLLM_CPU_OMP_THREADS_BIND" not in variables
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {7, 3, 5})
    assert environment(read_options({"threads": 2}))["VLLM_CPU_OMP_THREADS_BIND"] == "3,5"


# -- requests --------------------------------------------------------------------------------------------------------


def test_greedy() -> None:
    values = sampling_values(request(), 0, (2,))
    assert values == {
        "max_tokens": 9,
        "min_tokens": 0,
        "temperature": 0.0,
        "ignore_eos": True,
        "stop_token_ids": [],
        "logprobs": None,
        "detokenize": False,
    }


def test_sampling() -> None:
    values = sampling_values(request(temperature=0.7, top_p=0.9, top_k=4, min_p=0.1, presence_penalty=1.0), 0, ())
    assert (values["temperature"], values["top_p"], values["top_k"], values["min_p"]) == (0.7, 0.9, 4, 0.1)
    assert values["presence_penalty"] == 1.0
    assert "repetition_penalty" not in values


def test_the_sequences_of_a_request_have_seeds_of_their_own_that_fit() -> None:
    seeds = [sampling_values(request(temperature=1.0, seed=2**64 - 1), index, ())["seed"] for index in range(4)]
    assert len(set(seeds)) == 4
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_stop_tokens_and_min_tokens() -> None:
    values = sampling_values(request(stop_token_ids=(7, 2), min_tokens=3), 0, (2,))
    assert (values["stop_token_ids"], values["min_tokens"]) == ([2, 7], 3)
    endless = sampling_values(request(min_tokens=3), 0, (2,))
    assert endless["min_tokens"] == 0, "with no stop token, vLLM would hold back the tokenizer's own"


def test_a_guide_always_ends_with_the_models_own_token() -> None:
    guided = EngineRequest(
        request_id=1,
        token_ids=[5],
        sampling=SamplingParams(max_tokens=9, stop_token_ids=(7,)),
        guide=Guide("ebnf_grammar", 'root ::= "a"'),
    )
    assert sampling_values(guided, 0, (2,))["stop_token_ids"] == [2, 7]
    assert grammar_text(Guide("ebnf_grammar", "as it is")) == "as it is"
    assert "::=" in grammar_text(Guide("choice", '["a", "b"]'))
    with pytest.raises(EngineRefusal) as caught:
        grammar_text(Guide("json_schema", "{"))
    assert caught.value.parameter == "guided_decoding_guide"


class Entry:
    def __init__(self, logprob: float, rank: int) -> None:
        self.logprob, self.rank = logprob, rank


def test_log_probabilities() -> None:
    given = [{3: Entry(-2.5, 9), 7: Entry(-0.1, 1), 8: Entry(-3.0, 2)}, {7: Entry(-0.2, 1), 3: Entry(-2.0, 2)}]
    assert split_logprobs([3, 7], given, 2) == ([-2.5, -0.2], [{7: -0.1, 8: -3.0}, {7: -0.2, 3: -2.0}], [9, 1])
    assert split_logprobs([3, 7], given, 0) == ([-2.5, -0.2], None, [9, 1])
    assert split_logprobs([3, 7], None, 2) == (None, None, None)


# -- loading ---------------------------------------------------------------------------------------------------------


def test_without_vllm_the_sentence_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(LoadError, match=r"vLLM is not installed.*pip install vllm.*engine_python"):
        import_vllm({})


def test_a_folder_that_is_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match=r"no config\.json"):
        check_checkpoint(tmp_path, 0)
    (tmp_path / "config.json").write_text('{"architectures": ["LlamaForCausalLM"]}')
    (tmp_path / "pytorch_model.bin").write_bytes(b"a pickle")
    with pytest.raises(LoadError, match=r"no \*.safetensors"):
        check_checkpoint(tmp_path, 0)
    (tmp_path / "model.safetensors").write_bytes(b"")
    assert (check_checkpoint(tmp_path, 0), check_checkpoint(tmp_path, 77)) == (0, 77)


def test_errors_lose_what_only_developers_want() -> None:
    text = "1 validation error for VllmConfig\n  Value error, it is too small [type=value_error, input_value=x]\n more"
    assert first_line(ValueError(text)) == "it is too small"
    assert first_line(ValueError("")) == "ValueError"


def test_the_warm_up_asks_for_nothing_that_is_missing() -> None:
    assert all(warm.guide is None for warm in warm_up_requests(guided=False, takes_min_p=True))
    assert all(warm.sampling.min_p == 0.0 for warm in warm_up_requests(guided=True, takes_min_p=False))
    assert len({warm.request_id for warm in warm_up_requests(True, True)}) == 5


@pytest.mark.parametrize(
    ("message", "says"),
    [
        (
            "_C::static_scaled_fp8_quant() expected at most 0 argument(s) but received 4 argument(s). Declaration: …",
            "(this build of vLLM lacks the operation static_scaled_fp8_quant); this vLLM, or this hardware, cannot run "
            "that quantization: build another with build_engine.",
        ),
        (
            "Failed to find a kernel that can implement the NVFP4 linear layer. Reasons:\n - one\n - two",
            "(Failed to find a kernel that can implement the NVFP4 linear layer); this vLLM, or this hardware, cannot "
            "run that quantization: build another with build_engine.",
        ),
    ],
)
def test_a_quantization_that_cannot_run_is_one_sentence(message: str, says: str) -> None:
    def fails(*_: Any, **__: Any) -> None:
        raise RuntimeError(message)

    installed = Installed("0", CPU, dict, SimpleNamespace(from_engine_args=fails), None, None, None, None, None, ())
    with pytest.raises(LoadError) as caught:
        load(installed, {}, None)
    assert str(caught.value) == f"vLLM cannot load this checkpoint {says}"
