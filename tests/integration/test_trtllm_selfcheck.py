"""scripts/gpu_selfcheck.py runs, on the stand-in, and notices what is wrong."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from build_engine.verification import corpus
from inflight import manifest
from inflight.engines.tensorrt_llm.llm_load import load_llm
from inflight.engines.tensorrt_llm.options import read_options
from inflight.engines.tensorrt_llm.probe import import_installed, read_config
from inflight_tools.common.layout import ENGINE, REPOSITORY
from inflight_tools.selfcheck.perplexity import of_checkpoint
from inflight_tools.selfcheck.windows import windows_of
from tests.doubles.folders import engine_config, environment, write_checkpoint, write_engine, write_manifest
from tests.doubles.stand_in import stand_in
from tests.doubles.trtllm_double.tokens import perplexity

SCRIPT = REPOSITORY / "scripts" / "gpu_selfcheck.py"
VOCABULARY, TOKENS = 49_152, 80
BENCH = """#!/bin/sh
while [ $# -gt 0 ]; do [ "$1" = --report_json ] && target=$2; shift; done
echo '{"performance": {"system_output_throughput_tok_s": 1000.0}}' > "$target"
"""


def selfcheck(tmp_path: Path, *arguments: str, profile: str = "1.2", **double: Any) -> tuple[int, dict[str, Any], str]:
    """(exit status, report, what it printed)."""
    given = environment(tmp_path / "site", profile, **double)
    given["PATH"] = f"{tmp_path / 'bin'}:{os.environ['PATH']}"
    command = [sys.executable, str(SCRIPT), "--output", str(tmp_path / "out"), *arguments]
    done = subprocess.run(
        command, env={**os.environ, **given}, capture_output=True, text=True, timeout=240, check=False
    )
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    return done.returncode, report, done.stdout + done.stderr


def predict(folder: Path, profile: str = "1.2", factor: float = 1.0, world: int = 1, **about: Any) -> float:
    """engine.json with the perplexity that the stand-in will have, times `factor`."""
    text = corpus.evaluation()
    value = factor * perplexity(windows_of(folder, text.text, 2048, TOKENS), VOCABULARY)
    foreseen = manifest.Verification(
        perplexity=value,
        reference_perplexity=value,
        mean_kl=0.0,
        greedy_agreement=0.98,
        text=f"{text.name}, sha256 {text.sha256[:16]}",
        tokens=TOKENS,
    )
    write_manifest(folder, profile, engine_config(profile)["build_config"], world, verification=foreseen, **about)
    return value


@pytest.mark.server
def test_an_engine_is_served_and_asked(tmp_path: Path) -> None:
    engine = write_engine(tmp_path / "engine", ENGINE)
    predicted = predict(engine)
    status, report, printed = selfcheck(
        tmp_path, "--artifact", f"fp8={engine}", "--parts", "facts,contract,perplexity,bench", step_ms=1
    )
    assert status == 0, printed + json.dumps(report, indent=1)
    assert report["facts"]["findings"] == []
    assert report["facts"]["checked"] > 400
    (served,) = report["engines"]
    assert len(served["checks"]) >= 9
    assert all(check["ok"] for check in served["checks"])
    assert served["perplexity"]["measured"] == pytest.approx(predicted, rel=1e-3)
    assert (served["perplexity"]["predicted"], served["perplexity"]["tokens"]) == (predicted, TOKENS)
    assert served["bench"] == {"note": "left out: trtllm-bench is not on PATH"}
    assert "## Engine fp8: well" in (tmp_path / "out" / "report.md").read_text()


def test_a_checkpoint_whose_perplexity_is_not_the_predicted_one(tmp_path: Path) -> None:
    """On the PyTorch flow, and this part alone: nothing is served."""
    folder = write_checkpoint(tmp_path / "checkpoint", ENGINE)
    predicted = predict(folder, "1.3", factor=0.9, target="tensorrt_llm_checkpoint")
    status, report, _ = selfcheck(tmp_path, "--artifact", f"x={folder}", "--parts", "perplexity", profile="1.3")
    (engine,) = report["engines"]
    assert (status, engine["checks"], report["facts"]) == (2, [], {})
    assert engine["perplexity"]["measured"] == pytest.approx(predicted / 0.9, rel=1e-3)
    assert engine["faults"] == [
        f"perplexity {engine['perplexity']['measured']:.3f} where {predicted:.3f} was predicted"
    ]


def test_a_text_with_repeats_gets_all_its_logits(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """With blocks that are reused, TensorRT-LLM gives the context logits of the rest alone."""
    with stand_in(monkeypatch, tmp_path, "1.3") as double:
        folder = write_checkpoint(tmp_path / "checkpoint", double.tokenizer)
        installed, config, window = import_installed(), read_config(folder), list(range(300, 400))
        losses = list(of_checkpoint(folder, config, installed, [window, window]))
        assert [count for _, count in losses] == [99, 99]
        assert losses[0] == losses[1]
        reusing = load_llm(folder, read_options({}), installed, 1).llm
        params = importlib.import_module("tensorrt_llm").SamplingParams(return_context_logits=True)
        found = reusing.generate([window, window], sampling_params=params)
        assert [len(each.context_logits) for each in found] == [100, 68], "the stand-in has the trap"


@pytest.mark.full
def test_the_perplexity_of_an_engine_on_four_ranks(tmp_path: Path) -> None:
    if shutil.which("mpirun") is None:
        pytest.skip("mpirun is missing: apt-get install openmpi-bin")
    engine = write_engine(tmp_path / "engine", ENGINE, world=4)
    predicted = predict(engine, world=4)
    status, report, printed = selfcheck(tmp_path, "--artifact", f"x={engine}", "--parts", "perplexity")
    assert status == 0, printed + json.dumps(report, indent=1)
    assert report["engines"][0]["perplexity"]["measured"] == pytest.approx(predicted, rel=1e-3)
    status, report, _ = selfcheck(tmp_path, "--artifact", f"x={engine}", "--parts", "perplexity", error_at=3)
    assert (status, report["engines"][0]["faults"]) == (
        2,
        [
            "perplexity: RuntimeError: Encountered an error when fetching new request: "
            "the stand-in was told to answer with an error"
        ],
    )


@pytest.mark.server
@pytest.mark.full
def test_tokens_that_are_not_the_models_and_a_ratio_to_trtllm_bench(tmp_path: Path) -> None:
    """The stand-in's tokens agree with no model; the load is real, trtllm-bench is not."""
    engine = write_engine(tmp_path / "engine", ENGINE)
    predict(engine)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "trtllm-bench").write_text(BENCH)
    (tmp_path / "bin" / "trtllm-bench").chmod(0o755)
    status, report, _ = selfcheck(
        tmp_path, "--artifact", f"x={engine}", "--parts", "transformers,load,bench", step_ms=1
    )
    (found,) = report["engines"]
    assert status == 2
    assert found["faults"] == [f"greedy agreement {found['agreement']['measured']:.3f} where 0.980 was predicted"]
    assert found["bench"]["ratio"] == pytest.approx(found["load"]["levels"][-1]["tokens_per_s"] / 1000)


@pytest.mark.server
@pytest.mark.full
def test_an_engine_that_does_not_load_is_in_the_report(tmp_path: Path) -> None:
    engine = write_engine(tmp_path / "engine", ENGINE)
    status, report, _ = selfcheck(
        tmp_path, "--artifact", f"x={engine}", "--parts", "contract,perplexity", oom_at_load=True
    )
    assert status == 2
    assert "out of memory" in report["engines"][0]["problem"]
    assert report["engines"][0]["perplexity"] is None
