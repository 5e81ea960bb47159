"""The builder's OpenVINO target on tiny random checkpoints: real export, real compression, a real engine loads."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt
import pytest

import inflight.manifest as manifest
from build_engine.verification.thresholds import too_far
from inflight import processor
from inflight.engines.openvino.engine import OpenVinoEngine
from inflight_tools.common.tiny_models import write_checkpoint

pytestmark = pytest.mark.build

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join((str(ROOT / "python_backend"), str(ROOT)))}


def command(model: Path, output: Path, *more: str) -> list[str]:
    base = [sys.executable, "-m", "build_engine", "build", str(model), "--target", "openvino", "--output", str(output)]
    return [*base, *([] if "--cache" in more else ["--no-cache"]), *more]


def build(model: Path, output: Path, *more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(model, output, *more), env=ENVIRONMENT, capture_output=True, text=True, timeout=240, check=False
    )


def tool(*arguments: object) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-m", "build_engine", *map(str, arguments)]
    return subprocess.run(words, env=ENVIRONMENT, capture_output=True, text=True, timeout=240, check=False)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("source") / "tiny-llama"
    shape = {"rope_theta": 500.0, "hidden_size": 128, "intermediate_size": 256, "tie_word_embeddings": False}
    fit_head(write_checkpoint(directory, **shape))
    return directory


def fit_head(directory: Path, steps: int = 60) -> None:
    """Fit the head of a random model to the text that a build verifies with: what predicts nothing is refused there."""
    import torch
    from tokenizers import Tokenizer
    from transformers import AutoModelForCausalLM

    from build_engine.verification import corpus

    ids = Tokenizer.from_file(str(directory / "tokenizer.json")).encode(corpus.evaluation().text[:8_000]).ids
    rows = torch.tensor(ids[: len(ids) // 128 * 128]).reshape(-1, 128)
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    with torch.no_grad():
        hidden = model.model(rows[:, :-1]).last_hidden_state
    head = model.lm_head.weight
    optimizer = torch.optim.Adam([head], lr=0.02)
    for _ in range(steps):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy((hidden @ head.T).flatten(0, 1), rows[:, 1:].flatten()).backward()
        optimizer.step()
    model.save_pretrained(directory)


@pytest.fixture(scope="module")
def engine(checkpoint: Path) -> Path:
    output = checkpoint.parent / "engine"
    done = build(checkpoint, output, "--quantization", "none", "--kv-cache", "none", "--max-seq-len", "128")
    assert done.returncode == 0, done.stderr
    return output


def logits_of(directory: Path, ids: list[int]) -> npt.NDArray[np.float32]:
    """Logits [positions, vocabulary] of an exported model over one sequence."""
    import openvino as ov

    model = ov.Core().compile_model(directory / "openvino_model.xml", "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    request = model.create_infer_request()
    tokens = np.array([ids], dtype=np.int64)
    inputs = {"input_ids": tokens, "attention_mask": np.ones_like(tokens), "beam_idx": np.zeros(1, dtype=np.int32)}
    names = {name for port in model.inputs for name in port.get_names()}
    if "position_ids" in names:
        inputs["position_ids"] = np.arange(len(ids), dtype=np.int64)[None]
    logits: npt.NDArray[np.float32] = np.asarray(request.infer(inputs)["logits"])[0]
    return logits


def reference_logits(directory: Path, ids: list[int]) -> npt.NDArray[np.float32]:
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    with torch.no_grad():
        return np.asarray(model(torch.tensor([ids])).logits[0])


IDS = [1, *range(40, 90), 2]


def test_engine_directory(checkpoint: Path, engine: Path) -> None:
    checked = manifest.check(engine, target="openvino", deep=True)
    assert checked.source.name == "tiny-llama"
    assert checked.limits.max_seq_len == 128
    assert (checked.quantization.recipe, checked.quantization.kv_cache) == ("none", "none")
    names = {path.name for path in engine.iterdir()}
    assert {"engine.json", "openvino_model.xml", "openvino_model.bin", "config.json", "generation_config.json"} <= names
    assert {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja"} <= names
    assert {"openvino_tokenizer.xml", "openvino_detokenizer.xml"} <= names
    assert (engine / "tokenizer.json").read_bytes() == (checkpoint / "tokenizer.json").read_bytes()
    assert sorted(path.name for path in engine.parent.iterdir() if path.name.startswith(".")) == []


def test_build_verified_it(engine: Path) -> None:
    figures = manifest.read(engine).verification
    assert figures is not None
    assert figures.tokens == 1024
    assert figures.perplexity == pytest.approx(figures.reference_perplexity, rel=0.005)
    assert figures.mean_kl < 0.005
    assert figures.greedy_agreement > 0.95
    assert "pydoc_data.topics" in figures.text
    assert "PSF-2.0" in figures.text


def test_verify_catches_altered_weights(checkpoint: Path, engine: Path, tmp_path: Path) -> None:
    copy = tmp_path / "engine"
    shutil.copytree(engine, copy)
    weights = bytearray((copy / "openvino_model.bin").read_bytes())
    half = len(weights) // 2 // 64 * 64
    weights[half : half + 16384] = weights[half + 8192 : half + 16384] + weights[half : half + 8192]
    (copy / "openvino_model.bin").write_bytes(weights)
    done = tool("verify", copy, "--reference", checkpoint, "--tokens", "256", "--json")
    assert done.returncode == 1, done.stderr
    assert json.loads(done.stdout)["passed"] is False
    assert "perplexity" in done.stderr or "KL divergence" in done.stderr


def test_inspect(engine: Path) -> None:
    done = tool("inspect", engine, "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["whole"]
    assert found["runs_here"]
    kinds = {each["kernel"]: each["count"] for each in found["fused"]["absorbed"]}
    assert kinds["RMS"] == 5  # two a layer and the last
    assert kinds["RoPE"] == 4  # query and key of each layer
    assert found["fused"]["merged"] == {"q_proj+k_proj+v_proj": 2, "gate_proj+up_proj": 2}
    assert kinds["FullyConnected"] == 9  # four a layer and the head
    assert found["fused"]["kernels_after"] < found["fused"]["operations_before"] / 2


def test_inspect_finds_what_is_wrong(engine: Path, tmp_path: Path) -> None:
    copy = tmp_path / "engine"
    shutil.copytree(engine, copy)
    (copy / "tokenizer.json").write_text("{}")
    described = json.loads((copy / "engine.json").read_text())
    described["requires"]["packages"]["openvino"] = "2031.1.0"
    (copy / "engine.json").write_text(json.dumps(described))
    done = tool("inspect", copy)
    assert done.returncode == 1
    assert "NO: " in done.stdout
    assert "tokenizer.json" in done.stdout
    assert "built for openvino 2031.1" in done.stdout


def test_unquantized_engine_equals_the_source(checkpoint: Path, engine: Path) -> None:
    np.testing.assert_allclose(logits_of(engine, IDS), reference_logits(checkpoint, IDS), atol=2e-3)


@pytest.mark.full
def test_a_checkpoint_of_transformers_5_keeps_its_rotary_base(checkpoint: Path, engine: Path, tmp_path: Path) -> None:
    newer = tmp_path / "newer"
    newer.mkdir()
    for path in checkpoint.iterdir():
        (newer / path.name).write_bytes(path.read_bytes())
    config = json.loads((newer / "config.json").read_text())
    base = config.pop("rope_theta")
    assert base == 500.0
    config.pop("rope_scaling", None)
    config["rope_parameters"] = {"rope_type": "default", "rope_theta": base}
    (newer / "config.json").write_text(json.dumps(config))
    done = build(newer, tmp_path / "engine", "--quantization", "none", "--no-verify")
    assert done.returncode == 0, done.stderr
    expected = logits_of(engine, IDS)
    np.testing.assert_allclose(logits_of(tmp_path / "engine", IDS), expected, atol=1e-5)
    wrong = reference_logits(newer, IDS)  # transformers 4 on the untranslated copy falls back to 10,000
    assert np.abs(wrong - expected).max() > 0.1, "the planted fault must be visible for this test to mean anything"


@pytest.mark.parametrize(
    ("recipe", "largest"),
    [
        pytest.param("int8", 0.45, marks=pytest.mark.full),  # the other tests build it
        pytest.param("int4", 0.45, marks=pytest.mark.full),
        pytest.param("int8-sq", 0.45, marks=pytest.mark.full),
        ("int4-awq", 0.45),
        pytest.param("int4-gptq", 0.45, marks=pytest.mark.full),
    ],
)
def test_quantized_engine_generates(checkpoint: Path, tmp_path: Path, recipe: str, largest: float) -> None:
    import openvino as ov
    import openvino_genai as genai

    done = build(checkpoint, tmp_path / "engine", "--quantization", recipe, "--no-verify")
    assert done.returncode == 0, done.stderr
    checked = manifest.check(tmp_path / "engine", deep=True)
    assert checked.quantization.kv_cache == "int8"
    details = checked.quantization.details
    assert details["mode"] == ("int8_asym" if recipe in ("int8", "int8-sq") else "int4_asym")
    assert details.get("smoothquant_alpha") == (0.5 if recipe == "int8-sq" else None)
    group = (
        ov.Core()
        .compile_model(tmp_path / "engine" / "openvino_model.xml", "CPU")
        .get_property("DYNAMIC_QUANTIZATION_GROUP_SIZE")
    )
    assert group == details.get("activation_group", 32)
    assert (details.get("awq"), details.get("gptq")) == (recipe == "int4-awq" or None, recipe == "int4-gptq" or None)
    assert (
        checked.built.details["merged q_proj+k_proj+v_proj"] == checked.built.details["merged gate_proj+up_proj"] == 2
    )
    weights = (tmp_path / "engine" / "openvino_model.bin").stat().st_size
    assert weights < largest * (checkpoint / "model.safetensors").stat().st_size
    scheduler = genai.SchedulerConfig()
    scheduler.num_kv_blocks = 16
    pipeline = genai.ContinuousBatchingPipeline(
        str(tmp_path / "engine"), scheduler, "CPU", {"KV_CACHE_PRECISION": "u8"}
    )
    options = genai.GenerationConfig()
    options.max_new_tokens = 5
    options.ignore_eos = True
    handle = pipeline.add_request(0, ov.Tensor(np.array([IDS], dtype=np.int64)), options)
    tokens: list[int] = []
    deadline = time.monotonic() + 60
    while pipeline.has_non_finished_requests() and time.monotonic() < deadline:
        pipeline.step()
        while handle.can_read():
            tokens += [token for output in handle.read().values() for token in output.generated_ids]
    assert len(tokens) == 5


@pytest.mark.full
def test_the_same_build_gives_the_same_bytes(checkpoint: Path, engine: Path, tmp_path: Path) -> None:
    done = build(checkpoint, tmp_path / "engine", "--quantization", "none", "--kv-cache", "none", "--no-verify")
    assert done.returncode == 0, done.stderr
    first = {entry.path: entry.sha256 for entry in manifest.read(engine).files}
    again = {entry.path: entry.sha256 for entry in manifest.read(tmp_path / "engine").files}
    assert again == first


@pytest.mark.full
def test_a_finished_export_is_taken_from_the_cache(checkpoint: Path, tmp_path: Path) -> None:
    cache = str(tmp_path / "cache")
    first = build(checkpoint, tmp_path / "a", "--no-verify", "--cache", cache)
    assert first.returncode == 0, first.stderr
    again = build(checkpoint, tmp_path / "b", "--no-verify", "--cache", cache)
    assert again.returncode == 0, again.stderr
    assert "taken from an earlier build" in again.stderr
    hashes = [[entry.sha256 for entry in manifest.check(tmp_path / name, deep=True).files] for name in "ab"]
    assert hashes[0] == hashes[1]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stopped_build_leaves_nothing(checkpoint: Path, tmp_path: Path, number: signal.Signals, code: int) -> None:
    process = subprocess.Popen(command(checkpoint, tmp_path / "engine"), env=ENVIRONMENT, stderr=subprocess.PIPE)
    try:
        wait_for_child(process.pid, tmp_path)
        process.send_signal(number)
        _, error = process.communicate(timeout=30)
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
    assert process.returncode == code
    assert b"Traceback" not in error
    assert list(tmp_path.iterdir()) == []


@pytest.mark.full
def test_a_killed_build_is_swept_by_the_next(checkpoint: Path, tmp_path: Path) -> None:
    process = subprocess.Popen(command(checkpoint, tmp_path / "engine"), env=ENVIRONMENT, stderr=subprocess.DEVNULL)
    child = wait_for_child(process.pid, tmp_path)
    process.kill()
    process.wait(timeout=10)
    deadline = time.monotonic() + 10
    while Path(f"/proc/{child}").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not Path(f"/proc/{child}").exists(), "the stage outlived its parent"
    assert [path.name.split("-")[0] for path in tmp_path.iterdir()] == [".engine.building"]
    done = build(checkpoint, tmp_path / "engine", "--no-verify")
    assert done.returncode == 0, done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["engine"]


def wait_for_child(parent: int, directory: Path) -> int:
    """Wait until the build has a stage process and a hidden output directory; return the stage's process id."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        children = Path(f"/proc/{parent}/task/{parent}/children").read_text(encoding="utf-8").split()
        if children and any(path.name.startswith(".engine.building-") for path in directory.iterdir()):
            time.sleep(0.5)
            return int(children[0])
        time.sleep(0.05)
    raise AssertionError("the build never started its stage")


