"""What is refused before loading, each with the one sentence that helps; and what the directory and the machine say."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

import pytest

from inflight.engines.base import Capability
from inflight.engines.factory import resolve_engine
from inflight.engines.tensorrt_llm.limits import shares_of_memory
from inflight.engines.tensorrt_llm.options import parse_choices, read_options
from inflight.engines.tensorrt_llm.probe import DirectoryKind, EngineFacts, Gpu, directory_kind, visible_gpus
from inflight.errors import LoadError
from tests.doubles.folders import engine_config, write_checkpoint, write_engine, write_metadata
from tests.doubles.stand_in import Install, StandIn

pytestmark = pytest.mark.fast

GIB = 1 << 30


def refused(double: StandIn, folder: Path | None = None, **options: Any) -> str:
    with pytest.raises(LoadError) as refusal:
        double.engine(folder, **options)
    message = str(refusal.value)
    assert "\n" not in message
    assert message.endswith(".")
    assert "Traceback" not in message
    return message


def with_gpus(monkeypatch: pytest.MonkeyPatch, *gpus: Gpu) -> None:
    monkeypatch.setattr("inflight.engines.tensorrt_llm.create.visible_gpus", lambda: list(gpus))


H100 = Gpu("NVIDIA H100", "9.0", 70 * GIB)


def test_three_kinds_of_directories() -> None:
    assert directory_kind(engine_config()) is DirectoryKind.ENGINE
    assert directory_kind({"architecture": "LlamaForCausalLM", "dtype": "float16"}) is DirectoryKind.CHECKPOINT
    assert directory_kind({"architectures": ["LlamaForCausalLM"], "torch_dtype": "x"}) is DirectoryKind.HUGGING_FACE


def test_an_engine_without_a_manifest_is_recognised_and_served(install: Install) -> None:
    double = install()
    folder = double.folder(with_manifest=False)
    assert resolve_engine("auto", folder) == "tensorrt_llm"
    assert double.engine(folder).info.version == "1.2.1"


def test_another_release(install: Install, tmp_path: Path) -> None:
    double = install("1.1")
    engine = write_engine(tmp_path / "newer", double.tokenizer, "1.2", with_manifest=False)
    message = refused(double, engine)
    assert "compiled by TensorRT-LLM 1.2.1 and 1.1.0 is installed" in message
    assert "image tritonserver:26.07-trtllm-python-py3" in message
    with_manifest = write_engine(tmp_path / "manifest", double.tokenizer, "1.2")
    assert "was built for tensorrt_llm 1.2.1 and 1.1.0 is installed: rebuild" in refused(double, with_manifest)


def test_another_tensorrt(install: Install, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    double = install()
    monkeypatch.syspath_prepend(str(write_metadata(tmp_path / "patched", "1.2", tensorrt="10.15.1.29")))
    assert "was built for tensorrt 10.14.1.48 and 10.15.1.29 is installed: rebuild" in refused(double)


def test_another_gpu(install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    with_gpus(monkeypatch, Gpu("NVIDIA L4", "8.9", 20 * GIB))
    double = install()
    assert "compute capability 9.0 and this GPU has 8.9" in refused(double, double.folder(capability="9.0"))


def test_ranks_gpus_and_memory(install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    double = install()
    with_gpus(monkeypatch, H100)
    engine = double.folder(world=2)
    assert "needs 2 GPUs on this node and 1 are visible" in refused(double, engine)
    with_gpus(monkeypatch)
    assert "no NVIDIA GPU is visible" in refused(double, engine)
    with_gpus(monkeypatch, H100, H100)
    assert "gpu_device_ids names [0, 5]" in refused(double, engine, gpu_device_ids=[0, 5])
    with_gpus(monkeypatch, H100, Gpu("NVIDIA H100", "9.0", 1))
    assert "rank 1 of the engine needs" in refused(double, engine)
    (engine / "rank1.engine").unlink()
    assert "rank1.engine" in refused(double, engine)
    plain = double.folder("plain", world=2, with_manifest=False)
    (plain / "rank1.engine").unlink()
    assert "was built for 2 GPUs and rank1.engine is missing" in refused(double, plain)
    (plain / "rank1.engine").touch()
    (plain / "rank2.engine").touch()
    assert "is for 2 ranks but there are 3 rank files" in refused(double, plain)


def test_an_engine_that_cannot_batch_in_flight(install: Install) -> None:
    double = install()
    assert "kv_cache_type continuous" in refused(double, double.folder("a", kv_cache_type="CONTINUOUS"))
    without = double.folder("b", plugin_config={"remove_input_padding": False})
    assert "--remove_input_padding enable" in refused(double, without)
    assert "--gpt_attention_plugin auto" in refused(
        double, double.folder("c", plugin_config={"gpt_attention_plugin": None})
    )


def test_parameters_that_the_build_does_not_allow(install: Install) -> None:
    double = install()
    folder = double.folder(plugin_config={"use_paged_context_fmha": False})
    assert "enable_kv_cache_reuse cannot be true: the engine was built without use_paged_context_fmha" in refused(
        double, folder, enable_kv_cache_reuse=True
    )
    assert "enable_chunked_context cannot be true" in refused(double, folder, enable_chunked_context=True)
    assert double.engine(folder).info.capabilities, "unset means: where the engine can"
    engine = double.folder("plain")
    assert "max_beam_width is 4 and the engine was built for 1" in refused(double, engine, max_beam_width=4)
    assert "max_batch_size is 99 and the engine was built for 16" in refused(double, engine, max_batch_size=99)
    assert "decoding_mode is medusa and the engine was built for none" in refused(
        double, engine, decoding_mode="medusa"
    )
    drafted = double.folder("drafted", speculative_decoding_mode=8, max_draft_len=15, max_beam_width=2)
    assert "(lookahead_decoding), which works without beams only" in refused(double, drafted, max_beam_width=2)
    assert "built without lora_plugin" in refused(double, engine, lora_dir=str(engine))
    assert "draft_tokens_external" in refused(double, engine, draft_engine_dir=str(engine))


def test_a_pair_that_does_not_fit(install: Install) -> None:
    double = install()
    large = double.folder("large", speculative_decoding_mode=2, max_draft_len=5)
    other = double.folder("other", vocab_size=30_000)
    assert "has to share the model's tokenizer" in refused(double, large, draft_engine_dir=str(other))
    same = double.folder("same")
    assert "num_draft_tokens is 9 and the engine was built for 1 to 5" in refused(
        double, large, draft_engine_dir=str(same), num_draft_tokens=9
    )


def test_a_release_without_engines(install: Install) -> None:
    double = install("1.3")
    message = refused(double, double.folder(with_manifest=False))
    assert "TensorRT-LLM 1.3.0rc24 cannot run compiled engines any more" in message
    assert "26.07-trtllm-python-py3" in message


def test_a_checkpoint_on_a_release_without_the_pytorch_flow(install: Install, tmp_path: Path) -> None:
    double = install("0.21")
    folder = write_checkpoint(tmp_path / "checkpoint", double.tokenizer)
    assert "has no PyTorch flow that serves checkpoints" in refused(double, folder)


def test_integers_that_would_be_taken_for_floats(install: Install, tmp_path: Path) -> None:
    double = install("1.2")
    folder = write_checkpoint(tmp_path / "checkpoint", double.tokenizer)
    config = json.loads((folder / "config.json").read_text())
    for kind in ("float", "int"):
        groups = {"group_0": {"weights": {"num_bits": 8, "type": kind}, "targets": ["Linear"]}}
        config["quantization_config"] = {"quant_method": "compressed-tensors", "config_groups": groups}
        (folder / "config.json").write_text(json.dumps(config))
        if kind == "float":
            double.engine(folder).close()
    assert "which TensorRT-LLM takes for FP8; serve it with vLLM" in refused(double, folder)


def test_an_engine_that_is_not_compiled_yet(install: Install, tmp_path: Path) -> None:
    double = install()
    folder = tmp_path / "raw"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"architecture": "LlamaForCausalLM", "dtype": "bfloat16"}))
    assert "has not been compiled yet: run python -m build_engine compile" in refused(double, folder)


def test_tensorrt_llm_that_is_missing_or_broken(install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    double = install(import_fails=True)
    assert "cannot be imported (libnvinfer.so.10" in refused(double)
    monkeypatch.setattr("sys.path", [entry for entry in __import__("sys").path if "doubles" not in entry])
    double.made.clear()
    assert "26.07-trtllm-python-py3" in refused(double, double.folder("again", with_manifest=False))


def test_memory_that_runs_out_at_load(install: Install) -> None:
    message = refused(install(oom_at_load=True))
    assert "CUDA runtime error in cudaMalloc: out of memory" in message
    assert "lower kv_cache_free_gpu_mem_fraction" in message


def test_mpi_that_does_not_start(install: Install) -> None:
    double = install(mpi_fails=True)
    with pytest.raises((LoadError, RuntimeError), match="MPI_Init"):
        double.engine()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"gpt_model_type": "V1"}, "Invalid gpt_model_type 'V1'"),
        ({"batch_scheduler_policy": "static"}, "batch_scheduler_policy must be one of"),
        ({"decoding_mode": "beams"}, "decoding_mode must be one of"),
        ({"lookahead_ngram_size": 1}, "set it to 2 or more"),
        ({"kv_cache_free_gpu_mem_fraction": 1.0}, "must be above 0 and below 1"),
        ({"max_tokens_in_paged_kv_cache": 0}, "max_tokens_in_paged_kv_cache"),
        ({"sink_token_length": 0}, "sink_token_length"),
        ({"max_attention_window_size": [512, 0]}, "has a window below 1"),
        ({"decoding_mode": "eagle", "max_beam_width": 2}, "works without beams only"),
        ({"decoding_mode": "top_k", "max_beam_width": 2}, "works without beams only"),
        ({"encoder_model_path": "x"}, "encoder-decoder"),
        ({"kv_cache_free_gpu_mem_fraction": 1.5}, "must be above 0 and below 1"),
        ({"speculative_decoding_fast_logits": True}, "set it to false"),
        ({"max_beam_with": 2}, "max_beam_with"),
        ({"max_beam_width": "two"}, "Expected `int`"),
    ],
)
def test_options_that_cannot_be(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(LoadError) as refusal:
        read_options(options)
    assert sentence in str(refusal.value)


def test_token_trees() -> None:
    assert parse_choices("medusa_choices", "{0, 0, 0}, {0, 1}") == [[0, 0, 0], [0, 1]]
    with pytest.raises(LoadError, match="must look like"):
        parse_choices("medusa_choices", "[[0]]")


def test_gpus_as_nvidia_smi_tells_them(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text('#!/bin/sh\necho "0, GPU-aa, NVIDIA H100, 9.0, 70000"\necho "1, GPU-bb, NVIDIA L4, 8.9, 100"\n')
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert visible_gpus() == [Gpu("NVIDIA H100", "9.0", 70000 << 20), Gpu("NVIDIA L4", "8.9", 100 << 20)]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert visible_gpus() == [Gpu("NVIDIA L4", "8.9", 100 << 20)]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-aa")
    assert visible_gpus() == [Gpu("NVIDIA H100", "9.0", 70000 << 20)]
    program.write_text("#!/bin/sh\necho broken\nexit 9\n")
    assert visible_gpus() is None


@pytest.mark.parametrize(
    ("algo", "kv", "words"),
    [
        ("FP8", "INT8", "no paged-context attention for an INT8 KV cache with FP8"),
        ("W4A16_AWQ", "FP8", "no paged-context attention for an FP8 KV cache with W4A16_AWQ"),
        (None, "FP8", "no paged-context attention for an FP8 KV cache with no quantization"),
        ("FP8", "FP8", "built without use_paged_context_fmha; leave it out or compile again"),
        (None, None, "built without use_paged_context_fmha; leave it out or compile again"),
    ],
)
def test_why_an_engine_has_no_reuse(install: Install, algo: str | None, kv: str | None, words: str) -> None:
    """The builder switches it off by itself for some KV caches: to compile again with the flag changes nothing."""
    double = install()
    folder = double.folder(plugin_config={"use_paged_context_fmha": False}, with_manifest=False)
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config["pretrained_config"]["quantization"] = {"quant_algo": algo, "kv_cache_quant_algo": kv}
    path.write_text(json.dumps(config))
    for name in ("enable_kv_cache_reuse", "enable_chunked_context"):
        assert words in refused(double, folder, **{name: True})
    assert Capability.PREFIX_CACHE not in double.engine(folder).info.capabilities


def test_logits_of_whole_prompts_leave_no_reuse(install: Install) -> None:
    """TensorRT-LLM switches reuse off with a warning, so to say that it is there would be wrong."""
    double = install()
    folder = double.folder(gather_context_logits=True)
    assert Capability.PREFIX_CACHE not in double.engine(folder).info.capabilities
    assert "built with gather_context_logits" in refused(double, folder, enable_kv_cache_reuse=True)


def test_what_ends_the_constructor_or_every_step_is_refused_before(install: Install) -> None:
    double = install()
    plain = double.folder()
    assert "kv_cache_onboard_blocks is false" in refused(double, plain, kv_cache_onboard_blocks=False)
    assert "sink_token_length needs" in refused(double, plain, sink_token_length=4)
    assert "participant_ids names 2 ranks and the engine has 1" in refused(double, plain, participant_ids=[0, 1])
    assert "keeps all its weights on the GPU" in refused(double, plain, gpu_weights_percent=0.5)
    assert double.engine(double.folder("streams", weight_streaming=True), gpu_weights_percent=0.5)
    verifies = double.folder("verifies", speculative_decoding_mode=2, max_draft_len=5)
    assert "enable_kv_cache_reuse is false and the engine verifies drafts" in refused(
        double, verifies, enable_kv_cache_reuse=False
    )
    without = double.folder(
        "without", speculative_decoding_mode=2, max_draft_len=5, plugin_config={"use_paged_context_fmha": False}
    )
    assert "the engine verifies drafts, which needs KV reuse" in refused(double, without)


def test_lookahead_beyond_what_was_built(install: Install) -> None:
    double = install()
    folder = double.folder(speculative_decoding_mode=8, max_draft_len=7)
    message = refused(double, folder)
    assert "lookahead_window_size 4, lookahead_ngram_size 3, lookahead_verification_set_size 4 drafts 15" in message
    assert "rebuild with --max-draft-len 15" in message
    small = {"lookahead_window_size": 2, "lookahead_ngram_size": 2, "lookahead_verification_set_size": 2}
    assert Capability.SPECULATIVE in double.engine(folder, **small).info.capabilities


def test_what_the_library_says_against_a_parameter_is_one_sentence(
    install: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    double = install()

    def refuses(*_: Any, **__: Any) -> None:
        raise RuntimeError("[TensorRT-LLM][ERROR] Assertion failed: mMaxBeamWidth > 0 (/src/executorConfig.cpp:12)")

    monkeypatch.setattr(double.bindings, "ExecutorConfig", refuses)
    assert "does not take the model's parameters (mMaxBeamWidth > 0); look at engine_options" in refused(double)


def test_a_small_engine_of_another_release_or_purpose(install: Install, tmp_path: Path) -> None:
    double = install()
    large = double.folder("large", speculative_decoding_mode=2, max_draft_len=5)
    old = write_engine(tmp_path / "old", double.tokenizer, "1.1", with_manifest=False, vocab_size=20_000)
    assert "was compiled by TensorRT-LLM 1.1.0 and 1.2.1 is installed" in refused(
        double, large, draft_engine_dir=str(old)
    )
    other = double.folder("other", speculative_decoding_mode=8, max_draft_len=15)
    assert "itself (lookahead_decoding); compile it without --speculative" in refused(
        double, large, draft_engine_dir=str(other)
    )


def test_memory_is_shared_by_what_a_token_takes(tmp_path: Path) -> None:
    def facts(name: str, layers: int, weights: int) -> EngineFacts:
        pretrained = {"num_hidden_layers": layers, "num_attention_heads": 8, "head_size": 64}
        return EngineFacts(tmp_path / name, "", pretrained, {}, {0: weights})

    large, small = facts("large", 30, 40 * GIB), facts("small", 10, 8 * GIB)
    first, second = shares_of_memory(large, small, 0.9, [Gpu("NVIDIA H100", "9.0", 80 * GIB)])
    free = 80 - 40 * 1.05
    taken = first * free
    rest = free - taken - 8 * 1.05
    assert taken / (second * rest) == pytest.approx(3.0)
    assert (taken + second * rest) / (free - 8 * 1.05) == pytest.approx(0.9)
    assert shares_of_memory(large, small, 0.9, None) == (pytest.approx(0.9 * 0.75), 0.9)
