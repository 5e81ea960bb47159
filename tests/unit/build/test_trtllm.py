"""Compiling with ``trtllm-build``: flags, progress, errors and the engine directory, against a strict stand-in."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import pytest

import inflight.manifest as manifest
from build_engine import cli, hf_config
from build_engine.console import Console
from build_engine.errors import UserMistake
from build_engine.planning.roofline import Parallel
from build_engine.quantization import RECIPES as VOCABULARY
from build_engine.quantization import kv_cache_for
from build_engine.tensorrt import compile as compiler
from build_engine.tensorrt import config as checkpoint_config
from build_engine.tensorrt import recipes
from build_engine.tensorrt.compile import CompileLimits
from build_engine.tensorrt.target import manifest_limits
from inflight_tools.common.tiny_models import LLAMA, write_config
from tests.unit.build import trtllm_build_standin as standin

pytestmark = pytest.mark.fast

RELEASES = ("0.21.0", "1.0.0", "1.1.0", "1.2.1")
CONFIG = hf_config.parse({"architectures": ["LlamaForCausalLM"], "model_type": "llama", **LLAMA})
LIMITS = CompileLimits(8, 127, 128, 1024, 1)
FLAGS = compiler.choose_flags(CONFIG, "fp8", "fp8", Parallel(2), LIMITS)


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A ``trtllm-build`` on PATH."""
    folder = tmp_path / "bin"
    folder.mkdir()
    script = folder / "trtllm-build"
    script.write_text(f'#!/bin/sh\nexec {sys.executable} {standin.__file__} "$@"\n')
    script.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)
    return script


@pytest.fixture
def built(tmp_path: Path) -> Path:
    """A directory as ``build --stop-after checkpoint`` leaves it, for two tensor-parallel ranks."""
    directory = tmp_path / "built"
    checkpoint = directory / "checkpoint"
    checkpoint.mkdir(parents=True)
    (checkpoint / "config.json").write_text(
        json.dumps({"architecture": "LlamaForCausalLM", "mapping": {"world_size": 2}})
    )
    for rank in range(2):
        (checkpoint / f"rank{rank}.safetensors").write_bytes(b"weights")
    (checkpoint / "trtllm-build.json").write_text(json.dumps({"flags": FLAGS}))
    (directory / "tokenizer.json").write_text("{}")
    described = manifest.Manifest(
        target="tensorrt_llm",
        stage="checkpoint",
        source=manifest.Source(name="tiny", architecture="LlamaForCausalLM", sha256="0" * 64),
        quantization=manifest.Quantization(algorithm="FP8", kv_cache="fp8", recipe="fp8"),
        parallelism=manifest.Parallelism(tensor=2),
        limits=manifest.Limits(max_seq_len=128),
        requires=manifest.Requires(),
        verification=None,
        files=manifest.list_files(directory),
        built=manifest.Built(by="test", command="python -m build_engine build tiny", date="x", seconds=1.0),
    )
    manifest.write(directory, described)
    return directory