@pytest.mark.full
def test_longrope_is_served_up_to_where_its_factors_change_and_would_be_wrong_beyond(tmp_path: Path) -> None:
    scaling = {"type": "longrope", "short_factor": [1.0] * 16, "long_factor": [4.0] * 16}
    shape = {"hidden_size": 128, "intermediate_size": 256, "original_max_position_embeddings": 600}
    model = write_checkpoint(tmp_path / "model", "phi3", rope_scaling=scaling, max_position_embeddings=1024, **shape)
    planned = tool("plan", model)
    assert "engines for OpenVINO end sequences at 600 tokens instead of 1024" in planned.stdout
    output = tmp_path / "engine"
    done = build(model, output, "--quantization", "none", "--kv-cache", "none", "--no-verify")
    assert done.returncode == 0, done.stderr
    assert "sequences end at 600 tokens instead of 1024" in done.stderr
    assert manifest.read(output).limits.max_seq_len == 600
    within = json.loads(tool("verify", output, "--reference", model, "--tokens", "380", "--json").stdout)
    assert within["mean_kl"] < 0.005, within
    described = json.loads((output / "engine.json").read_text())
    assert within["beyond"] == []
    described["limits"]["max_seq_len"] = 1024  # as engines were built before
    (output / "engine.json").write_text(json.dumps(described))
    longer = json.loads(tool("verify", output, "--reference", model, "--tokens", "380", "--json").stdout)
    assert longer["mean_kl"] == within["mean_kl"], "windows of 512 tokens see nothing of it"
    (beyond,) = longer["beyond"]
    assert (beyond["border"], beyond["tokens"]) == (600, 255)
    assert beyond["mean_kl_low"] > 0.05
    figures = msgspec.convert(longer, manifest.Verification)
    problem = too_far("openvino", "none", figures) or ""  # the command has another one first: random weights are noise
    assert problem.startswith("beyond 600 tokens the mean KL divergence is ")
    assert problem.endswith("sequences of up to 600 tokens are right (--max-seq-len 600)")


def test_an_engine_is_built_for_the_processor_that_serves(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Wide products are cut for one kind alone, and an engine for the other kind says so where it is loaded."""
    model = tmp_path / "wide"
    write_checkpoint(model, hidden_size=64, intermediate_size=6144)
    cut = {}
    for kind in (processor.VNNI, processor.AVX2):
        done = build(model, tmp_path / kind, "--no-verify", "--processor", kind)
        assert done.returncode == 0, done.stderr
        details = json.loads((tmp_path / kind / "engine.json").read_text())["built"]["details"]
        assert details["processor"] == kind
        cut[kind] = details.get(processor.PRODUCTS_CUT, 0)
    assert cut[processor.VNNI] == 0 < cut[processor.AVX2]
    for kind in cut:
        caplog.clear()
        OpenVinoEngine(tmp_path / kind, {}, 2).close()
        assert ("built for another kind of processor" in caplog.text) == (kind != processor.kind())
