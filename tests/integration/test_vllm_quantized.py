"""Quantized checkpoints on vLLM's CPU build: their perplexity as `verify` predicts it, or one sentence at the load."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from inflight_tools.common.layout import MODELS, REPOSITORY
from tests.doubles.vllm import drive, vllm_python

pytestmark = [pytest.mark.server, pytest.mark.full, pytest.mark.timeout(600)]

MODEL = MODELS / "SmolLM2-135M-Instruct"
BFLOAT16 = 0.005  # relative: `verify` computes in float32
AS_ROUNDED = 0.01  # relative, of what also rounds activations


def build(folder: Path, recipe: str) -> Path:
    """What `build_engine build --target hf-quantized` writes."""
    vllm_python()
    options = ["--target", "hf-quantized", "--quantization", recipe, "--kv-cache", "none", "--output", str(folder)]
    subprocess.run([sys.executable, "-m", "build_engine", "build", str(MODEL), *options], cwd=REPOSITORY, check=True)
    return folder


@pytest.fixture(scope="module")
def fp8(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("quantized") / "fp8", "fp8")


def verified(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "engine.json").read_text())["verification"]
    return found


def with_algorithm(source: Path, folder: Path, algorithm: str) -> Path:
    """The checkpoint, said to be quantized in another way."""
    shutil.copytree(source, folder)
    (folder / "engine.json").unlink()
    for name, section in (("config.json", "quantization_config"), ("hf_quant_config.json", "quantization")):
        content = json.loads((folder / name).read_text())
        content[section]["quant_algo"] = algorithm
        (folder / name).write_text(json.dumps(content))
    return folder


def test_the_source_has_the_perplexity_that_verify_gives_it(fp8: Path) -> None:
    found = drive("perplexity", str(MODEL))
    print(found)
    assert found["tokens"] == verified(fp8)["tokens"]
    assert found["perplexity"] == pytest.approx(verified(fp8)["reference_perplexity"], rel=BFLOAT16)


def test_fp8_computes_what_verify_predicts_or_is_refused_where_the_cpu_lacks_it(fp8: Path) -> None:
    """FP8 with one scale for all needs AMX in vLLM's CPU build."""
    found = drive("perplexity", str(fp8))
    print(found)
    if "amx_tile" in Path("/proc/cpuinfo").read_text(encoding="utf-8").split():
        assert found["perplexity"] == pytest.approx(verified(fp8)["perplexity"], rel=AS_ROUNDED)
    else:
        assert found["refused"] == (
            "vLLM cannot load this checkpoint (this build of vLLM lacks the operation static_scaled_fp8_quant); this "
            "vLLM, or this hardware, cannot run that quantization: build another with build_engine."
        )


def test_int8_computes_what_verify_predicts(tmp_path: Path) -> None:
    folder = build(tmp_path / "int8", "int8-sq")
    found = drive("perplexity", str(folder))
    print(found)
    assert found["quantization"] == "compressed-tensors"
    assert found["perplexity"] == pytest.approx(verified(folder)["perplexity"], rel=AS_ROUNDED)


@pytest.mark.parametrize("algorithm", ["W4A16_AWQ", "W4A8_AWQ", "W8A8_SQ_PER_CHANNEL", "NVFP4"])
def test_what_cannot_run_is_refused_in_one_sentence(algorithm: str, fp8: Path, tmp_path: Path) -> None:
    refused = drive("perplexity", str(with_algorithm(fp8, tmp_path / "other", algorithm)))["refused"]
    print(refused)
    assert refused.startswith("vLLM cannot load this checkpoint (")
    assert refused.endswith("cannot run that quantization: build another with build_engine.")
    assert "\n" not in refused
