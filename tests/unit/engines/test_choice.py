"""`engine: auto` on a Hugging Face-style checkpoint, and the Python that an engine may have of its own."""

from __future__ import annotations

import json
import logging
import os
import sys
from pathlib import Path

import msgspec
import pytest

from inflight import manifest
from inflight.engine_process.launch import EngineProcess
from inflight.engines.factory import resolve_engine
from inflight.engines.prequantized import READERS, method_of
from inflight.engines.python import ask, choose_python, find_packages, foreign_environment, python_executable
from inflight.engines.spec import WorkerSpec
from inflight.errors import LoadError


def checkpoint(folder: Path, recipe: str = "") -> Path:
    folder.mkdir()
    (folder / "config.json").write_text('{"architectures": ["LlamaForCausalLM"]}')
    (folder / "model.safetensors").write_bytes(b"")
    if recipe:
        written = manifest.Manifest(
            target="hf_quantized",
            source=manifest.Source(name="m", architecture="LlamaForCausalLM", sha256="0" * 64),
            quantization=manifest.Quantization(algorithm="x", kv_cache="none", recipe=recipe),
            parallelism=manifest.Parallelism(),
            limits=manifest.Limits(max_seq_len=64),
            requires=manifest.Requires(),
            verification=None,
            files=manifest.list_files(folder),
            built=manifest.Built(by="tests", command="", date="x", seconds=1.0),
        )
        manifest.write(folder, written)
    return folder


def chosen(folder: Path, **installed: str) -> str:
    return resolve_engine("auto", folder, lambda names: {n: v for n, v in installed.items() if n in names})


@pytest.mark.parametrize("recipe", ["", "fp8"])
def test_tensorrt_llm_first_then_vllm_and_the_log_says_why(
    recipe: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "inflight.backend")
    folder = checkpoint(tmp_path / "c", recipe)
    assert chosen(folder, tensorrt_llm="1.2.1", vllm="0.32.0") == "tensorrt_llm"
    assert "tensorrt_llm, because it is installed" in caplog.text
    assert chosen(folder, vllm="0.32.0") == "vllm"
    assert "vllm, because TensorRT-LLM is not installed and vLLM 0.32.0 is there" in caplog.text
    assert chosen(folder, tensorrt_llm="0.21.0", vllm="0.32.0") == "vllm"
    assert "TensorRT-LLM 0.21.0 runs compiled engines only" in caplog.text


def test_neither_is_one_sentence_that_says_what_to_install(tmp_path: Path) -> None:
    with pytest.raises(LoadError) as caught:
        chosen(checkpoint(tmp_path / "c", "fp8"))
    assert "TensorRT-LLM is not installed, and vLLM is not installed" in str(caught.value)
    assert "pip install vllm" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_recipe_that_vllm_does_not_read(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "c", "int4-awq")
    assert chosen(folder, tensorrt_llm="1.2.1", vllm="0.32.0") == "tensorrt_llm"
    with pytest.raises(LoadError, match="vLLM does not read W4A16_AWQ"):
        chosen(folder, vllm="0.32.0")


