"""What a step reads and computes, what this machine could do, and what roofline.py refuses to measure."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench import limits, roofline
from bench.bare_roofline import COPIED, PROMPT, READ, STEPS, shares
from bench.engine_work import EngineWork, engine_work
from bench.results import processor
from inflight_tools.common.report import Failure

CONFIG = {"vocab_size": 40, "hidden_size": 8, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16}
WORK = EngineWork(layers=1000, head=100, weight_bytes=1100, kv_bytes=10, pair=6)


@pytest.fixture
def engine(tmp_path: Path) -> Path:
    """Two layers of one 8-bit product each, a head of 32 bits, and a product of two inputs: attention."""
    import openvino as ov
    from openvino import opset13 as ops

    value = read = ops.parameter([-1, 8], np.float32)
    for _ in range(2):
        weights = ops.convert(ops.constant(np.ones((8, 8), np.int8)), np.float32)
        scaled = ops.multiply(weights, ops.constant(np.ones((8, 1), np.float32)))
        value = ops.matmul(value, scaled, False, True)
    value = ops.matmul(ops.matmul(value, value, False, True), value, False, False)
    logits = ops.matmul(value, ops.constant(np.ones((40, 8), np.float32)), False, True)
    ov.save_model(ov.Model([ops.result(logits)], [read], "m"), tmp_path / "openvino_model.xml", compress_to_fp16=False)
    (tmp_path / "config.json").write_text(json.dumps({**CONFIG, "num_hidden_layers": 2}), encoding="utf-8")
    (tmp_path / "tokenizer.json").write_text("{}", encoding="utf-8")
    return tmp_path


def test_an_engines_work_is_read_off_its_graph(engine: Path) -> None:
    work = engine_work(engine)
    assert (work.layers, work.head) == (2 * 64, 320)
    assert work.weight_bytes == 2 * (64 + 8 * 4) + 320 * 4  # with the scales
    assert work.kv_bytes == 2 * 2 * 2 * (16 + 8)  # keys and values, layers, heads, 8 bits with scale and zero point
    assert work.pair == 2 * 2 * 4 * 16


def test_what_has_no_fixed_work_is_refused(engine: Path) -> None:
    (engine / "config.json").write_text(json.dumps({**CONFIG, "num_local_experts": 8}), encoding="utf-8")
    with pytest.raises(Failure, match="mixture of experts"):
        engine_work(engine)
    (engine / "openvino_model.xml").unlink()
    with pytest.raises(Failure, match="is no OpenVINO engine"):
        engine_work(engine)


def test_operations_of_a_step_and_of_a_prompt() -> None:
    assert WORK.step_operations(4, 10) == 2 * 4 * (1000 + 100 + 10 * 6)
    assert WORK.step_bytes(4, 10) == 1100 + 4 * 10 * 10
    # Each token meets itself and all before it; only the last one's logits are wanted.
    assert WORK.prefill_operations(3) == 2 * (3 * 1000 + 100 + (1 + 2 + 3) * 6)


def test_shares_are_of_bytes_or_of_operations() -> None:
    limits_found = {READ: 1e6, COPIED: 2e6, "int8 in registers": 1e7}
    found = shares(WORK, 2, 512, 10.0, limits_found)
    context = PROMPT + STEPS / 2
    assert found["share of bytes read"] == pytest.approx((1100 + 2 * context * 10) * 100 / 1e6)
    assert found["share of bytes copied"] == found["share of bytes read"] / 2
    assert found["share of int8 in registers"] == pytest.approx(4 * (1100 + context * 6) * 100 / 1e7)
    assert shares(WORK, 0, 512, 10.0, limits_found)["gop_per_s"] == pytest.approx(WORK.prefill_operations(512) / 1e7)


@pytest.mark.skipif(not shutil.which("cc"), reason="no C compiler")
def test_the_cores_peaks_are_measured() -> None:
    found = limits.register_peaks(1, 0.02)
    assert {"f32", "int8"} <= set(found)
    assert all(rate > 1e8 and names for names, rate in found.values())


def test_without_a_compiler_it_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda _name: None)
    with pytest.raises(Failure, match="no C compiler: install gcc"):
        limits.register_peaks(1, 0.02)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--engine", "a={engine}", "--engine", "a={engine}"], "two engines have the same name"),
        (["--engine", "a={engine}/nothing"], "there is no engine at"),
        (["--engine", "{engine}"], "is not NAME=DIR"),
        (["--engine", "a={engine}", "--prefill", "5000"], "--prefill: a step takes at most 4,096 tokens"),
        (["--engine", "a={engine}", "--in-flight", "1,65"], "--in-flight: an engine is loaded for at most 64"),
        (["--one-core"], "--one-core is for bare engines"),
        (["--engine", "a={engine}", "--in-flight", "0"], "has to be whole numbers from 1 on"),
    ],
)
def test_what_cannot_be_measured_is_refused_in_a_sentence(
    options: list[str], said: str, engine: Path, capsys: pytest.CaptureFixture[Any]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        roofline.main([option.format(engine=engine) for option in options])
    assert stopped.value.code == 2
    told = capsys.readouterr().err
    assert said in told
    assert told.count("\n") == 1


def test_results_say_which_processor_it_was() -> None:
    first = "processor\t: 0\ncpu family\t: 25\nmodel\t\t: 1\nmodel name\t: AMD EPYC\nflags\t\t: fpu avx2 avx"
    cpuinfo = f"{first}\n\nprocessor\t: 1\n"
    assert processor(cpuinfo) == {"processor": "AMD EPYC, family 25, model 1", "instructions": ["avx2"]}
    assert processor("Hardware : something else\n") == {}
