"""Which GPU a recipe can be compiled for: said before any work, where the GPU is in the machine or named."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from build_engine import cli
from build_engine.architectures import TENSORRT_LLM
from build_engine.errors import UserMistake
from build_engine.quantization import BY_TARGET
from build_engine.tensorrt import compile as compiler
from build_engine.tensorrt import gpu_kinds
from inflight_tools.common.tiny_models import write_config
from tests.unit.build.compiled import checkpoint_directory

pytestmark = pytest.mark.fast


@pytest.fixture
def gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An `nvidia-smi` and a `trtllm-build` on PATH; what is written into the file are the GPUs' capabilities."""
    folder = tmp_path / "bin"
    folder.mkdir()
    shown = tmp_path / "capabilities"
    for name, body in (("nvidia-smi", f"cat {shown}"), ("trtllm-build", f"echo run >> {tmp_path}/compiled; exit 1")):
        script = folder / name
        script.write_text(f"#!/bin/sh\n{body}\n")
        script.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)
    return shown


def build(tmp_path: Path, *extra: str) -> int:
    model = write_config(tmp_path / "m")
    (model / "model.safetensors").write_bytes(b"")
    (model / "tokenizer.json").write_text("{}")
    output = str(tmp_path / "e")
    return cli.main(["build", str(model), "--target", "tensorrt-llm", "--output", output, *extra])


@pytest.mark.parametrize("capability", ["10.0", "10.3"])
@pytest.mark.parametrize("recipe", ["int8", "int8-sq", "int4", "int4-awq", "w4a8-awq"])
def test_integers_on_a_gpu_that_is_too_new(
    recipe: str, capability: str, gpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gpus.write_text(f"{capability}\n", encoding="utf-8")
    assert build(tmp_path, "--quantization", recipe) == 2
    error = capsys.readouterr().err
    assert f"--quantization {recipe}" in error
    assert f"compute capability {capability}" in error
    assert "too new" in error
    assert "fp8 or none" in error
    assert error.count("\n") == 1
    assert not (tmp_path / "e").exists()


def test_an_int8_kv_cache_on_a_gpu_that_is_too_new(
    gpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gpus.write_text("10.0\n", encoding="utf-8")
    assert build(tmp_path, "--quantization", "fp8", "--kv-cache", "int8") == 2
    error = capsys.readouterr().err
    assert "--kv-cache int8" in error
    assert "too new" in error


def test_fp8_on_a_gpu_that_is_too_old(gpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    gpus.write_text("8.0\n", encoding="utf-8")
    for extra in (("--quantization", "fp8"), ("--quantization", "none", "--kv-cache", "fp8")):
        assert build(tmp_path, *extra) == 2
        error = capsys.readouterr().err
        assert "too old" in error
        assert "8.9" in error


def test_a_gpu_that_is_named_counts_instead_of_the_machines_own(
    gpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gpus.write_text("9.0\n", encoding="utf-8")
    named = ("--quantization", "int4-awq", "--gpu", "b200", "--stop-after", "checkpoint")
    assert build(tmp_path, *named) == 2
    assert "B200 (compute capability 10.0) is too new" in capsys.readouterr().err
    assert build(tmp_path, "--quantization", "fp8", "--gpu", "nothing") == 2
    assert "--gpu nothing is not in the table" in capsys.readouterr().err


def test_other_targets_take_no_gpu(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = write_config(tmp_path / "m")
    (model / "model.safetensors").write_bytes(b"")
    for target in ("openvino", "hf-quantized"):
        words = ["build", str(model), "--target", target, "--quantization", "none", "--gpu", "B200"]
        assert cli.main([*words, "--output", str(tmp_path / "e")]) == 2
        assert "--gpu is" in capsys.readouterr().err


def test_what_each_kind_compiles() -> None:
    """Compute capability 12.0 compiles integers, 10.x does not; FP8 needs 8.9."""
    every = ("none", "int8", "int8-sq", "int4", "int4-awq", "w4a8-awq", "fp8")
    wanted = {
        "8.0": ("none", "int8", "int8-sq", "int4", "int4-awq"),
        "8.9": every,
        "9.0": every,
        "10.0": ("none", "fp8"),
        "10.3": ("none", "fp8"),
        "12.0": every,
    }
    for capability, expected in wanted.items():
        assert tuple(recipe for recipe in every if able(recipe, "none", capability)) == expected, capability


def test_the_table_of_the_page() -> None:
    page = (Path(__file__).resolve().parents[3] / "docs" / "gpu.md").read_text(encoding="utf-8")
    part = page[page.index("## Which recipe for which GPU") : page.index("## Which image")]
    rows = re.findall(r"^\| [\w, ]+ \| ([\d., ]+) \| ([^|]+) \|", part, re.MULTILINE)
    assert len(rows) == 6
    for capabilities, recipes in rows:
        listed = set(recipes.partition(";")[0].split(", "))
        for capability in capabilities.split(", "):
            assert listed == {name for name in BY_TARGET[TENSORRT_LLM] if able(name, "none", capability)}, capability
            assert able("fp8", "int8", capability) or "no INT8 KV cache" in recipes or "fp8" not in listed


def able(recipe: str, kv_cache: str, capability: str) -> bool:
    try:
        gpu_kinds.check_gpu(recipe, kv_cache, capability)
    except UserMistake:
        return False
    return True


def test_the_compiler_is_not_started_for_a_checkpoint_that_this_gpu_cannot_have(
    gpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = checkpoint_directory(tmp_path / "built", recipe="int4-awq", kv_cache="none")
    gpus.write_text("10.0\n10.0\n", encoding="utf-8")
    assert cli.main(["compile", str(directory), "--output", str(tmp_path / "engine")]) == 2
    assert "too new" in capsys.readouterr().err
    assert not (tmp_path / "compiled").exists()
    assert cli.main(["inspect", str(directory)]) == 1
    assert "runs here: no: " in (text := capsys.readouterr().out)
    assert "too new" in text


@pytest.mark.parametrize(
    "said",
    [
        "INT8/INT4 quantization is not supported on SM>=100.",
        "SmoothQuant is not supported on SM>=100.",
        "Per-channel or per-token scaling is not supported on SM>=100.",
    ],
)
def test_what_the_compiler_says_of_too_new_a_gpu(said: str) -> None:
    text = compiler.explain(f"Traceback (most recent call last):\nRuntimeError: {said}", 1)
    assert "too new" in text
    assert "fp8 or none" in text
    assert "too old" not in text
    assert "too old" in compiler.explain("RuntimeError: FP8 is not supported on SM80", 1)