def test_a_recipe_in_vllms_own_format(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = checkpoint(tmp_path / "c", "int8-sq")
    with caplog.at_level("INFO", logger="inflight.backend"):
        assert chosen(folder, tensorrt_llm="1.2.1", vllm="0.32.0") == "vllm"
    assert "not known to read W8A8_INT8" in caplog.text
    with pytest.raises(LoadError, match="W8A8_INT8 checkpoints, and vLLM is not installed"):
        chosen(folder, tensorrt_llm="1.2.1")


def test_a_checkpoint_without_safe_weights_is_none(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "c")
    (folder / "model.safetensors").unlink()
    with pytest.raises(LoadError, match="build one with"):
        chosen(folder, vllm="0.32.0")


def test_the_targets_former_name_is_read_as_todays(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "c", "fp8")
    content = json.loads((folder / "engine.json").read_text())
    assert content["target"] == "hf_quantized"
    (folder / "engine.json").write_text(json.dumps({**content, "target": "tensorrt_llm_checkpoint"}))
    assert manifest.read(folder).target == "hf_quantized"
    assert manifest.check(folder, target="tensorrt_llm_checkpoint").target == "hf_quantized"
    assert chosen(folder, vllm="0.32.0") == "vllm"
    assert msgspec.structs.replace(manifest.read(folder), target="openvino").target == "openvino"


# -- the engine's own Python -----------------------------------------------------------------------------------------


def test_no_python_of_its_own(tmp_path: Path) -> None:
    assert choose_python(tmp_path, "") == ""


def test_a_link_to_a_python_stays_a_link(tmp_path: Path) -> None:
    """An environment's python is a link, and finds its packages by where the link is."""
    (tmp_path / "1").mkdir()
    link = tmp_path / "python"
    link.symlink_to(sys.executable)
    with pytest.raises(LoadError, match="lacks msgspec"):  # no pyvenv.cfg is beside it: it is the base interpreter
        choose_python(tmp_path / "1", "../python")
    assert choose_python(tmp_path, python_executable()) == python_executable()


@pytest.mark.parametrize("text", ["nowhere/bin/python", "folder", "text"])
def test_what_cannot_be_run(text: str, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "text").write_text("no program")
    with pytest.raises(LoadError, match=r"engine_python names .*; name the bin/python"):
        choose_python(tmp_path, text)


@pytest.mark.parametrize("script", ["#!/bin/sh\nexit 3\n", "#!/bin/sh\necho hello\n"])
def test_what_is_no_python(script: str, tmp_path: Path) -> None:
    program = tmp_path / "python"
    program.write_text(script)
    program.chmod(0o755)
    with pytest.raises(LoadError, match="does not answer as Python does"):
        choose_python(tmp_path, "python")


def test_it_is_asked_what_it_has() -> None:
    facts = ask(python_executable(), ["msgspec", "no_such_package"])
    assert facts.version == sys.version_info[:2]
    assert facts.packages == find_packages(["msgspec", "no_such_package"])
    assert list(facts.packages) == ["msgspec"]


def test_nothing_of_the_servers_leads_it_astray(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "libpython3.11.so.1.0").write_bytes(b"")
    (tmp_path / "cuda").mkdir()
    monkeypatch.setenv("LD_LIBRARY_PATH", f"{tmp_path}/lib:{tmp_path}/cuda")
    monkeypatch.setenv("PYTHONPATH", "/server")
    monkeypatch.setenv("PYTHONHOME", "/server")
    given = foreign_environment(Path("/venv/bin/python"), tmp_path)
    assert given["LD_LIBRARY_PATH"] == f"{tmp_path}/cuda"
    assert given["PYTHONPATH"] == str(tmp_path)
    assert "PYTHONHOME" not in given
    assert given["PATH"].startswith("/venv/bin" + os.pathsep)
    monkeypatch.setenv("LD_LIBRARY_PATH", f"{tmp_path}/lib")
    assert "LD_LIBRARY_PATH" not in foreign_environment(Path("/venv/bin/python"), None)


def test_an_engine_process_runs_under_it_and_finds_this_package_alone(tmp_path: Path) -> None:
    """The simulated engine needs nothing but msgspec and tokenizers: a wrapper shows what it is started with."""
    seen = tmp_path / "seen"
    program = tmp_path / "python"
    program.write_text(f'#!/bin/sh\nls "$PYTHONPATH" > {seen}\necho "$@" >> {seen}\nexec {python_executable()} "$@"\n')
    program.chmod(0o755)
    process = EngineProcess(WorkerSpec("simulated", str(tmp_path), {}, 0, str(program)))
    try:
        with pytest.raises(LoadError, match="tokenizer"):
            process.start(60.0, lambda: False)
    finally:
        process.kill()
    packages, command = seen.read_text().splitlines()
    assert packages == "inflight"
    assert command.startswith("-m inflight.engine_worker ")


def quantized(folder: Path, **settings: object) -> Path:
    checkpoint(folder)
    config = {"architectures": ["LlamaForCausalLM"], "quantization_config": settings}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


EVERYTHING = {"tensorrt_llm": "1.2.1", "vllm": "0.32.0"}


@pytest.mark.parametrize(
    ("settings", "name", "first"),
    [
        ({"quant_method": "gptq", "bits": 4}, "gptq", "vllm"),
        ({"quant_method": "awq"}, "awq", "vllm"),
        ({"quant_method": "bitsandbytes"}, "bitsandbytes", "vllm"),
        ({"quant_method": "compressed-tensors"}, "compressed-tensors", "vllm"),
        ({"quant_method": "fp8"}, "fp8", "vllm"),
        ({"quant_method": "fp8", "weight_block_size": [128, 128]}, "fp8 in blocks", "tensorrt_llm"),
        ({"quant_method": "mxfp4"}, "mxfp4", "tensorrt_llm"),
        ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, "ModelOpt NVFP4", "tensorrt_llm"),
        ({"quant_method": "modelopt", "quant_algo": "W4A16_AWQ"}, "ModelOpt W4A16_AWQ", "tensorrt_llm"),
    ],
)
def test_a_quantized_checkpoint_gets_an_engine_that_reads_it(
    settings: dict[str, object], name: str, first: str, tmp_path: Path
) -> None:
    folder = quantized(tmp_path / "q", **settings)
    method = method_of(folder)
    assert method is not None
    assert (method.name, method.readers) == (name, READERS[name])
    assert chosen(folder, **EVERYTHING) == first
    for engine, version in EVERYTHING.items():
        if engine in method.readers:
            assert chosen(folder, **{engine: version}) == engine
            continue
        with pytest.raises(LoadError, match=rf"{name} checkpoints.*take the checkpoint it was made from"):
            chosen(folder, **{engine: version})


def test_modelopts_own_file_counts_before_the_configuration(tmp_path: Path) -> None:
    folder = quantized(tmp_path / "q", quant_method="gptq")
    (folder / "hf_quant_config.json").write_text(json.dumps({"quantization": {"quant_algo": "FP8"}}))
    assert chosen(folder, **EVERYTHING) == "tensorrt_llm"


def test_a_method_that_nobody_is_known_to_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match=r"quantized already \(quark\), which no engine is known to read"):
        chosen(quantized(tmp_path / "q", quant_method="quark"), **EVERYTHING)


def test_plain_weights_have_no_method(tmp_path: Path) -> None:
    assert method_of(checkpoint(tmp_path / "c")) is None


def test_the_builders_advice_names_the_same_engines() -> None:
    from build_engine.prequantized import ENGINES, METHODS

    words = {"vLLM": "vllm", "TensorRT-LLM": "tensorrt_llm"}
    names = {value: key for key, value in METHODS.items()} | {"block FP8": "fp8 in blocks", "FP8": "fp8"}
    for method, advice in ENGINES.items():
        if method != "ModelOpt":
            assert {words[word] for word in advice.split(" or ")} == set(READERS[names[method]]), method