@pytest.mark.parametrize("release", RELEASES)
def test_every_recipe_and_split_is_accepted_by_every_release(release: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(standin, "RELEASE", tuple(int(part) for part in release.split(".")[:2]))
    parser = standin.make_parser()
    modes = (("none", 0), ("draft-tokens-external", 5), ("lookahead", 7))
    for recipe, kv, tensor, (mode, length) in itertools.product(recipes.RECIPES, recipes.KV_ALGOS, (1, 2), modes):
        limits = CompileLimits(8, 100, 128, 1024, 1, mode, length)
        flags = compiler.choose_flags(CONFIG, recipe, kv, Parallel(tensor), limits)
        options = parser.parse_args(compiler.command("in", "out", flags)[1:])
        assert options.max_seq_len == 128
        assert options.max_draft_len == length
        floats = recipe in ("fp8", "w4a8-awq")
        assert (options.use_paged_context_fmha == "enable") == (kv == "none" or (kv == "fp8" and floats))
        assert (options.use_fp8_context_fmha == "enable") == (kv == "fp8" and floats)
        assert (options.gemm_plugin == "disable") == (recipe == "fp8")
        assert (options.reduce_fusion == "enable") == (tensor == 2)


def test_no_limit_is_left_to_the_compilers_own_defaults() -> None:
    """They are 2,048 sequences, 1,024 prompt tokens and 8,192 tokens a step, whatever the model and the GPU."""
    limits = CompileLimits(8, 100, 128, 1024, 1)
    words = compiler.command("in", "out", compiler.choose_flags(CONFIG, "fp8", "fp8", Parallel(1), limits))
    given = dict(itertools.pairwise(words))
    names = ("max_batch_size", "max_input_len", "max_seq_len", "max_num_tokens", "max_beam_width")
    assert [given[f"--{name}"] for name in names] == ["8", "100", "128", "1024", "1"]


def test_fp8_brings_an_fp8_kv_cache_unless_told_otherwise() -> None:
    assert kv_cache_for("auto", "tensorrt-llm", VOCABULARY["fp8"]) == "fp8"
    assert kv_cache_for("none", "tensorrt-llm", VOCABULARY["fp8"]) == "none"
    assert kv_cache_for("auto", "tensorrt-llm", VOCABULARY["int8-sq"]) == "none"


FP8_CONFIG = {"quant_algo": "FP8", "kv_cache_quant_algo": "FP8"}


@pytest.mark.parametrize("kv", sorted(recipes.KV_ALGOS))
@pytest.mark.parametrize("recipe", sorted(recipes.RECIPES))
def test_the_builder_changes_none_of_our_flags(
    recipe: str, kv: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It switches paged-context and FP8 attention off where it has none, with a warning that nobody reads; what is not
    built is said instead.
    """
    flags = compiler.choose_flags(CONFIG, recipe, kv, Parallel(2), LIMITS)
    plugins = {name: flags.get(name, "disable") == "enable" for name in standin.SWITCHES}
    wanted = dict(plugins)
    quantization = {"quant_algo": recipes.RECIPES[recipe].algo, "kv_cache_quant_algo": recipes.KV_ALGOS[kv]}
    config = {"architecture": "LlamaForCausalLM", "quantization": quantization, "mapping": {"tp_size": 2}}
    standin.changed({"speculative_decoding_mode": 1}, plugins, config)
    assert plugins == wanted
    assert "[W]" not in capsys.readouterr().out
    console = Console()
    said: list[str] = []
    monkeypatch.setattr(console, "say", said.append)
    compiler.say_what_lacks(recipe, kv, console)
    assert [f"an {kv.upper()} KV cache" in text for text in said] == (
        [] if plugins["use_paged_context_fmha"] else [True]
    )


def test_an_engine_for_drafts_that_could_not_be_loaded_is_refused() -> None:
    limits = CompileLimits(8, 127, 128, 1024, 1, "draft-tokens-external", 5)
    compiler.check_drafts("fp8", "fp8", limits)
    compiler.check_drafts("int8", "none", limits)
    with pytest.raises(UserMistake, match="add --kv-cache none"):
        compiler.check_drafts("int4-awq", "fp8", limits)


@pytest.mark.parametrize("paged", [True, False])
def test_what_a_compile_brings_is_said(
    paged: bool, built: Path, tmp_path: Path, program: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A checkpoint whose flags were chosen before this was known."""
    path = built / "checkpoint" / "config.json"
    config = json.loads(path.read_text())
    config["quantization"] = FP8_CONFIG if paged else {"quant_algo": "W4A16_AWQ", "kv_cache_quant_algo": "FP8"}
    path.write_text(json.dumps(config))
    described = manifest.read(built)
    manifest.write(built, msgspec.structs.replace(described, files=manifest.list_files(built)))
    assert cli.main(["compile", str(built), "--output", str(tmp_path / "engine")]) == 0
    assert ("has switched paged-context attention off" in capsys.readouterr().err) == (not paged)


def test_windows_of_attention_are_kept_out_of_what_the_builder_reads(
    built: Path, tmp_path: Path, program: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In the checkpoint's configuration they would end the builder; in the manifest they reach the engine's load."""
    sliding = hf_config.parse({**CONFIG.raw, "model_type": "mistral", "sliding_window": 64})
    windows = checkpoint_config.attention_windows(sliding)
    assert windows == [64, 64]
    exported = {"dtype": "float16", "runtime_defaults": {"max_attention_window": windows}, "vocab_size": 403}
    corrected, _ = checkpoint_config.correct(exported, sliding, Parallel(2), None, None)
    assert "runtime_defaults" not in corrected
    path = built / "checkpoint" / "config.json"
    path.write_text(json.dumps({**corrected, "quantization": FP8_CONFIG}))
    limits = manifest_limits(LIMITS, windows)
    described = msgspec.structs.replace(manifest.read(built), limits=limits, files=manifest.list_files(built))
    manifest.write(built, described)
    assert cli.main(["compile", str(built), "--output", str(tmp_path / "engine")]) == 0
    assert manifest.read(tmp_path / "engine").limits.max_attention_window == windows
    path.write_text(json.dumps({**corrected, "runtime_defaults": {"max_attention_window": windows}}))
    manifest.write(built, msgspec.structs.replace(described, files=manifest.list_files(built)))
    assert cli.main(["compile", str(built), "--output", str(tmp_path / "other")]) == 1
    assert "cannot pickle" in capsys.readouterr().err


def test_the_standin_is_strict() -> None:
    parser = standin.make_parser()
    for words in (["--max_batch", "3"], ["--no_such_flag"], ["--gemm_plugin", "int3"], ["--context_fmha", "yes"]):
        with pytest.raises(SystemExit):
            parser.parse_args(words)


@pytest.mark.parametrize("release", RELEASES)
def test_compile(built: Path, tmp_path: Path, program: Path, release: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STANDIN_VERSION", release)
    monkeypatch.chdir(tmp_path)
    assert cli.main(["compile", str(built), "--output", "engine"]) == 0
    found = manifest.check_whole(tmp_path / "engine", target="tensorrt_llm", deep=True)
    assert found.stage == "engine"
    assert found.requires.packages == {"tensorrt_llm": release}
    assert found.quantization.recipe == "fp8"
    names = sorted(path.name for path in (tmp_path / "engine").iterdir())
    assert names == ["config.json", "engine.json", "rank0.engine", "rank1.engine", "tokenizer.json"]
    written = json.loads((tmp_path / "engine" / "config.json").read_text())
    assert written["build_config"]["plugin_config"]["user_buffer"] is True
    assert written["build_config"]["max_batch_size"] == 8
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bin", "built", "engine"], "no model.cache is left"


@pytest.mark.parametrize(
    ("failure", "words"),
    [
        ("memory", "the GPU ran out of memory while compiling"),
        ("device", "no NVIDIA GPU can be used here"),
        ("traceback", "trtllm-build failed: vocab_size 7 is odd (ValueError)"),
        ("incomplete", "without a complete engine"),
    ],
)
def test_failures_are_one_sentence_and_leave_nothing(
    built: Path,
    tmp_path: Path,
    program: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    failure: str,
    words: str,
) -> None:
    monkeypatch.setenv("STANDIN_FAIL", failure)
    assert cli.main(["compile", str(built), "--output", str(tmp_path / "engine")]) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert words in error
    log = Path(error.rsplit("log: ", 1)[1].rstrip(")"))
    assert log.is_file()
    shutil.rmtree(log.parent)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bin", "built"]


def test_a_flag_this_release_does_not_know(
    built: Path, tmp_path: Path, program: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = built / "checkpoint" / "trtllm-build.json"
    path.write_text(json.dumps({"flags": {**FLAGS, "brand_new_flag": "1"}}))
    described = manifest.read(built)
    manifest.write(built, msgspec.structs.replace(described, files=manifest.list_files(built)))
    assert cli.main(["compile", str(built), "--output", str(tmp_path / "engine")]) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert "does not know --brand_new_flag" in error
    shutil.rmtree(Path(error.rsplit("log: ", 1)[1].rstrip(")")).parent)


def test_a_stopped_compile_ends_the_compiler(built: Path, tmp_path: Path, program: Path) -> None:
    root = Path(cli.__file__).resolve().parents[1]
    environment = {**os.environ, "STANDIN_FAIL": "hang", "PYTHONPATH": f"{root}{os.pathsep}{root / 'python_backend'}"}
    words = [sys.executable, "-m", "build_engine", "compile", str(built), "--output", str(tmp_path / "engine")]
    process = subprocess.Popen(words, env=environment, stderr=subprocess.PIPE, text=True)
    children: list[str] = []
    deadline = time.monotonic() + 20
    while not children and time.monotonic() < deadline:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text(encoding="utf-8").split()
        time.sleep(0.05)
    time.sleep(0.3)
    process.send_signal(signal.SIGTERM)
    _, error = process.communicate(timeout=30)
    assert process.returncode == 143
    assert "Traceback" not in error
    assert children
    assert not Path(f"/proc/{children[0]}").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bin", "built"]


def test_without_the_compiler(built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert cli.main(["compile", str(built), "--output", str(tmp_path / "engine")]) == 2
    with pytest.raises(UserMistake, match="--stop-after checkpoint"):
        compiler.find_program()


def test_a_damaged_checkpoint_is_not_compiled(built: Path, tmp_path: Path, program: Path) -> None:
    (built / "checkpoint" / "rank1.safetensors").write_bytes(b"altered")
    assert cli.main(["compile", str(built), "--output", str(tmp_path / "engine")]) == 2


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"max_input_len": 128}, "leaves no room for an answer"),
        ({"max_num_tokens": 7}, "less than one token"),
        ({"speculative": "medusa"}, "is unknown"),
        ({"speculative": "lookahead"}, "go together"),
        ({"speculative": "lookahead", "max_draft_len": 3, "max_beam_width": 2}, "max-beam-width 1 only"),
        ({"max_draft_len": 3}, "go together"),
    ],
)
def test_contradicting_limits(changes: dict[str, int | str], words: str) -> None:
    values = {
        "max_batch_size": 8,
        "max_input_len": 100,
        "max_seq_len": 128,
        "max_num_tokens": 1024,
        "max_beam_width": 1,
        **changes,
    }
    with pytest.raises(UserMistake, match=words):
        compiler.check_limits(CompileLimits(**values))  # type: ignore[arg-type]


def test_progress_counts_ranks() -> None:
    log = "[TRT-LLM] [I] Build TensorRT engine Unnamed\n[TRT-LLM] [I] Engine generated in 2 s\n"
    assert compiler.progress_of("", 2) == (None, "")
    assert compiler.progress_of(log, 1) == (0.80, "Engine generated in 2 s")
    assert compiler.progress_of(log, 2)[0] == 0.40


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        (("--tensor-parallel", "3"), "does not divide the model's 4 query heads"),
        (("--pipeline-parallel", "3"), "more than the model's 2 layers"),
        (("--quantization", "nvfp4"), "which takes: none, int8, int8-sq"),
        (("--quantization", "int4-awq"), "needs groups of 128 or 64"),
        (("--smoothquant-alpha", "0.5"), "goes with --quantization int8-sq only"),
        (("--max-num-tokens", "10"), "less than one token"),
    ],
)
def test_what_cannot_be_built_is_refused_before_any_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], extra: tuple[str, ...], words: str
) -> None:
    model = write_config(tmp_path / "m")
    (model / "model.safetensors").write_bytes(b"")
    (model / "tokenizer.json").write_text("{}")
    output = str(tmp_path / "e")
    base = ["build", str(model), "--target", "tensorrt-llm", "--stop-after", "checkpoint", "--output", output]
    assert cli.main([*base, "--quantization", "fp8", *extra]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1
    assert not (tmp_path / "e").exists()


def test_unknown_rope_scaling_is_refused() -> None:
    scaled = hf_config.parse({**CONFIG.raw, "rope_scaling": {"rope_type": "dynamic", "factor": 2.0}})
    with pytest.raises(UserMistake, match="rope scaling dynamic"):
        recipes.check_model(scaled, VOCABULARY["fp8"], Parallel())
