"""scripts/gpu_selfcheck.py --engine vllm on the installed vLLM: builds, serves, measures, and notices what is wrong."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from inflight_tools.common.layout import REPOSITORY
from tests.doubles.vllm import OPTIONS, cycle, vllm_python, write_chain
from tests.unit.machines.tokenizer_kinds import write_folder

pytestmark = [pytest.mark.server, pytest.mark.full, pytest.mark.timeout(600)]

SCRIPT = REPOSITORY / "scripts" / "gpu_selfcheck.py"


def selfcheck(output: Path, *arguments: str) -> tuple[int, dict[str, Any], str]:
    """(exit status, report, what it printed)."""
    options = json.dumps({**OPTIONS, "kv_cache_gb": 0.25})
    command = [sys.executable, str(SCRIPT), "--engine", "vllm", "--python", str(vllm_python())]
    command += ["--engine-options", options, "--output", str(output), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500, check=False)
    printed = done.stdout + done.stderr
    assert (output / "report.json").is_file(), printed
    return done.returncode, json.loads((output / "report.json").read_text()), printed


def test_a_model_is_built_served_and_measured_and_a_wrong_prediction_is_a_fault(tmp_path: Path) -> None:
    tokenizer = write_folder(tmp_path / "tokenizer", "byte_level")
    model = write_chain(tmp_path / "model", tokenizer, cycle(tokenizer), context=2048)
    arguments = ["--model", str(model), "--recipes", "none", "--concurrency", "2,4"]
    arguments += ["--parts", "facts,transformers,load,perplexity,bench"]
    status, report, printed = selfcheck(tmp_path / "out", *arguments)
    assert status == 0, printed + json.dumps(report, indent=1)
    assert report["facts"]["findings"] == []
    assert report["facts"]["checked"] > 60
    (engine,) = report["engines"]
    assert engine["perplexity"]["measured"] == pytest.approx(engine["perplexity"]["predicted"], rel=0.01)
    assert engine["agreement"]["measured"] > 0.95
    assert [level["concurrency"] for level in engine["bench"]["levels"]] == [2, 4]
    for level, served in zip(engine["bench"]["levels"], engine["load"]["levels"], strict=True):
        assert level["served_tokens_per_s"] == served["tokens_per_s"]
        assert 0 < level["ratio"] < 2
        assert 0 < level["vllm_bandwidth_share"] < 1

    directory = Path(engine["directory"])
    about = json.loads((directory / "engine.json").read_text())
    about["verification"]["perplexity"] *= 0.9
    (directory / "engine.json").write_text(json.dumps(about))
    status, report, _ = selfcheck(tmp_path / "again", "--artifact", f"x={directory}", "--parts", "perplexity")
    (again,) = report["engines"]
    assert (status, again["load"], report["facts"]) == (2, None, {})
    assert again["perplexity"]["measured"] == pytest.approx(engine["perplexity"]["measured"], rel=1e-3)
    wrong = about["verification"]["perplexity"]
    assert again["faults"] == [f"perplexity {again['perplexity']['measured']:.3f} where {wrong:.3f} was predicted"]


def test_an_engine_that_does_not_load_is_in_the_report(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "model")
    status, report, _ = selfcheck(tmp_path / "out", "--artifact", f"x={folder}", "--parts", "contract,perplexity")
    assert status == 2
    (engine,) = report["engines"]
    assert "the engine directory has no config.json" in engine["problem"]
    assert engine["perplexity"] is None
